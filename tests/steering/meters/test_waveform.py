from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.meters.waveform import METERS, read_meters

RATE_HZ = 16_000


def tone(hertz: float, seconds: float = 1.0, amplitude: float = 0.5) -> NDArray[np.float32]:
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float = 1.0) -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))
    return (0.1 * drawn).astype(np.float32)


def read(samples: NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(METERS, read_meters(samples, RATE_HZ).tolist(), strict=True))


def test_the_meters_of_a_tone() -> None:
    meters = read(tone(1000, 1.5))
    assert meters["peak_dbfs"] == pytest.approx(-6.02, abs=0.01)
    assert meters["rms_dbfs"] == pytest.approx(-9.03, abs=0.01)
    assert meters["seconds"] == 1.5
    assert meters["centroid_hz"] == pytest.approx(1000, abs=5)
    assert meters["bandwidth_hz"] == pytest.approx(1000, abs=35)
    assert meters["snr_db"] == pytest.approx(0, abs=0.1)


def test_the_bandwidth_of_white_noise_is_95_percent_of_it() -> None:
    meters = read(noise(3.0))
    assert meters["bandwidth_hz"] == pytest.approx(0.95 * RATE_HZ / 2, rel=0.01)
    assert meters["centroid_hz"] == pytest.approx(RATE_HZ / 4, rel=0.02)


def test_a_sound_in_noise_stands_out_by_its_snr() -> None:
    samples = noise(2.0)
    samples[: RATE_HZ // 2] += 10 * noise(0.5)
    assert read(samples)["snr_db"] == pytest.approx(20, abs=2)


def test_the_gain_changes_the_levels_only() -> None:
    loud, soft = read(noise()), read((noise() / 10).astype(np.float32))
    for name in METERS:
        expected = loud[name] - 20 * name.endswith("_dbfs")
        assert soft[name] == pytest.approx(expected, abs=0.01, rel=1e-4)


@pytest.mark.parametrize("count", [1, 100, RATE_HZ])
def test_silence_and_clips_shorter_than_a_frame_are_finite(count: int) -> None:
    for samples in (np.zeros(count, np.float32), noise()[:count]):
        assert np.isfinite(read_meters(samples, RATE_HZ)).all()
    assert read(np.zeros(count, np.float32))["peak_dbfs"] == -120
