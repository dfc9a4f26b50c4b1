from __future__ import annotations

import numpy as np
import pytest

from steering.errors import AudioError, AudioTooLarge
from tests.steering.audio.files import encode, heard, id3, noise

SAMPLES = noise(2.0, channels=2)
FLAC = encode(SAMPLES, container="FLAC")


def with_length(frames: int) -> bytes:
    """The file whose header announces so many sample frames."""
    info = int.from_bytes(FLAC[18:26], "big") >> 36 << 36 | frames
    return FLAC[:18] + info.to_bytes(8, "big") + FLAC[26:]


@pytest.mark.parametrize("frames", [0, 1, 20_000])
def test_what_follows_the_announced_end_is_heard(frames: int) -> None:
    clip = heard(with_length(frames))
    np.testing.assert_array_equal(clip.samples, heard(FLAC).samples)
    assert not clip.warnings


@pytest.mark.parametrize("frames", [32_001, 10**6, 2**36 - 1])
def test_a_length_that_is_not_there_is_told(frames: int) -> None:
    clip = heard(with_length(frames))
    assert clip.submitted_seconds == 2.0
    assert "announces" in clip.warnings[0]


@pytest.mark.parametrize("behind", [bytes(1), bytes(3_000), b"TAG" + bytes(125), id3(50)])
def test_tags_and_zeros_behind_are_no_sound(behind: bytes) -> None:
    for data in (FLAC, with_length(0)):
        clip = heard(data + behind)
        assert clip.submitted_seconds == 2.0
        assert not clip.warnings


def test_a_file_cut_short_is_heard_to_its_last_whole_frame() -> None:
    whole = heard(FLAC).samples
    for size in (len(FLAC) // 3, len(FLAC) // 2, len(FLAC) - 1):
        for data in (FLAC, with_length(0)):
            clip = heard(data[:size])
            assert 0 < len(clip.samples) < len(whole)
            np.testing.assert_array_equal(clip.samples, whole[: len(clip.samples)])
            assert "cut short" in clip.warnings[0]


def test_a_tag_in_front_is_passed() -> None:
    assert heard(id3(5_000, b"fLaC\x00\x00\x00\x22") + FLAC).submitted_seconds == 2.0


def test_a_length_that_is_true_is_in_the_error() -> None:
    long = encode(np.zeros(16_000 * 31, np.int16), container="FLAC")
    with pytest.raises(AudioTooLarge, match=r"31\.00 s long"):
        heard(long)


def test_a_header_alone_is_refused() -> None:
    with pytest.raises(AudioError, match="no whole frame"):
        heard(FLAC[:200])
