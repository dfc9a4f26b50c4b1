"""Voices of four-legged animals, and what crawls and buzzes."""

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
    slow,
    tilt,
)


def barks(rng: Rng) -> Event:
    """A dog: short rough barks of falling pitch."""
    pitch_hz, size = rng.uniform(180, 520), rng.uniform(0.8, 1.3)
    peaks = [(650 * size, 250.0, 1.0), (1300 * size, 350.0, 0.7), (2600 * size, 700.0, 0.3)]

    def bark() -> Signal:
        n = drawn(rng, 0.09, 0.22)
        t = np.linspace(0, 1, n)
        glide = 2 ** (0.35 * np.sin(np.pi * t**0.6) - rng.uniform(0.3, 0.8) * t)
        voice = pulses(running_phase(pitch_hz * rng.uniform(0.92, 1.08) * glide), 6.0)
        rough = noise_band(rng, n, 300, 4000) * rng.uniform(0.1, 0.35) * voice.std() * 2
        body = filtered(voice + rough, resonances(peaks, floor=0.03))
        return faded(body, 0.012, 0.07) * np.exp(-1.5 * t)

    return bark


def meows(rng: Rng) -> Event:
    """A cat: a clear pitch that rises and sinks while the mouth opens from ee to ow."""
    pitch_hz, size = rng.uniform(420, 700), rng.uniform(0.9, 1.2)

    def meow() -> Signal:
        n = drawn(rng, 0.38, 0.6)
        t = np.linspace(0, 1, n)
        arch = rng.uniform(0.3, 0.6) * np.sin(np.pi * t ** rng.uniform(0.6, 0.9)) - 0.25 * t
        voice = pulses(running_phase(pitch_hz * 2**arch), 2.5)
        narrow = filtered(voice, resonances([(2500 * size, 500.0, 1.0), (600 * size, 300.0, 0.4)]))
        wide = filtered(voice, resonances([(1000 * size, 400.0, 1.0), (1700 * size, 400.0, 0.5)]))
        opened = np.clip(1.6 * t - 0.2, 0, 1)
        return faded(narrow * (1 - opened) * 1.5 + wide * opened, 0.06, 0.18)

    return meow


def cow(rng: Rng, samples: int) -> Samples:
    """One long low moo whose mouth opens and closes."""
    length = min(drawn(rng, 0.9, 2.0), samples - drawn(rng, 0.02, 0.1))
    t = np.linspace(0, 1, length)
    arch = np.sin(np.pi * t ** rng.uniform(0.6, 1.2)) - rng.uniform(0, 0.4) * t
    pitch_hz = rng.uniform(85, 150) * 2 ** (rng.uniform(0.15, 0.5) * arch)
    voice = pulses(running_phase(pitch_hz * (1 + 0.01 * (slow(rng, length, 20) - 0.5))), 8.0)
    size = rng.uniform(0.85, 1.2)
    shut = filtered(voice, resonances([(260 * size, 110.0, 1.0), (850 * size, 200.0, 0.1)]))
    wide = [(560 * size, 160.0, 1.0), (1050 * size, 220.0, 0.5), (2300 * size, 400.0, 0.15)]
    mouth = np.clip(np.sin(np.pi * t ** rng.uniform(0.6, 1.6)) * 1.3, 0, 1)
    moo = shut / shut.std() * (1 - mouth) + filtered(voice, resonances(wide)) / shut.std() * mouth
    moo += rng.uniform(0.01, 0.06) * noise_band(rng, length, 200, 2500) * moo.std()
    out = np.zeros(samples)
    place(out, faded(moo, 0.1, 0.2), int(rng.integers(0, samples - length + 1)))
    return peak_normalised(tilt(rng, out, -1, 2))


def bleats(rng: Rng) -> Event:
    """A sheep: a nasal voice that trembles strongly, six to ten times a second."""
    pitch_hz, size, tremble_hz = (
        rng.uniform(190, 340),
        rng.uniform(0.85, 1.2),
        rng.uniform(7.5, 11.0),
    )
    peaks = [(750 * size, 200.0, 1.0), (1700 * size, 300.0, 0.8), (2900 * size, 500.0, 0.4)]

    def bleat() -> Signal:
        n = drawn(rng, 0.42, 0.62)
        t = seconds(n)
        shake = np.sin(2 * np.pi * tremble_hz * rng.uniform(0.95, 1.05) * t)
        voice = pulses(running_phase(pitch_hz * (1 + 0.05 * shake) * (1 - 0.15 * t)), 7.0)
        return faded(filtered(voice, resonances(peaks)) * (0.55 + 0.45 * shake), 0.03, 0.12)

    return bleat


def horse(rng: Rng, samples: int) -> Samples:
    """A whinny: a high voice with a fast wide shake that falls by more than an octave."""
    length = min(drawn(rng, 0.7, 1.6), samples)
    t, share = seconds(length), np.linspace(0, 1, length)
    shake = np.sin(2 * np.pi * rng.uniform(10, 15) * t)
    fall = rng.uniform(1.0, 1.6) * share
    pitch_hz = rng.uniform(900, 1400) * 2 ** (0.2 * shake * share**0.3 - fall)
    voice = pulses(running_phase(pitch_hz), 3.0) * (0.6 + 0.4 * shake)
    breath = noise_band(rng, length, 800, 4000) * voice.std() * rng.uniform(0.1, 0.3)
    neigh = filtered(
        voice + breath, resonances([(1300, 700.0, 1.0), (2800, 900.0, 0.6)], floor=0.1)
    )
    out = np.zeros(samples)
    place(out, faded(neigh, 0.04, 0.15), int(rng.integers(0, samples - length + 1)))
    return peak_normalised(out)


def oinks(rng: Rng) -> Event:
    """A pig: snorts of mid-band noise, chopped thirty to sixty times a second."""
    rate_hz, size = rng.uniform(28, 55), rng.uniform(0.8, 1.2)

    def oink() -> Signal:
        n = drawn(rng, 0.14, 0.3)
        t = np.linspace(0, 1, n)
        flutter = pulses(running_phase(rate_hz * rng.uniform(0.9, 1.1) * 2 ** (0.5 * t)), 4.0)
        snort = noise_band(rng, n, 250, 1800) * (flutter - flutter.min())
        peaks = [(420 * size, 160.0, 1.0), (1250 * size, 300.0, 0.6)]
        return faded(filtered(snort, resonances(peaks)), 0.02, 0.06)

    return oink


def wolf(rng: Rng, samples: int) -> Samples:
    """A howl: one clear tone that climbs, holds and sinks."""
    length = min(drawn(rng, 1.2, 2.4), samples)
    share = np.linspace(0, 1, length)
    rise = np.clip(share / rng.uniform(0.2, 0.4), 0, 1)
    sink = np.clip((share - rng.uniform(0.6, 0.8)) / 0.3, 0, 1)
    bend = rng.uniform(0.7, 1.1) * np.sin(np.pi / 2 * rise) - rng.uniform(0.2, 0.6) * sink
    shake = 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(4, 6) * seconds(length))
    phase = running_phase(rng.uniform(220, 380) * 2**bend * shake)
    tone = harmonics(phase, [1.0, rng.uniform(0.2, 0.5), rng.uniform(0.05, 0.2), 0.04])
    tone += 0.02 * noise_band(rng, length, 400, 2500)
    out = np.zeros(samples)
    place(out, faded(tone, 0.12, 0.2), int(rng.integers(0, samples - length + 1)))
    return peak_normalised(out)


def croaks(rng: Rng) -> Event:
    """A frog: a slow train of resonant clicks, like a ratchet."""
    rate_hz, centre_hz = rng.uniform(26, 48), rng.uniform(600, 1300)

    def croak() -> Signal:
        n = drawn(rng, 0.2, 0.42)
        t = np.linspace(0, 1, n)
        clicks = pulses(running_phase(rate_hz * 2 ** (rng.uniform(0.1, 0.5) * t)), 150.0)
        peaks = [(centre_hz, 120.0, 1.0), (centre_hz * 2.1, 260.0, 0.5)]
        return faded(filtered(clicks, resonances(peaks)), 0.03, 0.05) * (0.5 + 0.5 * t)

    return croak


def chirrs(rng: Rng) -> Event:
    """A cricket: groups of short pulses at one very high pitch."""
    pitch_hz, rate_hz = rng.uniform(4200, 6200), rng.uniform(22, 34)
    pulses_each = int(rng.integers(3, 6))

    def chirr() -> Signal:
        n = int(pulses_each / rate_hz * SAMPLE_RATE_HZ)
        t = seconds(n)
        return np.sin(2 * np.pi * pitch_hz * t) * np.abs(np.sin(np.pi * rate_hz * t))

    return chirr


def bee(rng: Rng, samples: int) -> Samples:
    """A buzz around 200 Hz whose pitch and level wander as it flies about."""
    wander = 2 ** (0.35 * (slow(rng, samples, rng.uniform(3, 7)) - 0.5))
    buzz = pulses(running_phase(rng.uniform(160, 250) * wander), rng.uniform(8, 20))
    body = filtered(buzz, resonances([(500, 500.0, 1.0), (2400, 1500.0, 0.6)], floor=0.15))
    body += 0.05 * body.std() * noise_band(rng, samples, 1000, 6000)
    return peak_normalised(tilt(rng, body * (0.3 + 0.7 * slow(rng, samples, 3)), -1, 1))


def snake(rng: Rng, samples: int) -> Samples:
    """A rattle over a hiss: bright noise, chopped fifty to eighty times a second, in swells."""
    rattle = pulses(running_phase(np.full(samples, rng.uniform(38, 60))), 6.0)
    hiss = noise_band(rng, samples, rng.uniform(4500, 6000), 9000)
    swell = np.sin(np.pi * seconds(samples) * rng.uniform(0.8, 1.6) + rng.uniform(0, 3)) ** 2
    return peak_normalised(hiss * (0.2 + rattle - rattle.min()) * (0.15 + 0.85 * swell))
