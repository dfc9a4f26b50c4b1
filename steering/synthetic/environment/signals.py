"""Signals: bells, horns, sirens and whatever beeps."""

import numpy as np

from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    Event,
    Rng,
    Samples,
    Signal,
    drawn,
    faded,
    filtered,
    gate,
    harmonics,
    noise_band,
    peak_normalised,
    pulses,
    resonances,
    ringing,
    running_phase,
    seconds,
    slow,
    tilt,
)


def siren(rng: Rng, samples: int) -> Samples:
    """A loud tone whose pitch sweeps slowly up and down."""
    turns = rng.uniform(0.6, 1.4) * seconds(samples) + rng.uniform()
    rise = rng.uniform(0.3, 0.7)  # share of a turn that rises
    part = turns % 1.0
    sweep = np.where(part < rise, part / rise, (1 - part) / (1 - rise))
    if rng.random() < 0.5:
        sweep = (1 - np.cos(np.pi * sweep)) / 2
    pitch_hz = rng.uniform(500, 900) * 2 ** (rng.uniform(0.7, 1.3) * sweep)
    fall = rng.uniform(0.7, 2.0)
    levels = [float(k) ** -fall for k in range(1, int(rng.integers(3, 6)))]
    tone = harmonics(running_phase(pitch_hz), levels)
    return peak_normalised(tilt(rng, tone * (0.85 + 0.15 * slow(rng, samples, 3)), -2, 2))


def alarm(rng: Rng, samples: int) -> Samples:
    """Fast on and off beeps at one fixed pitch."""
    period_s = 1 / rng.uniform(4.0, 8.0)
    on_s = period_s * rng.uniform(0.4, 0.65)
    in_group = int(rng.integers(3, 6)) if rng.random() < 0.4 else 1_000
    at_s, count, edges_s = rng.uniform(0, 0.1), 0, []
    while at_s < samples / SAMPLE_RATE_HZ:
        edges_s.append((at_s, at_s + on_s))
        count += 1
        at_s += period_s * (1 if count % in_group else 2.0)
    overtones = rng.uniform(0, 0.7, 3) * np.array([0.4, 1.0, 0.3])
    levels = [1.0, *map(float, overtones)][: 2 + int(rng.integers(0, 2))]
    tone = harmonics(running_phase(np.full(samples, rng.uniform(1500, 3300))), levels)
    return peak_normalised(tone * gate(samples, edges_s, rng.uniform(0.002, 0.008)))


def phone(rng: Rng, samples: int) -> Samples:
    """A rapid warble of two tones, in bursts with pauses."""
    low_hz = rng.uniform(600, 1400)
    high_hz = low_hz * rng.uniform(1.18, 1.5)
    square = np.sin(2 * np.pi * rng.uniform(11, 20) * seconds(samples)) > 0
    pitch_hz = np.where(square, high_hz, low_hz)
    tone = harmonics(running_phase(pitch_hz), [1.0, *rng.uniform(0, 0.35, 2)])
    on_s, off_s = rng.uniform(0.45, 0.9), rng.uniform(0.25, 0.5)
    starts_s = np.arange(rng.uniform(0, 0.15), samples / SAMPLE_RATE_HZ, on_s + off_s)
    return peak_normalised(tone * gate(samples, [(s, s + on_s) for s in starts_s], 0.01))


def strikes(rng: Rng) -> Event:
    """A bell: inharmonic partials with a sharp knock and a long decay."""
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.52, 2.66, 3.01, 4.1, 5.4])
    partials_hz = rng.uniform(350, 1100) * ratios * (1 + rng.normal(0, 0.012, ratios.size))
    levels = rng.uniform(0.3, 1, ratios.size) * ratios**-0.4 * rng.choice([-1.0, 1.0], ratios.size)
    rates = (1 + 0.5 * ratios) / rng.uniform(0.5, 1.2)  # of decay, a second

    def strike() -> Signal:
        n = drawn(rng, 0.5, 0.9)
        ring = ringing(partials_hz, levels, rates, n)
        ring[:64] *= np.linspace(0, 1, 64)
        knock = rng.standard_normal(n) * np.exp(-seconds(n) / 0.004) * rng.uniform(0.2, 1.0)
        return faded(ring + knock, 0.0, 0.1)

    return strike


def gong(rng: Rng, samples: int) -> Samples:
    """One blow on a great disc: a dense low shimmer that blooms late and stays."""
    count = 24
    partials_hz = rng.uniform(75, 130) * np.sort(rng.uniform(1, 12, count))
    levels = rng.uniform(0.2, 1, count) * (partials_hz / 100) ** -0.6
    ring = ringing(partials_hz, levels, rng.uniform(0.4, 1.6, count), samples)
    t = seconds(samples)
    shimmer = noise_band(rng, samples, 900, 3000) * (1 - np.exp(-t / 0.08)) * np.exp(-t / 0.5)
    out = ring / ring.std() * (1 - np.exp(-t / 0.015)) + rng.uniform(0.1, 0.3) * shimmer
    first = drawn(rng, 0.0, 0.15)
    return peak_normalised(faded(np.concatenate([np.zeros(first), out])[:samples], 0, 0.02))


def honks(rng: Rng) -> Event:
    """A car horn: two rich tones a third apart, held and cut."""
    low_hz, ratio = rng.uniform(300, 430), rng.choice([1.19, 1.26])
    fall, usual_s = rng.uniform(0.4, 0.8), rng.uniform(0.16, 0.42)
    size = rng.uniform(0.8, 1.2)

    def honk() -> Signal:
        n = drawn(rng, usual_s * 0.9, usual_s * 1.1)
        levels = [float(k) ** -fall for k in range(1, 13)]
        tones = [harmonics(running_phase(np.full(n, low_hz * r)), levels) for r in (1.0, ratio)]
        body = filtered(tones[0] + tones[1], resonances([(1800 * size, 1800.0, 1.0)], 0.25))
        return faded(body, 0.02, 0.03)

    return honk


def beeps(rng: Rng) -> Event:
    """A beep: one pure tone, held, with a long pause after it."""
    pitch_hz, usual_s = rng.uniform(700, 1500), rng.uniform(0.12, 0.3)
    second = rng.uniform(0.0, 0.1)

    def beep() -> Signal:
        n = drawn(rng, usual_s * 0.98, usual_s * 1.02)
        return faded(harmonics(running_phase(np.full(n, pitch_hz)), [1.0, second]), 0.006, 0.006)

    return beep


def dings(rng: Rng) -> Event:
    """A doorbell: ding and, a third lower, dong."""
    high_hz, fall = rng.uniform(620, 1000), rng.choice([0.794, 0.749, 0.841])
    split_s = rng.uniform(0.18, 0.24)

    def ding() -> Signal:
        n, split = drawn(rng, 0.45, 0.5), int(split_s * SAMPLE_RATE_HZ)
        out = np.zeros(n)
        for start, pitch_hz in ((0, high_hz), (split, high_hz * fall)):
            partials_hz = pitch_hz * np.array([1.0, 2.0, 3.02])
            tone = ringing(partials_hz, np.array([1, 0.3, 0.15]), np.array([4.0, 7, 12]), n - start)
            out[start:] += faded(tone, 0.004, 0.08)
        return out

    return ding


def buzzes(rng: Rng) -> Event:
    """A buzzer: a harsh low square tone, on and off."""
    pitch_hz, usual_s = rng.uniform(95, 160), rng.uniform(0.25, 0.5)

    def buzz() -> Signal:
        n = drawn(rng, usual_s * 0.95, usual_s * 1.05)
        phase = running_phase(np.full(n, pitch_hz))
        square = np.tanh(8 * np.sin(phase)) + 0.5 * pulses(phase, 30.0)
        peaks = [(rng.uniform(700, 800), 500.0, 1.0), (2600.0, 1500.0, 0.9)]
        return faded(filtered(square, resonances(peaks, 0.25)), 0.004, 0.008)

    return buzz


def blasts(rng: Rng) -> Event:
    """A referee's whistle: a piercing tone that the pea shakes some thirty times a second."""
    pitch_hz, pea_hz = rng.uniform(2300, 3300), rng.uniform(28, 42)

    def blast() -> Signal:
        n = drawn(rng, 0.25, 0.5)
        shake = np.sin(2 * np.pi * pea_hz * seconds(n) + rng.uniform(0, 6))
        tone = harmonics(running_phase(pitch_hz * (1 + 0.025 * shake)), [1.0, 0.2])
        air = 0.15 * noise_band(rng, n, 2000, 6000)
        return faded((tone + air) * (0.65 + 0.35 * shake), 0.02, 0.03)

    return blast
