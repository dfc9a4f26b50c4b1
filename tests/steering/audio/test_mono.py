from __future__ import annotations

import numpy as np
import pytest

from steering.audio.limits import AudioLimits
from steering.audio.mono import mix
from steering.audio.recording import Block
from steering.errors import AudioTooLarge
from tests.steering.audio.files import Floats, encode, heard, noise

TONE = noise(1.0)


def stereo(left: Floats, right: Floats) -> bytes:
    return encode(np.concatenate([left, right], axis=1), subtype="FLOAT")


# ---- channels that cancel each other


@pytest.mark.parametrize("right", [-1.0, -0.95, -1.05])
def test_opposite_channels_are_heard_from_the_louder_one(right: float) -> None:
    clip = heard(stereo(TONE, (right * TONE).astype(np.float32)))
    loudest = TONE if abs(right) <= 1 else right * TONE
    np.testing.assert_allclose(clip.samples, loudest[:, 0], atol=1e-6)
    assert "cancel" in clip.warnings[0]
    assert f"channel {1 if abs(right) <= 1 else 2} alone" in clip.warnings[0]


def test_a_constant_under_opposite_channels_hides_nothing() -> None:
    clip = heard(stereo(TONE + 0.05, 0.05 - TONE))
    assert "cancel" in clip.warnings[0]


@pytest.mark.parametrize("right", [1.0, 0.0, -0.5, 0.5])
def test_other_channels_are_averaged(right: float) -> None:
    clip = heard(stereo(TONE, (right * TONE).astype(np.float32)))
    np.testing.assert_allclose(clip.samples, TONE[:, 0] * (1 + right) / 2, atol=1e-6)
    assert not clip.warnings


def test_independent_channels_are_averaged() -> None:
    for channels in (2, 6, 8):
        assert not heard(encode(noise(1.0, channels=channels))).warnings


def test_silence_cancels_nothing() -> None:
    assert not heard(encode(np.zeros((16_000, 2), np.int16))).warnings


def test_opposite_channels_in_compressed_files() -> None:
    time = np.arange(16_000) / 16_000
    tone = 0.4 * np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * 3 * time)
    both = np.stack([tone, -tone], axis=1)
    for container in ("FLAC", "OGG", "MP3"):
        clip = heard(encode(both, container=container))
        assert "cancel" in clip.warnings[0]
        assert np.sqrt((clip.samples**2).mean()) > 0.1


# ---- integers in a float file


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_are_scaled_down(bits: int, subtype: str) -> None:
    integers = np.rint(TONE.astype(np.float64) * 2 ** (bits - 1))
    clip = heard(encode(integers, subtype=subtype))
    np.testing.assert_allclose(clip.samples, TONE[:, 0], atol=2e-5)
    assert f"divided by {2 ** (bits - 1):,}" in clip.warnings[0]


def test_integers_that_went_through_a_filter_are_scaled_down() -> None:
    clip = heard(encode(TONE * 40_000.7, subtype="FLOAT"))
    assert 0.9 < np.abs(clip.samples).max() < 1.2
    assert clip.warnings


def test_faint_integers_are_scaled_down() -> None:
    clip = heard(encode(np.rint(TONE * 6), subtype="FLOAT"))
    assert np.abs(clip.samples).max() < 1e-3
    assert "32,768" in clip.warnings[0]


@pytest.mark.parametrize("gain", [0.1, 1.0, 4.0, 20.0])
def test_floats_are_heard_as_they_are(gain: float) -> None:
    clip = heard(encode(TONE * gain, subtype="FLOAT"))
    np.testing.assert_array_equal(clip.samples, (TONE * gain)[:, 0])
    assert not clip.warnings


def test_a_square_wave_of_full_scale_is_heard_as_it_is() -> None:
    square = np.sign(TONE).astype(np.float32)
    clip = heard(encode(square, subtype="FLOAT"))
    np.testing.assert_array_equal(clip.samples, square[:, 0])


# ---- blocks


def test_a_change_of_rate_begins_a_section() -> None:
    blocks = [Block(8_000, noise(1.0)[:8_000]), Block(8_000, TONE), Block(16_000, TONE)]
    sections = mix(blocks, AudioLimits())
    assert [(s.rate_hz, s.length) for s in sections] == [(8_000, 24_000), (16_000, 16_000)]


def test_no_more_is_held_than_allowed() -> None:
    def endless() -> object:
        while True:
            yield Block(16_000, TONE)

    with pytest.raises(AudioTooLarge, match="longer than the 5 s"):
        mix(endless(), AudioLimits(max_seconds=5.0))  # type: ignore[arg-type]
