from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from steering.audio.clip import Clip


def clip(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Clip:
    return Clip(samples, 16_000, submitted_seconds=1.0, submitted_rate_hz=44_100, channels=2)


def test_seconds_count_the_samples_heard() -> None:
    assert clip(np.ones(8_000, np.float32)).seconds == 0.5


def test_the_silent_twin_differs_in_its_samples_only() -> None:
    heard = clip(np.ones(8_000, np.float32))
    silent = heard.silent()
    assert silent.samples.dtype == np.float32
    assert silent.samples.shape == heard.samples.shape
    assert not silent.samples.any()
    assert heard.samples.all(), "the original keeps its samples"
    assert dataclasses.replace(silent, samples=heard.samples).seconds == heard.seconds
    for field in ("sample_rate_hz", "submitted_seconds", "submitted_rate_hz", "channels"):
        assert getattr(silent, field) == getattr(heard, field)


def test_a_clip_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip(np.ones(8, np.float32)).channels = 1  # type: ignore[misc]


def test_clips_compare_and_hash_by_identity() -> None:
    first, second = clip(np.ones(8, np.float32)), clip(np.ones(8, np.float32))
    assert first == first
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    "samples", [np.ones((8, 2)), np.ones(8), np.ones(0)], ids=["stereo", "float64", "empty"]
)
def test_a_clip_of_another_shape_is_our_bug(
    samples: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> None:
    dtype = np.float64 if samples.size == 8 else np.float32
    with pytest.raises(AssertionError):
        clip(samples.astype(dtype))
