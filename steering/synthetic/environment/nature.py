"""Weather, water and fire."""

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
    resonances,
    running_phase,
    seconds,
    slow,
    sparks,
    tilt,
)


def rain(rng: Rng, samples: int) -> Samples:
    """Dense bright hiss with droplets."""
    hiss = noise_band(rng, samples, rng.uniform(1200, 3500), 9000)
    peaks = [(rng.uniform(1500, 6500), rng.uniform(300, 900), 1.0) for _ in range(4)]
    drops = filtered(sparks(rng, samples, rng.uniform(60, 400)), resonances(peaks))
    drops *= rng.uniform(0.5, 1.6) / (np.std(drops) + 1e-9)
    return peak_normalised(tilt(rng, hiss * (0.8 + 0.2 * slow(rng, samples, 2)) + drops, -1, 2))


def wind(rng: Rng, samples: int) -> Samples:
    """Low noise that howls: narrow bands swelling and sinking slowly."""
    out = rng.uniform(0.1, 0.3) * noise_band(rng, samples, 30, rng.uniform(200, 500))
    howl_hz = rng.uniform(220, 500)
    pitch = 3.999 * slow(rng, samples, rng.uniform(0.8, 2.0))  # which of five bands sounds
    for i in range(5):
        centre_hz = howl_hz * 2 ** (i * rng.uniform(0.2, 0.3))
        width_hz = centre_hz * rng.uniform(0.08, 0.25)
        band = filtered(rng.standard_normal(samples), resonances([(centre_hz, width_hz, 1.0)]))
        out += band / np.std(band) * np.maximum(0, 1 - np.abs(pitch - i)) ** 0.7
    gust = 0.25 + 0.75 * slow(rng, samples, rng.uniform(0.8, 2.5))
    return peak_normalised(filtered(out * gust, lambda f: 1 / (1 + (f / 1100) ** 4)))


def thunder(rng: Rng, samples: int) -> Samples:
    """A crack, then a deep rumble that rolls and dies away."""
    t, first = seconds(samples), drawn(rng, 0.0, 0.15)
    late = np.maximum(0, t - first / SAMPLE_RATE_HZ)
    shape = np.exp(-late / rng.uniform(0.4, 1.0)) * np.clip(late / 0.02, 0, 1)
    rolls = 0.25 + 0.75 * slow(rng, samples, rng.uniform(5, 9)) ** 2
    out = noise_band(rng, samples, 25, rng.uniform(90, 180)) * rolls * shape
    crack = noise_band(rng, samples, 200, rng.uniform(1500, 3500)) * np.clip(late / 0.003, 0, 1)
    return peak_normalised(out + rng.uniform(0.5, 1.2) * crack * np.exp(-late / 0.06))


def waves(rng: Rng, samples: int) -> Samples:
    """Surf: noise that swells, brightens as it breaks and draws back."""
    turn = seconds(samples) / rng.uniform(0.9, 1.8) + rng.uniform(0.0, 0.5)
    part, rise = turn % 1.0, rng.uniform(0.45, 0.65)
    swell = np.where(part < rise, part / rise, np.exp(-(part - rise) / 0.15)) ** 1.5
    low = noise_band(rng, samples, 150, rng.uniform(500, 900))
    foam = noise_band(rng, samples, 1200, rng.uniform(4500, 7000))
    return peak_normalised(low * (0.08 + 0.5 * swell) + foam * swell**2.5)


def fire(rng: Rng, samples: int) -> Samples:
    """Dry crackles at random over a soft low roar."""
    snaps = sparks(rng, samples, rng.uniform(14, 40))
    peaks = [(rng.uniform(1500, 5500), rng.uniform(900, 1800), 1.0) for _ in range(3)]
    crackle = filtered(snaps, resonances(peaks))
    roar = noise_band(rng, samples, 60, rng.uniform(180, 350)) * (0.6 + 0.4 * slow(rng, samples, 8))
    return peak_normalised(crackle / np.abs(crackle).max() + rng.uniform(0.02, 0.06) * roar)


def _bubble(rng: Rng, pitch_hz: float, decay_s: float) -> Signal:
    t = seconds(int(5 * decay_s * SAMPLE_RATE_HZ))
    rising = running_phase(pitch_hz * (1 + rng.uniform(0.5, 2.0) * t / decay_s * 0.15))
    return faded(np.sin(rising) * np.exp(-t / decay_s), 0.002, 0.01)


def stream(rng: Rng, samples: int) -> Samples:
    """Running water: many small bubbles of rising pitch over a murmur."""
    out = 0.12 * noise_band(rng, samples, 400, rng.uniform(1200, 2200))
    centre_hz, rate_hz = rng.uniform(600, 1100), rng.uniform(35, 70)
    for _ in range(int(rate_hz * samples / SAMPLE_RATE_HZ)):
        pitch_hz = centre_hz * 2 ** rng.normal(0, 0.5)
        bubble = _bubble(rng, pitch_hz, rng.uniform(0.008, 0.02)) * rng.exponential(0.5)
        place(out, bubble, int(rng.integers(0, samples)))
    return peak_normalised(out)


def drops(rng: Rng) -> Event:
    """A drip: single drops, a click and a ringing plop of rising pitch."""
    base_hz = rng.uniform(700, 1700)

    def drop() -> Signal:
        plop = _bubble(rng, base_hz * 2 ** rng.uniform(-0.2, 0.2), rng.uniform(0.018, 0.035))
        plop[:48] += 0.4 * rng.standard_normal(48) * np.linspace(1, 0, 48)
        return plop

    return drop
