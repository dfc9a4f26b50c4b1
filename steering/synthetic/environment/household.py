"""What is heard at home: things that tick, knock, break and creak."""

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
    ringing,
    running_phase,
    seconds,
    slow,
)


def _click(rng: Rng, centres_hz: Signal, decay_s: float, hardness_s: float = 0.0012) -> Signal:
    # A struck body of a few partials and the noise of the blow.
    t = seconds(int((5 * decay_s + 0.02) * SAMPLE_RATE_HZ))
    rings = [np.sin(2 * np.pi * f * t) * rng.uniform(0.4, 1) for f in centres_hz]
    blow = rng.standard_normal(t.size) * np.exp(-t / hardness_s)
    return faded(np.sum(rings, axis=0) * np.exp(-t / decay_s) + blow, 0.0, 0.01)


def clock(rng: Rng, samples: int) -> Samples:
    """Sharp bright ticks at a steady two to four a second."""
    centres_hz, decay_s = rng.uniform(1800, 6000, int(rng.integers(2, 5))), rng.uniform(0.003, 0.01)
    tick = _click(rng, centres_hz, decay_s)
    tock = _click(rng, centres_hz * rng.uniform(0.6, 1.0), decay_s) * rng.uniform(0.5, 1.0)
    period = SAMPLE_RATE_HZ / rng.uniform(2.0, 4.0)
    out = np.zeros(samples)
    for i, start in enumerate(np.arange(rng.uniform(0.03, 0.35) * period, samples, period)):
        place(out, tock if i % 2 else tick, int(start))
    return peak_normalised(out)


def steps(rng: Rng) -> Event:
    """Footsteps: a low thud, then the scuff of the sole."""
    thud_hz, low_hz = rng.uniform(55, 130), rng.uniform(300, 900)
    scuff_hz, scuff_level = low_hz * rng.uniform(2, 4), rng.uniform(0.1, 0.3)

    def step() -> Signal:
        n = int(0.22 * SAMPLE_RATE_HZ)
        t = seconds(n)
        turn = 2 * np.pi * thud_hz * rng.uniform(0.88, 1.12) * t * (1 - 0.8 * t)
        thud = np.sin(turn) * np.exp(-t / rng.uniform(0.025, 0.05))
        heel = noise_band(rng, n, 60, 350) * np.exp(-t / 0.02) * rng.uniform(0.2, 0.5)
        late = np.maximum(0, t - rng.uniform(0.02, 0.09))  # the sole follows the heel
        brush = late / 0.03 * np.exp(1 - late / 0.03)
        scuff = noise_band(rng, n, low_hz, scuff_hz) * brush * scuff_level
        return faded(thud + heel + scuff, 0.002, 0.05)

    return step


def knocks(rng: Rng) -> Event:
    """Knuckles on wood: short hollow blows without any brightness."""
    centres_hz, decay_s = rng.uniform(180, 650, 3), rng.uniform(0.012, 0.03)

    def knock() -> Signal:
        blow = _click(rng, centres_hz * rng.uniform(0.97, 1.03), decay_s, 0.003)
        return filtered(blow, lambda f: 1 / (1 + (f / 1200) ** 4))

    return knock


def claps(rng: Rng) -> Event:
    """Hands: a burst of noise around one to two kilohertz, with a short tail."""
    centre_hz, decay_s = rng.uniform(900, 2000), rng.uniform(0.015, 0.035)

    def clap() -> Signal:
        n = drawn(rng, 0.12, 0.16)
        t = seconds(n)
        burst = noise_band(rng, n, 500, 5000) * np.exp(-t / decay_s)
        peaks = [(centre_hz * rng.uniform(0.85, 1.15), 700.0, 1.0)]
        return faded(filtered(burst, resonances(peaks, 0.15)), 0.001, 0.03)

    return clap


def glass(rng: Rng, samples: int) -> Samples:
    """A pane that breaks: a crash, then high splinters that ring as they fall."""
    out, first = np.zeros(samples), drawn(rng, 0.0, 0.15)
    t = seconds(int(0.12 * SAMPLE_RATE_HZ))
    crash = rng.standard_normal(t.size) * np.exp(-t / rng.uniform(0.015, 0.04))
    place(out, 1.2 * filtered(crash, lambda f: f / (f + 2500)), first)
    for _ in range(int(rng.integers(16, 30))):
        n = drawn(rng, 0.06, 0.2)
        partials_hz = rng.uniform(2200, 7200, 3)
        shard = ringing(partials_hz, rng.uniform(0.2, 0.6, 3), rng.uniform(15, 60, 3), n)
        late_s = rng.exponential(0.22)
        level = rng.uniform(0.3, 1.0) * np.exp(-late_s / 0.5)
        place(out, faded(shard, 0.0005, 0.02) * level, first + int(late_s * SAMPLE_RATE_HZ))
    return peak_normalised(out)


def door(rng: Rng, samples: int) -> Samples:
    """A creak whose stick and slip speeds up and slows down, and at its end a slam."""
    slam_at = int(samples * rng.uniform(0.6, 0.8))
    wander = 2 ** (2.0 * slow(rng, slam_at, rng.uniform(2, 4)))
    slips = pulses(running_phase(rng.uniform(28, 50) * wander), 60.0)
    peaks = [(rng.uniform(500, 800), 80.0, 1.0), (rng.uniform(1100, 1700), 120.0, 0.9)]
    creak = filtered(slips, resonances([*peaks, (2600.0, 300.0, 0.5)]))
    out = np.zeros(samples)
    place(out, 0.6 * faded(creak / np.abs(creak).max(), 0.1, 0.05), 0)
    t = seconds(min(samples - slam_at, int(0.3 * SAMPLE_RATE_HZ)))
    slam = noise_band(rng, t.size, 50, 500) / 3 * np.exp(-t / 0.05)
    place(out, faded(slam, 0.002, 0.05), slam_at)
    return peak_normalised(out)


def keystrokes(rng: Rng) -> Event:
    """Typing: small dry double clicks, press and release."""
    centres_hz = rng.uniform(1200, 3500, 3)

    def keystroke() -> Signal:
        press = _click(rng, centres_hz * rng.uniform(0.9, 1.1), 0.004, 0.003)
        release = 0.5 * _click(rng, centres_hz * rng.uniform(1.1, 1.3), 0.003)
        out = np.zeros(press.size + drawn(rng, 0.03, 0.05))
        place(out, press, 0)
        place(out, release, out.size - release.size)
        return out

    return keystroke


def zips(rng: Rng) -> Event:
    """A zipper: a train of tiny teeth that runs faster and higher."""
    rate_hz, centre_hz = rng.uniform(50, 80), rng.uniform(2000, 3000)

    def zipped() -> Signal:
        n, up = drawn(rng, 0.3, 0.48), rng.uniform(0.8, 1.4)
        t = np.linspace(0, 1, n)
        teeth = pulses(running_phase(rate_hz * 2 ** (up * t)), 12.0)
        grain = noise_band(rng, n, 1500, 7000) * (teeth - teeth.min())
        low = filtered(grain, resonances([(centre_hz, 700.0, 1.0)]))
        high = filtered(grain, resonances([(centre_hz * 2.1, 1000.0, 1.0)]))
        return faded(low * (1 - t) + high * t, 0.02, 0.02) * (0.5 + 0.5 * t)

    return zipped


def snips(rng: Rng) -> Event:
    """Scissors: a thin scrape that rises and ends in a click."""
    centres_hz = rng.uniform(3800, 6500, 3)

    def snip() -> Signal:
        n = drawn(rng, 0.1, 0.16)
        t = np.linspace(0, 1, n)
        scrape = noise_band(rng, n, 3500, 8000) * t**2 * 0.25
        click = _click(rng, centres_hz, rng.uniform(0.008, 0.016))
        return np.concatenate([scrape, 0.6 * click])

    return snip


def kettle(rng: Rng, samples: int) -> Samples:
    """Steam: a thin whistle that climbs without end over a boiling hiss."""
    share = np.linspace(0, 1, samples)
    pitch_hz = rng.uniform(1500, 2200) * 2 ** (rng.uniform(0.4, 0.8) * share)
    shake = 1 + 0.01 * slow(rng, samples, 12)
    tone = harmonics(running_phase(pitch_hz * shake), [1.0, 0.25, 0.1]) * (0.4 + 0.6 * share)
    hiss = noise_band(rng, samples, 1500, 7000) * rng.uniform(0.15, 0.35)
    boil = noise_band(rng, samples, 100, 500) * slow(rng, samples, 25) * 0.3
    return peak_normalised(tone + hiss + boil)


def clinks(rng: Rng) -> Event:
    """Coins: two or three bright partials that ring for a tenth of a second."""
    base_hz = rng.uniform(2600, 3800)

    def clink() -> Signal:
        n = drawn(rng, 0.12, 0.2)
        partials_hz = base_hz * rng.uniform(0.9, 1.15) * np.array([1.0, 1.48, 1.87])
        ring = ringing(partials_hz, rng.uniform(0.4, 1, 3), rng.uniform(18, 32, 3), n)
        return faded(ring, 0.0005, 0.03)

    return clink


def blows(rng: Rng) -> Event:
    """A hammer: a nail's ring over a dull thud, the ring rising as the nail goes in."""
    ring_hz, thud_hz, count = rng.uniform(900, 1500), rng.uniform(110, 200), [0]

    def blow() -> Signal:
        count[0] += 1
        n = drawn(rng, 0.16, 0.22)
        t = seconds(n)
        rise = 1 + 0.05 * min(count[0], 8)
        partials_hz = np.array([ring_hz, ring_hz * 1.6, ring_hz * 2.4]) * rise
        ring = ringing(partials_hz, np.array([0.5, 0.4, 0.3]), np.array([18.0, 25, 30]), n)
        thud = np.sin(2 * np.pi * thud_hz * t) * np.exp(-t / 0.03)
        return faded(ring + thud + 0.6 * rng.standard_normal(n) * np.exp(-t / 0.002), 0.0005, 0.04)

    return blow
