"""Twelve synthetic environmental sounds and background noise.

Every sound takes a generator and draws all its parameters from it, so no two clips are alike and
the same seed gives the same samples. Clips are (S,) float32, mono, 16 kHz, 1.8 to 3.0 s, peak 1.
"""

from collections.abc import Callable

import numpy as np

from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    Rng,
    Samples,
    Signal,
    _gate,
    _phase,
    _resonances,
    _seconds,
    _slow,
    _tilt,
    draw_length,
    faded,
    filtered,
    harmonics,
    noise_band,
    peak_normalised,
    place,
    ringing,
)


def siren(rng: Rng) -> Samples:
    """A loud tone whose pitch sweeps slowly up and down."""
    n = draw_length(rng)
    turns = rng.uniform(0.35, 1.3) * _seconds(n) + rng.uniform()
    rise = rng.uniform(0.25, 0.75)  # share of a turn that rises
    part = turns % 1.0
    sweep = np.where(part < rise, part / rise, (1 - part) / (1 - rise))
    if rng.random() < 0.5:
        sweep = (1 - np.cos(np.pi * sweep)) / 2
    pitch_hz = rng.uniform(400, 900) * 2 ** (rng.uniform(0.6, 1.4) * sweep)
    fall = rng.uniform(0.7, 2.0)
    tone = harmonics(_phase(pitch_hz), [(k + 1) ** -fall for k in range(rng.integers(2, 5))])
    return peak_normalised(_tilt(rng, tone * (0.85 + 0.15 * _slow(rng, n, 3)), -2, 2))


def alarm(rng: Rng) -> Samples:
    """Fast on and off beeps at one fixed pitch."""
    n = draw_length(rng)
    period_s = 1 / rng.uniform(3.0, 8.0)
    on_s = period_s * rng.uniform(0.4, 0.65)
    in_group = int(rng.integers(3, 6)) if rng.random() < 0.4 else 1_000
    at_s, count, edges_s = rng.uniform(0, 0.2), 0, []
    while at_s < n / SAMPLE_RATE_HZ:
        edges_s.append((at_s, at_s + on_s))
        count += 1
        at_s += period_s * (1 if count % in_group else 2.0)
    overtones = rng.uniform(0, 0.7, 3) * np.array([0.4, 1.0, 0.3])
    pitch_hz = np.full(n, rng.uniform(900, 3200))
    tone = harmonics(_phase(pitch_hz), [1.0, *map(float, overtones)][: 2 + int(rng.integers(0, 2))])
    return peak_normalised(tone * _gate(n, edges_s, rng.uniform(0.002, 0.008)))


def rain(rng: Rng) -> Samples:
    """Dense bright hiss with droplets."""
    n = draw_length(rng)
    hiss = noise_band(rng, n, rng.uniform(1200, 3500), 9000)
    hits = (rng.random(n) < rng.uniform(60, 400) / SAMPLE_RATE_HZ) * rng.exponential(1.0, n)
    hits *= rng.choice([-1.0, 1.0], n)
    peaks = [(rng.uniform(1500, 6500), rng.uniform(300, 900), 1.0) for _ in range(4)]
    drops = filtered(hits, _resonances(peaks))
    drops *= rng.uniform(0.5, 1.6) / (np.std(drops) + 1e-9)
    return peak_normalised(_tilt(rng, hiss * (0.8 + 0.2 * _slow(rng, n, 2)) + drops, -1, 2))


def wind(rng: Rng) -> Samples:
    """Low noise that howls: narrow bands swelling and sinking slowly."""
    n = draw_length(rng)
    out = rng.uniform(0.1, 0.3) * noise_band(rng, n, 30, rng.uniform(200, 500))
    howl_hz = rng.uniform(220, 500)
    pitch = 3.999 * _slow(rng, n, rng.uniform(0.8, 2.0))  # which of five neighbouring bands sounds
    for i in range(5):
        centre_hz = howl_hz * 2 ** (i * rng.uniform(0.2, 0.3))
        width_hz = centre_hz * rng.uniform(0.08, 0.25)
        band = filtered(rng.standard_normal(n), _resonances([(centre_hz, width_hz, 1.0)]))
        out += band / np.std(band) * np.maximum(0, 1 - np.abs(pitch - i)) ** 0.7
    gust = 0.25 + 0.75 * _slow(rng, n, rng.uniform(0.8, 2.5))
    soft = filtered(out * gust, lambda f: 1 / (1 + (f / 1100) ** 4))
    return peak_normalised(soft)


def engine(rng: Rng) -> Samples:
    """A low pulse train with harmonics and drifting speed."""
    n = draw_length(rng)
    drift = rng.uniform(0.05, 0.5) * _slow(rng, n, rng.uniform(0.5, 1.5))
    phase = _phase(rng.uniform(28, 80) * 2**drift)
    cylinder = (phase / (2 * np.pi)).astype(np.int64) % 4
    strengths = rng.uniform(0.6, 1.0, 4)[cylinder]
    pulse = np.exp(rng.uniform(4, 14) * (np.cos(phase) - 1)) * strengths
    rough = rng.uniform(0.05, 0.25) * pulse * noise_band(rng, n, 200, 2500)
    peaks = [(rng.uniform(60, 140), 80.0, 1.0), (rng.uniform(180, 450), 160.0, rng.uniform(0.4, 1))]
    peaks.append((rng.uniform(600, 1400), 500.0, rng.uniform(0.1, 0.4)))
    body = filtered(pulse - pulse.mean() + rough, _resonances(peaks, floor=0.02))
    return peak_normalised(_tilt(rng, body, -1, 1.5))


def _tick(rng: Rng, centres_hz: Signal, decay_s: float) -> Signal:
    t = _seconds(int(0.08 * SAMPLE_RATE_HZ))
    rings = [np.sin(2 * np.pi * f * t) * rng.uniform(0.4, 1) for f in centres_hz]
    click = rng.standard_normal(t.size) * np.exp(-t / 0.0012)
    tick: Signal = np.sum(rings, axis=0) * np.exp(-t / decay_s) + click
    return tick


def clock(rng: Rng) -> Samples:
    """Sharp bright ticks at a steady one to four a second."""
    n = draw_length(rng)
    out = np.zeros(n)
    centres_hz = rng.uniform(1500, 6000, int(rng.integers(2, 5)))
    decay_s = rng.uniform(0.003, 0.012)
    tick = _tick(rng, centres_hz, decay_s)
    tock = _tick(rng, centres_hz * rng.uniform(0.6, 1.0), decay_s) * rng.uniform(0.5, 1.0)
    period = SAMPLE_RATE_HZ / rng.uniform(1.3, 4.0)
    first = rng.uniform(0.05, 0.6) * min(period, 0.5 * SAMPLE_RATE_HZ)
    for i, start in enumerate(np.arange(first, n, period)):
        place(out, tock if i % 2 else tick, int(start))
    return peak_normalised(out)


def _bark(rng: Rng, pitch_hz: float, peaks: list[tuple[float, float, float]]) -> Signal:
    n = int(rng.uniform(0.09, 0.22) * SAMPLE_RATE_HZ)
    t = np.linspace(0, 1, n)
    glide = 2 ** (0.35 * np.sin(np.pi * t**0.6) - rng.uniform(0.3, 0.8) * t)
    phase = _phase(pitch_hz * glide)
    voice = np.exp(6 * (np.cos(phase) - 1))
    rough = noise_band(rng, n, 300, 4000) * rng.uniform(0.1, 0.35) * voice.std() * 2
    body = filtered(voice - voice.mean() + rough, _resonances(peaks, floor=0.03))
    return faded(body, 0.012, 0.07) * np.exp(-1.5 * t)


def dog(rng: Rng) -> Samples:
    """One to four short barks of falling pitch."""
    n = draw_length(rng)
    out = np.zeros(n)
    pitch_hz = rng.uniform(180, 520)
    size = rng.uniform(0.8, 1.3)  # of the head: shifts the formants
    peaks = [(650 * size, 250.0, 1.0), (1300 * size, 350.0, 0.7), (2600 * size, 700.0, 0.3)]
    at_s = rng.uniform(0.02, 0.4)
    for _ in range(int(rng.integers(1, 5))):
        bark = _bark(rng, pitch_hz * rng.uniform(0.92, 1.08), peaks)
        place(out, bark * rng.uniform(0.7, 1.0) / np.abs(bark).max(), int(at_s * SAMPLE_RATE_HZ))
        at_s += rng.uniform(0.28, 0.65)
    return peak_normalised(_tilt(rng, out, -2, 2))


def _chirp(rng: Rng, pitch_hz: float, kind: int) -> Signal:
    n = int(rng.uniform(0.05, 0.22) * (2.0 if kind == 2 else 1.0) * SAMPLE_RATE_HZ)
    t = np.linspace(0, 1, n)
    sweep = rng.uniform(0.15, 0.6)
    bend = [sweep * (t - 0.5), sweep * np.sin(np.pi * t), np.zeros(n)][kind]
    if kind == 2:  # a trill
        trill = np.sin(2 * np.pi * rng.uniform(18, 40) * _seconds(n))
        bend = rng.uniform(0.08, 0.25) * trill
    frequency_hz = np.clip(pitch_hz * 2 ** (bend * rng.choice([-1.0, 1.0])), 1800, 6800)
    return faded(harmonics(_phase(frequency_hz), [1.0, 0.05]), 0.012, 0.03)


def bird(rng: Rng) -> Samples:
    """High chirps and trills between 2 and 6 kHz."""
    n = draw_length(rng)
    out = np.zeros(n)
    base_hz, kind = rng.uniform(2300, 5200), int(rng.integers(0, 3))
    at_s, gap_s = rng.uniform(0.02, 0.3), rng.uniform(0.04, 0.25)
    while at_s < n / SAMPLE_RATE_HZ - 0.1:
        if rng.random() < 0.25:
            kind = int(rng.integers(0, 3))
        chirp = _chirp(rng, base_hz * 2 ** rng.uniform(-0.25, 0.25), kind)
        place(out, chirp * rng.uniform(0.5, 1.0), int(at_s * SAMPLE_RATE_HZ))
        pause_s = rng.uniform(0.25, 0.5) if rng.random() < 0.2 else gap_s * rng.uniform(0.7, 1.4)
        at_s += chirp.size / SAMPLE_RATE_HZ + pause_s
    return peak_normalised(out)


def bell(rng: Rng) -> Samples:
    """One to three strikes of inharmonic partials with a long decay."""
    n = draw_length(rng)
    out = np.zeros(n)
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.52, 2.66, 3.01, 4.1, 5.4])
    pitch_hz = rng.uniform(260, 1100) * ratios * (1 + rng.normal(0, 0.012, ratios.size))
    levels = (
        rng.uniform(0.3, 1.0, ratios.size) * ratios**-0.4 * rng.choice([-1.0, 1.0], ratios.size)
    )
    rates = (1 + 0.5 * ratios) / rng.uniform(1.2, 3.5)  # of decay, a second
    starts_s = rng.uniform(0.02, 0.3) + rng.uniform(0.5, 1.1) * np.arange(rng.integers(1, 4))
    t = _seconds(n)
    ring = ringing(pitch_hz, levels, rates, n)
    ring[:64] *= np.linspace(0, 1, 64)
    knock = rng.standard_normal(n) * np.exp(-t / 0.004) * rng.uniform(0.2, 1.0)
    for start_s in starts_s:
        place(out, (ring + knock) * rng.uniform(0.7, 1.0), int(start_s * SAMPLE_RATE_HZ))
    return peak_normalised(out)


def _step(rng: Rng, thud_hz: float, scuff_hz: tuple[float, float], scuff_level: float) -> Signal:
    n = int(0.25 * SAMPLE_RATE_HZ)
    t = _seconds(n)
    thud = np.sin(2 * np.pi * thud_hz * t * (1 - 0.8 * t)) * np.exp(-t / rng.uniform(0.025, 0.05))
    heel = noise_band(rng, n, 60, 350) * np.exp(-t / 0.02) * rng.uniform(0.2, 0.5)
    late = np.maximum(0, t - rng.uniform(0.02, 0.09))  # the sole follows the heel
    brush = late / 0.03 * np.exp(1 - late / 0.03)
    scuff = noise_band(rng, n, *scuff_hz) * brush * scuff_level
    return faded(thud + heel + scuff, 0.002, 0.05)


def footsteps(rng: Rng) -> Samples:
    """Low thuds with a soft scuff, about two a second and never quite regular."""
    n = draw_length(rng)
    out = np.zeros(n)
    thud_hz = rng.uniform(55, 130)
    low_hz = rng.uniform(300, 900)
    scuff_hz, scuff_level = (low_hz, low_hz * rng.uniform(2, 4)), rng.uniform(0.05, 0.25)
    period_s, at_s = 1 / rng.uniform(1.5, 2.6), rng.uniform(0.02, 0.3)
    while at_s < n / SAMPLE_RATE_HZ - 0.08:
        step = _step(rng, thud_hz * rng.uniform(0.88, 1.12), scuff_hz, scuff_level)
        place(out, step * rng.uniform(0.6, 1.0), int(at_s * SAMPLE_RATE_HZ))
        at_s += period_s * rng.uniform(0.85, 1.15)
    return peak_normalised(out)


def phone(rng: Rng) -> Samples:
    """A rapid warble of two tones, in bursts with pauses."""
    n = draw_length(rng)
    low_hz = rng.uniform(600, 1400)
    high_hz = low_hz * rng.uniform(1.18, 1.5)
    square = np.sin(2 * np.pi * rng.uniform(11, 24) * _seconds(n)) > 0
    tone = harmonics(_phase(np.where(square, high_hz, low_hz)), [1.0, *rng.uniform(0, 0.35, 2)])
    on_s, off_s = rng.uniform(0.45, 1.0), rng.uniform(0.25, 0.6)
    starts_s = np.arange(rng.uniform(0, 0.3), n / SAMPLE_RATE_HZ, on_s + off_s)
    return peak_normalised(tone * _gate(n, [(s, s + on_s) for s in starts_s], 0.01))


def cow(rng: Rng) -> Samples:
    """One long low moo whose mouth opens and closes."""
    n = draw_length(rng)
    length = int(min(rng.uniform(1.0, 2.2), n / SAMPLE_RATE_HZ - 0.1) * SAMPLE_RATE_HZ)
    t = np.linspace(0, 1, length)
    arch = np.sin(np.pi * t ** rng.uniform(0.6, 1.2)) - rng.uniform(0, 0.4) * t
    pitch_hz = rng.uniform(85, 150) * 2 ** (rng.uniform(0.15, 0.5) * arch)
    shake = 1 + 0.01 * (_slow(rng, length, 20) - 0.5)
    voice = np.exp(8 * (np.cos(_phase(pitch_hz * shake)) - 1))
    voice -= voice.mean()
    size = rng.uniform(0.85, 1.2)
    shut = filtered(voice, _resonances([(260 * size, 110.0, 1.0), (850 * size, 200.0, 0.1)]))
    wide = [(560 * size, 160.0, 1.0), (1050 * size, 220.0, 0.5), (2300 * size, 400.0, 0.15)]
    mouth = np.clip(np.sin(np.pi * t ** rng.uniform(0.6, 1.6)) * 1.3, 0, 1)
    moo = shut / shut.std() * (1 - mouth) + filtered(voice, _resonances(wide)) / shut.std() * mouth
    moo += rng.uniform(0.01, 0.06) * noise_band(rng, length, 200, 2500) * moo.std()
    out = np.zeros(n)
    place(out, faded(moo, 0.15, 0.3), int(rng.integers(0, n - length)))
    return peak_normalised(_tilt(rng, out, -1, 2))


def noise(rng: Rng) -> Samples:
    """Steady hiss between white and brown, for backgrounds and for clips of noise alone."""
    hiss = rng.standard_normal(draw_length(rng))
    return peak_normalised(_tilt(rng, hiss, -6.5, 0.5))


SOUNDS: dict[str, Callable[[Rng], Samples]] = {
    "siren": siren,
    "alarm": alarm,
    "rain": rain,
    "wind": wind,
    "engine": engine,
    "clock": clock,
    "dog": dog,
    "bird": bird,
    "bell": bell,
    "footsteps": footsteps,
    "phone": phone,
    "cow": cow,
}
