"""The toolbox that the synthetic sounds, instruments and voices are made with.

A source draws one individual (this dog) and gives a maker of its events (its barks). Events laid
one after another fill a clip of any length; a fixed number of them, apart, makes a counted clip.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
TOP_HZ = 7600.0  # partials above this would fold back

Rng = np.random.Generator
Samples = NDArray[np.float32]
Signal = NDArray[np.float64]
Event = Callable[[], Signal]  # one more event of the same source; (S,), any level
Source = Callable[[Rng], Event]
Sound = Callable[[Rng, int], Samples]  # (rng, samples) -> (samples,), peak 1
Counted = Callable[[Rng, int], Samples]  # (rng, count) -> (S,) with that many events, peak 1

COUNTED_SECONDS = 2.6  # the longest counted clip
MIN_GAP_S = 0.16  # of silence between two counted events


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


def resonances(
    peaks: list[tuple[float, float, float]], floor: float = 0.0
) -> Callable[[Signal], Signal]:
    """A gain curve of resonances (centre Hz, width Hz, height) on a flat floor."""

    def gain(f: Signal) -> Signal:
        curves = [h / np.sqrt(1 + ((f - c) / (w / 2)) ** 2) for c, w, h in peaks]
        total: Signal = floor + np.sum(curves, axis=0)
        return total

    return gain


def tilt(rng: Rng, signal: Signal, low_db: float, high_db: float) -> Signal:
    """The signal under a random slope in dB an octave around 1 kHz: another room or microphone."""
    slope_db = rng.uniform(low_db, high_db)
    return filtered(signal, lambda f: (np.maximum(f, 60.0) / 1000.0) ** (slope_db / 6.02))


def seconds(samples: int) -> Signal:
    """The time of each sample in seconds, from 0; (S,)."""
    return np.arange(samples) / SAMPLE_RATE_HZ


def running_phase(frequency_hz: Signal, start: float = 0.0) -> Signal:
    """Radians of an oscillator whose frequency moves."""
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


def slow(rng: Rng, samples: int, knots_hz: float) -> Signal:
    """A smooth random curve in [0, 1] with about knots_hz turns a second; (S,)."""
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


def gate(samples: int, edges_s: list[tuple[float, float]], ramp_s: float) -> Signal:
    """1 between each (start, stop) in seconds with short ramps, 0 elsewhere; (S,)."""
    out = np.zeros(samples)
    for start_s, stop_s in edges_s:
        length = int((stop_s - start_s) * SAMPLE_RATE_HZ)
        place(out, faded(np.ones(length), ramp_s, ramp_s), int(start_s * SAMPLE_RATE_HZ))
    return out


def levelled(signal: Signal) -> Signal:
    """The signal with its largest magnitude at 1; silence stays silent."""
    return signal / (float(np.max(np.abs(signal))) + 1e-12)


def pulses(phase: Signal, sharpness: float) -> Signal:
    """One soft pulse for each turn of the phase, without offset: a voice's or a motor's source."""
    train: Signal = np.exp(sharpness * (np.cos(phase) - 1))
    out: Signal = train - train.mean()
    return out


def sparks(rng: Rng, samples: int, rate_hz: float) -> Signal:
    """Single impulses at random places, rate_hz a second, of exponential level; (S,)."""
    out = np.zeros(samples)
    at = rng.integers(0, samples, max(2, rng.poisson(rate_hz * samples / SAMPLE_RATE_HZ)))
    out[at] = rng.exponential(1.0, at.size) * rng.choice([-1.0, 1.0], at.size)
    return out


def drawn(rng: Rng, low_s: float, high_s: float) -> int:
    """A number of samples between two durations in seconds."""
    return int(rng.uniform(low_s, high_s) * SAMPLE_RATE_HZ)


def in_turn(source: Source, low_s: float, high_s: float, jitter: float = 0.15) -> Sound:
    """A sound of one source's events, one after another to the end of the clip.

    Args:
        source: Draws an individual and gives its events.
        low_s: Shortest gap between two events, in seconds.
        high_s: Longest gap; a clip draws one and keeps it up to the jitter.
        jitter: Share of the gap by which it varies inside a clip.
    """

    def sound(rng: Rng, samples: int) -> Samples:
        event, gap_s = source(rng), rng.uniform(low_s, high_s)
        out, at = np.zeros(samples), drawn(rng, 0.0, 0.12)
        while at < samples - 0.08 * SAMPLE_RATE_HZ:
            cry = levelled(event()) * rng.uniform(0.7, 1.0)
            place(out, cry, at)
            at += cry.size + int(gap_s * SAMPLE_RATE_HZ * rng.uniform(1 - jitter, 1 + jitter))
        return peak_normalised(faded(out, 0.0, 0.01))

    return sound


def counted(source: Source) -> Counted:
    """Clips of one source with an exact number of events, silence between them."""

    def sound(rng: Rng, count: int) -> Samples:
        event = source(rng)
        longest = int((COUNTED_SECONDS - 0.1 - MIN_GAP_S * (count - 1)) / count * SAMPLE_RATE_HZ)
        events = [event()[: min(longest, int(0.8 * SAMPLE_RATE_HZ))] for _ in range(count)]
        events = [faded(levelled(part), 0.0, 0.03) * rng.uniform(0.7, 1.0) for part in events]
        spare_s = COUNTED_SECONDS - 0.1 - sum(part.size for part in events) / SAMPLE_RATE_HZ
        most_s = min(0.45, spare_s / max(count - 1, 1))
        pieces = [np.zeros(drawn(rng, 0.0, 0.05))]
        for part in events:
            pieces += [part, np.zeros(drawn(rng, MIN_GAP_S, max(MIN_GAP_S, most_s)))]
        pieces[-1] = np.zeros(drawn(rng, 0.0, 0.05))
        short = int(0.3 * SAMPLE_RATE_HZ) - sum(piece.size for piece in pieces)
        return peak_normalised(np.concatenate([*pieces, np.zeros(max(short, 0))]))

    return sound


def noise(rng: Rng, samples: int) -> Samples:
    """Steady hiss between white and brown, for backgrounds and for clips of noise alone."""
    return peak_normalised(tilt(rng, rng.standard_normal(samples), -6.5, 0.5))
