"""Voices of birds."""

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
    harmonics,
    noise_band,
    peak_normalised,
    place,
    pulses,
    resonances,
    running_phase,
    seconds,
)


def chirps(rng: Rng) -> Event:
    """A songbird: chirps and trills between 2 and 6 kHz."""
    base_hz, usual = rng.uniform(2300, 5200), int(rng.integers(0, 3))

    def chirp() -> Signal:
        kind = usual if rng.random() < 0.75 else int(rng.integers(0, 3))
        n = drawn(rng, 0.06, 0.2) * (2 if kind == 2 else 1)
        t, sweep = np.linspace(0, 1, n), rng.uniform(0.2, 0.6)
        trill = rng.uniform(0.1, 0.25) * np.sin(2 * np.pi * rng.uniform(14, 26) * seconds(n))
        bend = (sweep * (t - 0.5), sweep * np.sin(np.pi * t), trill)[kind]
        bend = bend * rng.choice([-1.0, 1.0]) + rng.uniform(-0.25, 0.25)
        tone = harmonics(running_phase(np.clip(base_hz * 2**bend, 1800, 6800)), [1.0, 0.05])
        return faded(tone, 0.012, 0.03)

    return chirp


def rooster(rng: Rng, samples: int) -> Samples:
    """A crow of four syllables, the third the highest, the last long and falling."""
    length = min(drawn(rng, 0.9, 1.7), samples)
    pitch_hz = rng.uniform(480, 750)
    out = np.zeros(samples)
    first = int(rng.integers(0, samples - length + 1))
    parts = ((0.0, 0.11, 0.0), (0.15, 0.12, 0.2), (0.3, 0.2, 0.55), (0.52, 0.48, 0.4))
    for start, share, octave in parts:
        n = int(share * length)
        t = np.linspace(0, 1, n)
        fall = rng.uniform(0.5, 0.9) * t**2 if start > 0.5 else -0.2 * t
        voice = pulses(running_phase(pitch_hz * 2 ** (octave - fall)), 3.5)
        rough = voice.std() * 0.2 * noise_band(rng, n, 1000, 5000)
        peaks = [(1400.0, 500.0, 1.0), (2700.0, 700.0, 0.7)]
        crow = faded(filtered(voice + rough, resonances(peaks, floor=0.1)), 0.02, 0.04)
        place(out, crow, first + int(start * length))
    return peak_normalised(out)


def quacks(rng: Rng) -> Event:
    """A duck: short nasal buzzes, bright at 1 to 2.5 kHz."""
    pitch_hz, size = rng.uniform(170, 270), rng.uniform(0.85, 1.15)
    peaks = [(1250 * size, 250.0, 1.0), (2300 * size, 400.0, 0.8), (450 * size, 300.0, 0.1)]

    def quack() -> Signal:
        n = drawn(rng, 0.11, 0.2)
        t = np.linspace(0, 1, n)
        voice = pulses(running_phase(pitch_hz * 2 ** (-0.3 * t) * rng.uniform(0.95, 1.05)), 20.0)
        return faded(filtered(voice, resonances(peaks)), 0.015, 0.04)

    return quack


def caws(rng: Rng) -> Event:
    """A crow: hoarse cries, half voice and half noise."""
    pitch_hz, size = rng.uniform(380, 560), rng.uniform(0.85, 1.15)
    peaks = [(1500 * size, 500.0, 1.0), (2500 * size, 600.0, 0.5), (3600 * size, 900.0, 0.3)]

    def caw() -> Signal:
        n = drawn(rng, 0.25, 0.42)
        t = np.linspace(0, 1, n)
        arch = 0.25 * np.sin(np.pi * t**0.7) - 0.25 * t
        jitter = np.exp(0.15 * noise_band(rng, n, 20, 90))
        voice = pulses(running_phase(pitch_hz * 2**arch * jitter), 5.0)
        voice = voice / voice.std() + noise_band(rng, n, 900, 4500)
        return faded(filtered(voice, resonances(peaks)), 0.03, 0.12)

    return caw


def hoots(rng: Rng) -> Event:
    """An owl: soft pure tones near 350 Hz."""
    pitch_hz, breath = rng.uniform(290, 460), rng.uniform(0.01, 0.04)

    def hoot() -> Signal:
        n = drawn(rng, 0.15, 0.45)
        t = np.linspace(0, 1, n)
        bend = 0.1 * np.sin(np.pi * t) - rng.uniform(0.0, 0.1) * t
        tone = harmonics(running_phase(pitch_hz * 2**bend), [1.0, 0.06, 0.02])
        return faded(tone + breath * noise_band(rng, n, 300, 1200), 0.06, 0.08)

    return hoot


def pecks(rng: Rng) -> Event:
    """A woodpecker: a roll of hard wooden knocks, fifteen to twenty-two a second."""
    rate_hz, centres_hz = rng.uniform(15, 22), rng.uniform(900, 2200, 2)

    def roll() -> Signal:
        knocks = int(rng.integers(6, 11))
        out = np.zeros(int((knocks / rate_hz + 0.02) * SAMPLE_RATE_HZ))
        t = seconds(int(0.045 * SAMPLE_RATE_HZ))
        for i in range(knocks):
            rings = sum(np.sin(2 * np.pi * f * t) * rng.uniform(0.5, 1) for f in centres_hz)
            knock = rings * np.exp(-t / 0.006) + rng.standard_normal(t.size) * np.exp(-t / 0.002)
            place(out, knock * (1 - 0.5 * i / knocks), int(i / rate_hz * SAMPLE_RATE_HZ))
        return out

    return roll
