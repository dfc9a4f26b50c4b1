"""What six simple meters show of a waveform: a control for whatever claims to know more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

METERS: Mapping[str, str] = {  # by name, in the order of `read_meters`
    "peak_dbfs": "peak level",
    "rms_dbfs": "mean level",
    "seconds": "length",
    "centroid_hz": "spectral centroid",
    "snr_db": "estimated signal-to-noise ratio",
    "bandwidth_hz": "bandwidth",
}
_FRAME_SECONDS = 0.032  # and half of it from one frame to the next
_LEAST_POWER = 1e-12  # -120 dBFS: digital silence stays finite
_BANDWIDTH_SHARE = 0.95
_LOUD_QUIET_PERCENT = (95, 10)


def read_meters(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """Read the meters of a waveform.

    Args:
        samples: (S,) mono, nominally in [-1, 1].
        rate_hz: samples a second.

    Returns:
        (6,) in the order of METERS: peak and RMS in dBFS; length in seconds; centroid of the mean
        power spectrum in Hz; power of loud over quiet frames (95th over 10th percentile) in dB, an
        estimate of the SNR; frequency below which 95 % of the power lie, in Hz.
    """
    wave = samples.astype(np.float64)
    frames = _frames(wave, rate_hz)
    loud, quiet = np.percentile((frames**2).mean(1), _LOUD_QUIET_PERCENT)
    spectrum = (np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]))) ** 2).mean(0)
    hertz = np.fft.rfftfreq(frames.shape[1], 1 / rate_hz)
    total = max(float(spectrum.sum()), _LEAST_POWER)
    below = np.searchsorted(spectrum.cumsum(), _BANDWIDTH_SHARE * spectrum.sum())
    values = (
        _decibels(float(np.abs(wave).max()) ** 2),
        _decibels(float((wave**2).mean())),
        len(wave) / rate_hz,
        float((hertz * spectrum).sum()) / total,
        _decibels(loud) - _decibels(quiet),
        hertz[min(int(below), len(hertz) - 1)],
    )
    return np.array(values, np.float32)


def _frames(wave: NDArray[np.float64], rate_hz: int) -> NDArray[np.float64]:
    """(N, n) frames that overlap by half; a wave shorter than one is filled up with zeros."""
    length = round(_FRAME_SECONDS * rate_hz)
    filled = np.pad(wave, (0, max(0, length - len(wave))))
    return np.asarray(sliding_window_view(filled, length)[:: length // 2])


def _decibels(power: float) -> float:
    return 10 * float(np.log10(max(power, _LEAST_POWER)))
