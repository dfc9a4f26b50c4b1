"""Synthetic instruments whose notes die away: struck and plucked."""

from collections.abc import Callable

import numpy as np

from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    TOP_HZ,
    Rng,
    Signal,
    faded,
    filtered,
    noise_band,
    place,
    ringing,
    seconds,
)

Note = Callable[[float, int], Signal]  # (pitch in Hz, length in samples) -> (S,)

RELEASE_SAMPLES = SAMPLE_RATE_HZ // 8  # a struck note rings on under the next one


def _click(rng: Rng, samples: int, low_hz: float, high_hz: float, decay_s: float) -> Signal:
    return noise_band(rng, samples, low_hz, high_hz) * np.exp(-seconds(samples) / decay_s)


def piano(rng: Rng) -> Note:
    """Paired stiff strings, struck by a felt hammer."""
    k = np.arange(1, 13, dtype=np.float64)
    stiffness = rng.uniform(2e-4, 9e-4)
    levels = k ** -rng.uniform(0.9, 1.4) * (0.3 + np.abs(np.sin(np.pi * k * rng.uniform(0.1, 0.2))))
    decay, knock = rng.uniform(1.5, 3.0), rng.uniform(0.1, 0.35)
    detune = 1 + rng.uniform(4e-4, 1.2e-3)  # the second string of each pair

    def note(pitch_hz: float, n: int) -> Signal:
        n += RELEASE_SAMPLES
        partials_hz = pitch_hz * k * np.sqrt(1 + stiffness * k**2)
        rates = decay * (1 + 0.3 * k)
        out = ringing(partials_hz, levels, rates, n)
        out += 0.6 * ringing(partials_hz * detune, levels, rates, n)
        return faded(out + knock * _click(rng, n, 80, 900, 0.012), 0.003, 0.1)

    return note


def _string(
    rng: Rng, pitch_hz: float, n: int, pick: float, blend: float, damping: float, top_hz: float
) -> Signal:
    # Karplus-Strong, one period a step: each is the damped two-point average of the last.
    period = max(8, round(SAMPLE_RATE_HZ / pitch_hz - blend))
    loop = noise_band(rng, period, 20, top_hz)
    loop -= np.roll(loop, max(1, int(pick * period)))  # the string is plucked at one point
    out = np.empty(n + period)
    out[:period] = loop
    for start in range(period, n, period):
        before = np.roll(loop, 1)
        before[0] = out[start - period - 1] if start > period else 0.0
        loop = damping * ((1 - blend) * loop + blend * before)
        out[start : start + period] = loop
    return out[:n] / np.std(out[:period])


def guitar(rng: Rng) -> Note:
    """A plucked string on a wooden box."""
    damping, pick = rng.uniform(0.992, 0.997), rng.uniform(0.1, 0.3)
    blend = rng.uniform(0.35, 0.5)
    top_hz = rng.uniform(2500, 4500)
    box_hz = rng.uniform(95, 125)

    def note(pitch_hz: float, n: int) -> Signal:
        n += RELEASE_SAMPLES
        string = _string(rng, pitch_hz, n, pick, blend, damping, top_hz)
        box = filtered(string, lambda f: 1 + 0.8 / (1 + ((f - box_hz) / 30) ** 2))
        return faded(box, 0.001, 0.06)

    return note


def banjo(rng: Rng) -> Note:
    """A short bright string on a drum skin, each note picked again and again."""
    pick, blend = rng.uniform(0.05, 0.12), rng.uniform(0.12, 0.2)
    head_hz, every_s = rng.uniform(700, 1100), rng.uniform(0.09, 0.12)
    rate = rng.uniform(9, 14)  # 1/s: the skin takes the string's energy fast

    def skin(f: Signal) -> Signal:
        gain: Signal = (0.4 + 1 / (1 + ((f - head_hz) / 500) ** 2)) * f / (f + 350)
        return gain

    def note(pitch_hz: float, n: int) -> Signal:
        out = np.zeros(n)
        step = int(every_s * SAMPLE_RATE_HZ)
        for start in range(0, max(1, n - step // 2), step):
            string = _string(rng, pitch_hz, 2 * step, pick, blend, 0.998, 7000)
            pluck = string * np.exp(-rate * seconds(2 * step))
            pluck += 0.3 * _click(rng, 2 * step, 900, 5000, 0.004)
            place(out, faded(pluck, 0.001, 0.02) * rng.uniform(0.7, 1.0), start)
        return faded(filtered(out, skin), 0.001, 0.02)

    return note


def harp(rng: Rng) -> Note:
    """Soft gut strings, each note rolled with its fifth and octave."""
    k = np.arange(1, 9, dtype=np.float64)
    levels = k ** -rng.uniform(1.7, 2.3)
    decay, roll_s = rng.uniform(1.5, 3.0), rng.uniform(0.025, 0.04)

    def note(pitch_hz: float, n: int) -> Signal:
        n += RELEASE_SAMPLES
        out = np.zeros(n)
        for i, (ratio, level) in enumerate(((1.0, 1.0), (1.5, 0.5), (2.0, 0.7))):
            string = ringing(ratio * pitch_hz * k, levels, decay * (1 + 0.4 * k), n)
            place(out, faded(level * string, 0.006, 0.02), int(i * roll_s * SAMPLE_RATE_HZ))
        return faded(out, 0.001, 0.1)

    return note


def sitar(rng: Rng) -> Note:
    """A buzzing string pulled up to its pitch over a faint drone."""
    drone_hz = rng.uniform(105, 150)
    pull, pull_s = rng.uniform(0.08, 0.14), rng.uniform(0.04, 0.07)
    sweep, decay = rng.uniform(5.0, 9.0), rng.uniform(1.0, 2.0)
    k = np.arange(1, 31, dtype=np.float64)

    def note(pitch_hz: float, n: int) -> Signal:
        n += RELEASE_SAMPLES
        t = seconds(n)
        bend = 1 - pull * np.exp(-t / pull_s)
        phase = 2 * np.pi * np.cumsum(pitch_hz * bend) / SAMPLE_RATE_HZ
        out = np.zeros(n)
        for h in k[: max(1, int(TOP_HZ / pitch_hz))]:
            # The bridge buzz: a bright formant that runs down through the harmonics.
            buzz_hz = 700 + 4300 * np.exp(-sweep * t)
            level = h**-0.7 * (0.12 + np.exp(-(((h * pitch_hz - buzz_hz) / 700) ** 2)))
            out += level * np.sin(h * phase) * np.exp(-decay * t)
        drone = ringing(drone_hz * k, k**-1.0, 0.8 + 0 * k, n)
        return faded(out + 0.06 * drone, 0.002, 0.1)

    return note


def harpsichord(rng: Rng) -> Note:
    """Thin strings plucked by quills, two choirs an octave apart, and the jack falling back."""
    k = np.arange(1, 31, dtype=np.float64)
    levels = k ** -rng.uniform(0.15, 0.45) * np.abs(np.sin(np.pi * k * rng.uniform(0.08, 0.13)))
    decay, jack = rng.uniform(2.5, 4.0), rng.uniform(0.6, 1.2)

    def note(pitch_hz: float, n: int) -> Signal:
        rates = decay * (1 + 0.05 * k)
        out = ringing(pitch_hz * k, levels, rates, n)
        out += 0.7 * ringing(2.003 * pitch_hz * k, levels, rates, n)
        out += 0.8 * _click(rng, n, 2500, 7500, 0.005)
        tail = np.concatenate([faded(out, 0.001, 0.012), np.zeros(RELEASE_SAMPLES // 4)])
        place(tail, jack * _click(rng, RELEASE_SAMPLES // 4, 600, 3500, 0.006), n - 100)
        return tail

    return note


def _bar(
    rng: Rng,
    ratios: list[float],
    levels: list[float],
    rates: list[float],
    click: tuple[float, float, float, float],
) -> Note:
    # A tuned bar: partials at fixed ratios, and the mallet's click (level, Hz, Hz, seconds).
    tuned = np.array(ratios) * (1 + rng.normal(0, 0.008, len(ratios)))
    knock, low_hz, high_hz, decay_s = click

    def note(pitch_hz: float, n: int) -> Signal:
        out = ringing(pitch_hz * tuned, np.array(levels), np.array(rates), n)
        return faded(out + knock * _click(rng, n, low_hz, high_hz, decay_s), 0.002, 0.03)

    return note


def marimba(rng: Rng) -> Note:
    """Rosewood bars over tubes: round, short, an overtone two octaves up."""
    levels = [1.0, rng.uniform(0.25, 0.5), rng.uniform(0.08, 0.2)]
    rates = [rng.uniform(9, 13), rng.uniform(25, 45), rng.uniform(70, 110)]
    return _bar(rng, [1, 4, 10], levels, rates, (rng.uniform(0.4, 0.7), 300, 2500, 0.006))


def xylophone(rng: Rng) -> Note:
    """Hard bars and hard mallets: dry, clicking, an overtone at the twelfth."""
    levels = [1.0, rng.uniform(0.7, 1.0), rng.uniform(0.4, 0.7)]
    rates = [rng.uniform(12, 18), rng.uniform(14, 22), rng.uniform(25, 40)]
    return _bar(rng, [1, 3, 6.2], levels, rates, (rng.uniform(0.6, 1.0), 2500, 7500, 0.005))


def vibraphone(rng: Rng) -> Note:
    """Metal bars that ring on while turning discs open and close their tubes."""
    levels = [1.0, rng.uniform(0.25, 0.45), rng.uniform(0.06, 0.12)]
    rates = [rng.uniform(0.8, 1.6), rng.uniform(2, 4), rng.uniform(8, 14)]
    bar = _bar(rng, [1, 4, 9.8], levels, rates, (0.05, 500, 3000, 0.004))
    rate_hz, depth = rng.uniform(6.5, 9.0), rng.uniform(0.35, 0.45)

    def note(pitch_hz: float, n: int) -> Signal:
        n += RELEASE_SAMPLES
        turn = 1 - depth + depth * np.cos(2 * np.pi * rate_hz * seconds(n))
        return faded(bar(pitch_hz, n) * turn, 0.001, 0.1)

    return note
