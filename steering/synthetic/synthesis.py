"""What synthetic sounds are made of: noise, filters, oscillators, envelopes.

Signals are (S,) at 16 kHz, mono; each draws from the generator it is given, and nothing else.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
MIN_SECONDS = 1.8
MAX_SECONDS = 3.0
TOP_HZ = 7600.0  # partials above this would fold back
HOP_SAMPLES = 160  # clip lengths are whole hops, which also keeps the FFTs fast

Rng = np.random.Generator
Samples = NDArray[np.float32]
Signal = NDArray[np.float64]


def draw_length(rng: Rng) -> int:
    """A clip's length in samples, 1.8 to 3.0 s in whole hops of 10 ms."""
    hops_per_second = SAMPLE_RATE_HZ // HOP_SAMPLES
    low, high = round(MIN_SECONDS * hops_per_second), round(MAX_SECONDS * hops_per_second)
    return int(rng.integers(low, high + 1)) * HOP_SAMPLES


def peak_normalised(signal: Signal) -> Samples:
    """The signal as float32 with its largest magnitude at 1."""
    peak = float(np.max(np.abs(signal)))
    assert 0 < peak < np.inf, f"a sound must be finite and not silent, peak {peak}"
    return (signal / peak).astype(np.float32)


def filtered(signal: Signal, gain: Callable[[Signal], Signal]) -> Signal:
    """The signal with each frequency scaled by gain(frequencies in Hz), zero phase."""
    frequencies_hz = np.fft.rfftfreq(signal.size, 1 / SAMPLE_RATE_HZ).astype(np.float64)
    return np.fft.irfft(np.fft.rfft(signal) * gain(frequencies_hz), signal.size)


def noise_band(rng: Rng, samples: int, low_hz: float, high_hz: float) -> Signal:
    """Noise of unit deviation between two soft edges of 12 dB an octave."""

    def gain(f: Signal) -> Signal:
        return 1 / np.sqrt(1 + (low_hz / (f + 1e-3)) ** 4) / np.sqrt(1 + (f / high_hz) ** 4)

    band = filtered(rng.standard_normal(samples), gain)
    return band / (np.std(band) + 1e-12)


def _resonances(
    peaks: list[tuple[float, float, float]], floor: float = 0.0
) -> Callable[[Signal], Signal]:
    # A gain curve of resonances (centre Hz, width Hz, height) on a flat floor.
    def gain(f: Signal) -> Signal:
        curves = [h / np.sqrt(1 + ((f - c) / (w / 2)) ** 2) for c, w, h in peaks]
        total: Signal = floor + np.sum(curves, axis=0)
        return total

    return gain


def _tilt(rng: Rng, signal: Signal, low_db: float, high_db: float) -> Signal:
    # A random spectral slope in dB an octave around 1 kHz: another room, another microphone.
    slope_db = rng.uniform(low_db, high_db)
    return filtered(signal, lambda f: (np.maximum(f, 60.0) / 1000.0) ** (slope_db / 6.02))


def _seconds(samples: int) -> Signal:
    return np.arange(samples) / SAMPLE_RATE_HZ


def _phase(frequency_hz: Signal, start: float = 0.0) -> Signal:
    # Radians of an oscillator whose frequency moves.
    return start + 2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE_HZ


def harmonics(phase: Signal, levels: list[Signal] | list[float]) -> Signal:
    """The sum of levels[k] * sin((k + 1) * phase), by Horner's rule on one complex oscillator."""
    turn = np.exp(1j * phase)
    total = np.zeros_like(turn)
    for level in reversed(levels):
        total = (total + level) * turn
    out: Signal = total.imag
    return out


def ringing(frequencies_hz: Signal, levels: Signal, rates: Signal, samples: int) -> Signal:
    """The sum of level * sin(2 pi frequency t) * exp(-rate t), rates in 1/s; (S,).

    Partials too high for the sample rate are left out. Each exponential is the product of a coarse
    and a fine one, so the whole sum is one small matrix product.
    """
    turns = (2j * np.pi * frequencies_hz - rates) / SAMPLE_RATE_HZ
    block = 128
    coarse = np.exp(np.outer(np.arange(0, samples, block), turns))
    fine = np.exp(np.outer(turns, np.arange(block)))
    out: Signal = ((coarse * levels * (frequencies_hz < TOP_HZ)) @ fine).imag.ravel()
    return out[:samples]


def _slow(rng: Rng, samples: int, knots_hz: float) -> Signal:
    # A smooth random curve in [0, 1] with about knots_hz turns a second.
    knots = rng.uniform(0, 1, int(samples / SAMPLE_RATE_HZ * knots_hz) + 3)
    at = np.linspace(0, knots.size - 1.001, samples)
    left = at.astype(np.int64)
    mix = (1 - np.cos(np.pi * (at - left))) / 2
    return knots[left] * (1 - mix) + knots[left + 1] * mix


def faded(signal: Signal, attack_s: float, release_s: float) -> Signal:
    """The signal with raised-cosine edges of the given lengths."""
    out = signal.copy()
    for edge_s, backwards in ((attack_s, False), (release_s, True)):
        n = min(int(edge_s * SAMPLE_RATE_HZ), signal.size)
        ramp = (1 - np.cos(np.pi * np.arange(n) / max(n, 1))) / 2
        edge = slice(signal.size - n, None) if backwards else slice(0, n)
        out[edge] *= ramp[::-1] if backwards else ramp
    return out


def place(out: Signal, event: Signal, start: int) -> None:
    """Nothing; adds the event into `out` at `start`, cut at the end of the clip."""
    stop = min(start + event.size, out.size)
    if stop > start:
        out[start:stop] += event[: stop - start]


def _gate(samples: int, edges_s: list[tuple[float, float]], ramp_s: float) -> Signal:
    # 1 between each (start, stop) with short ramps, 0 elsewhere.
    out = np.zeros(samples)
    for start_s, stop_s in edges_s:
        length = int((stop_s - start_s) * SAMPLE_RATE_HZ)
        place(out, faded(np.ones(length), ramp_s, ramp_s), int(start_s * SAMPLE_RATE_HZ))
    return out
