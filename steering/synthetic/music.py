"""Eight synthetic instruments playing short phrases of four contours.

An instrument is a function from a generator to a note: it draws one timbre, which all notes of the
phrase then share. The pitch range is the same for all, so that pitch gives no instrument away.
"""

from collections.abc import Callable

import numpy as np

from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    TOP_HZ,
    Rng,
    Samples,
    Signal,
    draw_length,
    faded,
    filtered,
    harmonics,
    noise_band,
    peak_normalised,
    place,
    ringing,
)

Note = Callable[[float, int], Signal]  # (pitch in Hz, length in samples) -> (S,)

CONTOURS = ("rising", "falling", "arch", "steady")


def _seconds(samples: int) -> Signal:
    return np.arange(samples) / SAMPLE_RATE_HZ


def _count_below_top(pitch_hz: float, most: int) -> int:
    return max(1, min(most, int(TOP_HZ / pitch_hz)))


def _vibrato_phase(
    pitch_hz: float, samples: int, rate_hz: float, depth: float, delay_s: float
) -> Signal:
    # Radians; the vibrato grows in after the attack. Depth is a share of the pitch.
    t = _seconds(samples)
    grown = np.clip(t / delay_s, 0, 1)
    bend = 1 + depth * grown * np.sin(2 * np.pi * rate_hz * t)
    return 2 * np.pi * np.cumsum(pitch_hz * bend) / SAMPLE_RATE_HZ


def _piano(rng: Rng) -> Note:
    k = np.arange(1, 13, dtype=np.float64)
    stiffness = rng.uniform(2e-4, 9e-4)
    levels = k ** -rng.uniform(0.9, 1.4) * (0.3 + np.abs(np.sin(np.pi * k * rng.uniform(0.1, 0.2))))
    decay, knock = rng.uniform(1.5, 3.0), rng.uniform(0.1, 0.35)
    detune = 1 + rng.uniform(4e-4, 1.2e-3)  # the second string of each pair

    def note(pitch_hz: float, n: int) -> Signal:
        n += SAMPLE_RATE_HZ // 8
        partials_hz = pitch_hz * k * np.sqrt(1 + stiffness * k**2)
        rates = decay * (1 + 0.3 * k)
        out = ringing(partials_hz, levels, rates, n)
        out += 0.6 * ringing(partials_hz * detune, levels, rates, n)
        hammer = noise_band(rng, n, 80, 900) * np.exp(-_seconds(n) / 0.012)
        return faded(out + knock * hammer, 0.003, 0.1)

    return note


def _organ(rng: Rng) -> Note:
    # Drawbars at 16, 8, 4, 2 2/3 and 2 feet and so on: harmonics of the octave below.
    bars = {1: 0.7, 2: 1.0, 4: 0.8, 6: 0.25, 8: 0.6, 12: 0.15, 16: 0.35}
    drawn = {h: level * rng.uniform(0.6, 1.2) for h, level in bars.items()}
    levels = [drawn.get(h, 0.0) for h in range(1, 17)]
    tremolo, rate_hz = rng.uniform(0, 0.06), rng.uniform(5, 7)

    def note(pitch_hz: float, n: int) -> Signal:
        t = _seconds(n)
        count = _count_below_top(pitch_hz / 2, 16)
        out = harmonics(np.pi * pitch_hz * t, levels[:count])
        return faded(out * (1 + tremolo * np.sin(2 * np.pi * rate_hz * t)), 0.012, 0.025)

    return note


def _flute(rng: Rng) -> Note:
    levels = [1.0, rng.uniform(0.06, 0.22), rng.uniform(0.02, 0.08)]
    rate_hz, depth = rng.uniform(4.5, 6.0), rng.uniform(0.004, 0.010)
    breath, attack_s = rng.uniform(0.04, 0.10), rng.uniform(0.05, 0.09)

    def note(pitch_hz: float, n: int) -> Signal:
        t = _seconds(n)
        phase = _vibrato_phase(pitch_hz, n, rate_hz, depth, 0.25)
        tone = harmonics(phase, levels) * (1 + 10 * depth * np.sin(2 * np.pi * rate_hz * t))
        air = noise_band(rng, n, pitch_hz, 5000) * breath * (1 + 1.5 * np.exp(-t / 0.05))
        return faded(tone, attack_s, 0.06) + faded(air, 0.02, 0.06)

    return note


def _violin(rng: Rng) -> Note:
    rate_hz, depth = rng.uniform(5.0, 6.8), rng.uniform(0.008, 0.016)
    bow, attack_s = rng.uniform(0.04, 0.10), rng.uniform(0.08, 0.14)
    fall = rng.uniform(0.8, 1.05)
    body_hz = np.array([290.0, 480.0, 1100.0, 2700.0]) * rng.uniform(0.92, 1.08, 4)
    heights = np.array([0.8, 0.8, 0.6, 1.2]) * rng.uniform(0.7, 1.3, 4)

    def body(f: Signal) -> Signal:
        lobes = [
            h / (1 + ((f - c) / (0.18 * c)) ** 2) for c, h in zip(body_hz, heights, strict=True)
        ]
        total: Signal = 0.5 + np.sum(lobes, axis=0)
        return total

    def note(pitch_hz: float, n: int) -> Signal:
        phase = _vibrato_phase(pitch_hz, n, rate_hz, depth, 0.2)
        count = _count_below_top(pitch_hz, 24)
        saw = harmonics(phase, [(h + 1) ** -fall for h in range(count)])
        rosin = noise_band(rng, n, 1500, 7000) * bow
        return faded(filtered(saw + rosin, body), attack_s, 0.07)

    return note


def _trumpet(rng: Rng) -> Note:
    centre_hz, width_hz = rng.uniform(1200, 1800), rng.uniform(900, 1400)
    attack_s, bloom = rng.uniform(0.025, 0.06), rng.uniform(0.25, 0.45)
    fall_s, rest = rng.uniform(0.08, 0.2), rng.uniform(0.7, 0.85)

    def note(pitch_hz: float, n: int) -> Signal:
        t = _seconds(n)
        swell = np.clip(t / attack_s, 0, 1) * (rest + (1 - rest) * np.exp(-t / fall_s))
        partials_hz = pitch_hz * np.arange(1, _count_below_top(pitch_hz, 20) + 1)
        bright = 0.25 + np.exp(-(((partials_hz - centre_hz) / width_hz) ** 2))
        bright *= np.minimum(1, (3500 / partials_hz) ** 1.5)
        levels = [b * swell ** (1 + bloom * h) for h, b in enumerate(bright)]
        phase = _vibrato_phase(pitch_hz, n, 5.2, 0.002, 0.3)
        return faded(harmonics(phase, levels), 0.005, 0.04)

    return note


def _guitar(rng: Rng) -> Note:
    damping, pick = rng.uniform(0.992, 0.997), rng.uniform(0.1, 0.3)
    blend = rng.uniform(0.35, 0.5)
    top_hz = rng.uniform(3500, 6500)
    box_hz = rng.uniform(95, 125)

    def note(pitch_hz: float, n: int) -> Signal:
        # Karplus-Strong, one period a step: each is the damped two-point average of the last.
        n += SAMPLE_RATE_HZ // 8
        period = max(8, round(SAMPLE_RATE_HZ / pitch_hz - blend))
        loop = noise_band(rng, period, 20, top_hz)
        loop -= np.roll(loop, int(pick * period))  # the string is plucked at one point
        out = np.empty(n + period)
        out[:period] = loop
        for start in range(period, n, period):
            before = np.roll(loop, 1)
            before[0] = out[start - period - 1] if start > period else 0.0
            loop = damping * ((1 - blend) * loop + blend * before)
            out[start : start + period] = loop
        box = filtered(out[:n], lambda f: 1 + 0.8 / (1 + ((f - box_hz) / 30) ** 2))
        return faded(box / np.std(out[:period]), 0.001, 0.06)

    return note


def _marimba(rng: Rng) -> Note:
    ratios = np.array([1.0, 4.0, 10.0]) * (1 + rng.normal(0, 0.008, 3))
    levels = np.array([1.0, rng.uniform(0.25, 0.5), rng.uniform(0.08, 0.2)])
    rates = np.array([rng.uniform(9, 15), rng.uniform(25, 45), rng.uniform(70, 110)])
    knock = rng.uniform(0.1, 0.3)

    def note(pitch_hz: float, n: int) -> Signal:
        out = ringing(pitch_hz * ratios, levels, rates, n)
        wood = noise_band(rng, n, 300, 2500) * np.exp(-_seconds(n) / 0.004)
        return faded(out + knock * wood, 0.002, 0.03)

    return note


def _clarinet(rng: Rng) -> Note:
    odd = [1.0, *(rng.uniform(0.7, 1.1) * level for level in (0.6, 0.38, 0.25, 0.15, 0.09, 0.05))]
    levels = [0.0] * 13
    levels[::2] = odd
    levels[1::2] = [0.03] * 6
    attack_s, reed = rng.uniform(0.03, 0.06), rng.uniform(0.004, 0.012)

    def note(pitch_hz: float, n: int) -> Signal:
        phase = _vibrato_phase(pitch_hz, n, 4.5, 0.001, 0.3)
        tone = harmonics(phase, levels[: _count_below_top(pitch_hz, 13)])
        return faded(tone + reed * noise_band(rng, n, 1000, 4000), attack_s, 0.05)

    return note


_TIMBRES: dict[str, Callable[[Rng], Note]] = {
    "piano": _piano,
    "organ": _organ,
    "flute": _flute,
    "violin": _violin,
    "trumpet": _trumpet,
    "guitar": _guitar,
    "marimba": _marimba,
    "clarinet": _clarinet,
}
INSTRUMENTS = tuple(_TIMBRES)


def _pitches_hz(contour: str, count: int, rng: Rng) -> Signal:
    # (count,) Hz. Centred on the phrase's mean, so that neither start nor contour fixes the range.
    steps = rng.integers(2, 5, count - 1).astype(np.float64)  # semitones
    peak = int(rng.integers((count - 1) // 2, count // 2 + 1))
    signs = {
        "rising": np.ones(count - 1),
        "falling": -np.ones(count - 1),
        "arch": np.where(np.arange(count - 1) < peak, 1.0, -1.0),
        "steady": np.zeros(count - 1),
    }
    semitones = np.concatenate([[0.0], np.cumsum(steps * signs[contour])])
    centre = rng.uniform(57, 74)  # MIDI: 220 to 590 Hz
    midi = centre + semitones - semitones.mean() + rng.normal(0, 0.06, count)
    pitches_hz: Signal = 440.0 * 2 ** ((midi - 69) / 12)
    return pitches_hz


def play(instrument: str, contour: str, rng: Rng) -> Samples:
    """A phrase of four to six notes: (S,) float32, mono, 16 kHz, 1.8 to 3.0 s, peak 1.

    `instrument` is one of INSTRUMENTS and `contour` one of CONTOURS; anything else is a KeyError.
    """
    note = _TIMBRES[instrument](rng)
    pitches_hz = _pitches_hz(contour, int(rng.integers(4, 7)), rng)
    out = np.zeros(draw_length(rng))
    start = int(rng.uniform(0.01, 0.15) * SAMPLE_RATE_HZ)
    slot = int((out.size - start) * rng.uniform(0.85, 1.0) / pitches_hz.size)
    held = int(slot * rng.uniform(0.82, 0.95))
    for i, pitch_hz in enumerate(pitches_hz):
        late = int(rng.uniform(0, 0.04) * slot)
        place(out, note(float(pitch_hz), held) * rng.uniform(0.8, 1.0), start + i * slot + late)
    return peak_normalised(out)
