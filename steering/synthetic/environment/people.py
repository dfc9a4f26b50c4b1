"""What people's voices do without words."""

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
    noise_band,
    peak_normalised,
    place,
    pulses,
    resonances,
    running_phase,
    slow,
)


def coughs(rng: Rng) -> Event:
    """A cough: a burst of throat noise that opens hard and ends in a voiced breath."""
    size, pitch_hz = rng.uniform(0.8, 1.25), rng.uniform(110, 230)
    peaks = [(650 * size, 400.0, 1.0), (1500 * size, 500.0, 0.6), (2800 * size, 900.0, 0.3)]

    def cough() -> Signal:
        n = drawn(rng, 0.2, 0.32)
        t = np.linspace(0, 1, n)
        voice = pulses(running_phase(pitch_hz * 2 ** (-0.6 * t)), 8.0)
        air = noise_band(rng, n, 300, 5000) * np.exp(-t / 0.18)
        tail = voice / voice.std() * np.clip(3 * t - 0.6, 0, 1) * 0.3
        return faded(filtered(air + tail, resonances(peaks, 0.05)), 0.004, 0.1)

    return cough


def sneeze(rng: Rng, samples: int) -> Samples:
    """A voice drawn in and rising, then an explosion of bright noise."""
    length = min(drawn(rng, 0.6, 0.9), samples)
    n = int(length * rng.uniform(0.35, 0.5))
    t = np.linspace(0, 1, n)
    voice = pulses(running_phase(rng.uniform(170, 320) * 2 ** (0.5 * t)), 7.0)
    ah = filtered(voice, resonances([(800.0, 250.0, 1.0), (1300.0, 300.0, 0.6)]))
    burst = noise_band(rng, length - n, 1500, 7500)
    burst *= np.exp(-np.linspace(0, 1, burst.size) / rng.uniform(0.2, 0.35))
    out = np.zeros(samples)
    first = int(rng.integers(0, samples - length + 1))
    place(out, faded(ah / np.abs(ah).max() * t**1.5 * 0.5, 0.05, 0.02), first)
    place(out, faded(burst / 4, 0.01, 0.1), first + n)
    return peak_normalised(out)


def laughs(rng: Rng) -> Event:
    """Laughter: one voiced ha with a breath before it."""
    size, pitch_hz = rng.uniform(0.85, 1.2), [rng.uniform(180, 380)]
    peaks = [(750 * size, 180.0, 1.0), (1250 * size, 220.0, 0.7), (2600 * size, 400.0, 0.3)]

    def laugh() -> Signal:
        n = drawn(rng, 0.09, 0.13)
        t = np.linspace(0, 1, n)
        pitch_hz[0] *= rng.uniform(0.93, 1.03)
        voice = pulses(running_phase(max(pitch_hz[0], 130.0) * 2 ** (-0.2 * t)), 8.0)
        breath = noise_band(rng, n, 800, 3500) * np.exp(-t / 0.2) * 0.5
        return faded(filtered(voice / voice.std() + breath, resonances(peaks)), 0.03, 0.04)

    return laugh


def snoring(rng: Rng, samples: int) -> Samples:
    """Breath in with a rattle of the palate, breath out as a sigh."""
    half_s = rng.uniform(0.45, 0.7)
    rate_hz, centre_hz = rng.uniform(22, 36), rng.uniform(200, 380)
    out, at, inward = np.zeros(samples), 0, True
    while at < samples:
        n = int(half_s * SAMPLE_RATE_HZ * rng.uniform(0.9, 1.1))
        air = noise_band(rng, n, 120, 1500)
        if inward:
            flutter = pulses(running_phase(rate_hz * (0.8 + 0.4 * slow(rng, n, 4))), 10.0)
            air *= flutter - flutter.min()
            air = filtered(air, resonances([(centre_hz, 150.0, 1.0), (1100.0, 400.0, 0.3)]))
            breath = faded(air / air.std(), 0.1, 0.1)
        else:
            breath = 0.25 * faded(noise_band(rng, n, 500, 1800), 0.15, 0.25)
        place(out, breath, at)
        at, inward = at + n, not inward
    return peak_normalised(faded(out, 0.0, 0.02))


def baby(rng: Rng, samples: int) -> Samples:
    """Crying: wails that rise fast and sink slowly, a gasp between them."""
    pitch_hz, out, at = rng.uniform(380, 520), np.zeros(samples), drawn(rng, 0.0, 0.06)
    while at < samples - 0.1 * SAMPLE_RATE_HZ:
        n = drawn(rng, 0.5, 0.85)
        t = np.linspace(0, 1, n)
        arch = 0.4 * np.clip(t / 0.2, 0, 1) - rng.uniform(0.3, 0.5) * np.clip((t - 0.3) / 0.7, 0, 1)
        shake = np.exp(0.02 * noise_band(rng, n, 15, 60))
        voice = pulses(running_phase(pitch_hz * 2**arch * shake), 6.0)
        peaks = [(1150.0, 350.0, 1.0), (3300.0, 700.0, 0.7), (550.0, 300.0, 0.4)]
        place(out, faded(filtered(voice, resonances(peaks, 0.05)), 0.05, 0.12), at)
        gasp_n = drawn(rng, 0.12, 0.2)
        place(out, 0.05 * faded(noise_band(rng, gasp_n, 1500, 4500), 0.08, 0.03), at + n)
        at += n + gasp_n
    return peak_normalised(faded(out, 0.0, 0.02))
