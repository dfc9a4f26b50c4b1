from __future__ import annotations

import struct

import numpy as np
import pytest

from steering.audio.limits import AudioLimits
from steering.audio.mpeg import first_frame, frame_head, open_mpeg
from steering.errors import AudioTooLarge
from tests.steering.audio.files import RATE_HZ, changing_mp3, encode, heard, id3, noise

LIMITS = AudioLimits()


def without_info(mp3: bytes) -> bytes:
    """The file without its first frame, which says how long it is."""
    head = frame_head(mp3, 0)
    assert head is not None
    assert b"Xing" in mp3[: head.size] or b"Info" in mp3[: head.size]
    return mp3[head.size :]


def with_count(mp3: bytes, count: int) -> bytes:
    mark = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    changed = bytearray(mp3)
    struct.pack_into(">I", changed, mark + 8, count)
    return bytes(changed)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100])
def test_a_variable_rate_without_its_information_frame_is_heard_wholly(rate_hz: int) -> None:
    clip = heard(without_info(changing_mp3(rate_hz)))
    assert clip.submitted_seconds == pytest.approx(2.0, abs=0.25)  # what encoders add
    assert clip.submitted_seconds >= 2.0
    assert not clip.warnings
    loud = clip.samples[RATE_HZ // 4 * 6 : RATE_HZ // 4 * 7]
    assert np.sqrt((loud**2).mean()) > 0.1


@pytest.mark.parametrize("count", [0, 1, 30, 2**31])
def test_a_wrong_count_of_frames_takes_nothing_away(count: int) -> None:
    right = heard(changing_mp3())
    clip = heard(with_count(changing_mp3(), count))
    assert clip.submitted_seconds == pytest.approx(right.submitted_seconds, abs=0.1)
    assert clip.submitted_seconds >= right.submitted_seconds
    size = len(right.samples)
    np.testing.assert_allclose(clip.samples[:size], right.samples, atol=1e-4)


def test_the_information_frame_trims_what_the_encoder_added() -> None:
    assert heard(changing_mp3()).submitted_seconds == 2.0


@pytest.mark.parametrize("rates", [(16_000, 16_000), (22_050, 24_000), (16_000, 44_100)])
@pytest.mark.parametrize("with_info", [True, False])
def test_files_one_behind_the_other_are_heard(rates: tuple[int, int], with_info: bool) -> None:
    first, second = (changing_mp3(rate_hz) for rate_hz in rates)
    clip = heard(first + (second if with_info else without_info(second)))
    assert clip.submitted_seconds == pytest.approx(4.0, abs=0.15)
    assert clip.submitted_seconds >= 4.0
    assert clip.submitted_rate_hz == rates[0]
    if with_info or rates[0] != rates[1]:
        assert "2 recordings" in clip.warnings[-1]
    quiet, loud = clip.samples[: RATE_HZ // 2], clip.samples[-RATE_HZ // 2 :]
    assert np.abs(quiet).max() < 0.01 < np.sqrt((loud[: RATE_HZ // 4] ** 2).mean())


@pytest.mark.parametrize("between", [bytes(700), id3(300), b"TAG" + bytes(125)])
def test_tags_and_zeros_between_files_are_passed(between: bytes) -> None:
    clip = heard(changing_mp3() + between + changing_mp3())
    assert clip.submitted_seconds == pytest.approx(4.0, abs=0.01)


def test_bytes_between_frames_are_told() -> None:
    mp3 = changing_mp3()
    middle = first_frame(mp3, len(mp3) * 2 // 3)
    assert middle is not None
    clip = heard(mp3[:middle] + b"junk" * 100 + mp3[middle:])
    assert clip.submitted_seconds == pytest.approx(2.0, abs=0.1)
    assert "400 bytes between" in clip.warnings[0]


def test_a_stream_joined_in_the_middle_is_heard() -> None:
    mp3 = encode(noise(2.0), container="MP3")
    clip = heard(mp3[len(mp3) // 2 + 100 :])
    assert clip.submitted_seconds == pytest.approx(1.0, abs=0.15)
    assert "in front of its first MP3 frame" in clip.warnings[0]


def test_a_frame_cut_short_is_told() -> None:
    mp3 = encode(noise(), container="MP3")
    clip = heard(mp3[:-50])
    assert clip.seconds == pytest.approx(1.0, abs=0.1)
    assert "cut short" in clip.warnings[0]


@pytest.mark.parametrize("zeros", [1, 500, 5_000])
def test_zeros_behind_a_tag_are_passed(zeros: int) -> None:
    clip = heard(id3(200) + bytes(zeros) + changing_mp3())
    assert clip.submitted_seconds == 2.0
    assert not clip.warnings


def test_marks_inside_a_tag_are_not_files() -> None:
    marks = b"RIFF\x00\x10\x00\x00WAVEfmt fLaC\x00\x00\x00\x22OggS\x00\x02Xing\x00\x00\x00\x0f"
    clip = heard(id3(3_000, marks) + changing_mp3())
    assert clip.submitted_seconds == 2.0
    assert not clip.warnings


def test_a_tag_that_lies_hides_nothing() -> None:
    tag = bytearray(id3(200))
    for size in (0x7F, 0x00):
        tag[6:10] = bytes([size] * 4)
        assert heard(bytes(tag) + changing_mp3()).submitted_seconds == 2.0


def test_frames_are_counted_no_further_than_allowed() -> None:
    frame = encode(noise(0.2), container="MP3")
    start = first_frame(frame, 200)
    assert start is not None
    head = frame_head(frame, start)
    assert head is not None
    many = frame[start : start + head.size] * 20_000
    with pytest.raises(AudioTooLarge, match="longer than the 30 s"):
        open_mpeg(many, 0, LIMITS)


def test_mp3_in_wav_is_heard() -> None:
    mp3 = encode(noise(), container="MP3")
    layout = struct.pack("<HHIIHH", 0x55, 1, RATE_HZ, 4_000, 1, 0)
    chunks = b"fmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", len(mp3)) + mp3
    clip = heard(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    assert clip.submitted_seconds == 1.0


def test_noise_holds_no_frames() -> None:
    assert first_frame(np.random.default_rng(0).bytes(2_000_000), 0) is None
