"""Synthetic instruments whose notes are held: blown, bowed and by bellows."""

import numpy as np

from steering.synthetic.plucked import Note
from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    TOP_HZ,
    Rng,
    Signal,
    faded,
    filtered,
    harmonics,
    noise_band,
    resonances,
    seconds,
    slow,
)


def _count_below_top(pitch_hz: float, most: int) -> int:
    return max(1, min(most, int(TOP_HZ / pitch_hz)))


def _saw(phase: Signal, pitch_hz: float, most: int, fall: float) -> Signal:
    count = _count_below_top(pitch_hz, most)
    return harmonics(phase, [(h + 1) ** -fall for h in range(count)])


def _vibrato_phase(
    pitch_hz: float, samples: int, rate_hz: float, depth: float, delay_s: float
) -> Signal:
    # Radians; the vibrato grows in after the attack. Depth is a share of the pitch.
    t = seconds(samples)
    grown = np.clip(t / delay_s, 0, 1)
    bend = 1 + depth * grown * np.sin(2 * np.pi * rate_hz * t)
    return 2 * np.pi * np.cumsum(pitch_hz * bend) / SAMPLE_RATE_HZ


def _scooped_phase(phase: Signal, depth: float, scoop_s: float, pitch_hz: float) -> Signal:
    # The phase of a note that starts a share `depth` below its pitch and slides onto it.
    t = seconds(phase.size)
    return phase - 2 * np.pi * pitch_hz * depth * scoop_s * (1 - np.exp(-t / scoop_s))


def organ(rng: Rng) -> Note:
    """Pipes by drawbars: 16, 8, 4, 2 2/3 and 2 feet, harmonics of the octave below."""
    bars = {1: 0.7, 2: 1.0, 4: 0.8, 6: 0.25, 8: 0.6, 12: 0.15, 16: 0.35}
    drawn = {h: level * rng.uniform(0.6, 1.2) for h, level in bars.items()}
    levels = [drawn.get(h, 0.0) for h in range(1, 17)]
    tremolo, rate_hz = rng.uniform(0, 0.06), rng.uniform(5, 7)

    def note(pitch_hz: float, n: int) -> Signal:
        t = seconds(n)
        count = _count_below_top(pitch_hz / 2, 16)
        out = harmonics(np.pi * pitch_hz * t, levels[:count])
        return faded(out * (1 + tremolo * np.sin(2 * np.pi * rate_hz * t)), 0.012, 0.025)

    return note


def _blown(rng: Rng, levels: list[float], breath: float, vibrato: float, attack_s: float) -> Note:
    # A pipe without a reed: few harmonics, audible breath.
    rate_hz = rng.uniform(4.5, 6.0)

    def note(pitch_hz: float, n: int) -> Signal:
        t = seconds(n)
        phase = _vibrato_phase(pitch_hz, n, rate_hz, vibrato, 0.25)
        tone = harmonics(phase, levels) * (1 + 10 * vibrato * np.sin(2 * np.pi * rate_hz * t))
        air = noise_band(rng, n, pitch_hz, 5000) * breath * (1 + 1.5 * np.exp(-t / 0.05))
        return faded(tone, attack_s, 0.06) + faded(air, 0.02, 0.06)

    return note


def flute(rng: Rng) -> Note:
    """A breathy tone of three harmonics with a slow attack."""
    levels = [1.0, rng.uniform(0.15, 0.35), rng.uniform(0.05, 0.12)]
    return _blown(rng, levels, rng.uniform(0.15, 0.25), rng.uniform(0.004, 0.010), 0.07)


def piccolo(rng: Rng) -> Note:
    """A shrill, tongued pipe an octave up, with hardly any breath."""
    levels = [1.0, rng.uniform(0.6, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.2)]
    return _blown(rng, levels, rng.uniform(0.01, 0.03), rng.uniform(0.001, 0.003), 0.012)


def theremin(rng: Rng) -> Note:
    """Nearly a sine, sliding onto each note, with a wide vibrato from the start."""
    rate_hz, depth = rng.uniform(6.0, 7.5), rng.uniform(0.025, 0.040)
    levels = [1.0, rng.uniform(0.02, 0.08)]
    scoop, scoop_s = rng.uniform(-0.25, 0.25), rng.uniform(0.02, 0.035)

    def note(pitch_hz: float, n: int) -> Signal:
        phase = _vibrato_phase(pitch_hz, n, rate_hz, depth, 0.03)
        return faded(harmonics(_scooped_phase(phase, scoop, scoop_s, pitch_hz), levels), 0.04, 0.04)

    return note


def _bowed(rng: Rng, peaks: list[tuple[float, float, float]], fall: float, rosin_hz: float) -> Note:
    # A bowed string in a wooden body: peaks are its resonances (Hz, Hz, height).
    rate_hz, depth = rng.uniform(5.0, 6.8), rng.uniform(0.008, 0.016)
    bow, attack_s = rng.uniform(0.04, 0.10), rng.uniform(0.06, 0.10)
    body = resonances(
        [(c * rng.uniform(0.92, 1.08), w, h * rng.uniform(0.7, 1.3)) for c, w, h in peaks], 0.3
    )

    def note(pitch_hz: float, n: int) -> Signal:
        phase = _vibrato_phase(pitch_hz, n, rate_hz, depth, 0.15)
        rosin = noise_band(rng, n, rosin_hz, 4 * rosin_hz) * bow
        return faded(filtered(_saw(phase, pitch_hz, 30, fall) + rosin, body), attack_s, 0.07)

    return note


def violin(rng: Rng) -> Note:
    """A bright bowed string with the body's ring near 2.7 kHz."""
    peaks = [(290.0, 100.0, 0.8), (480.0, 170.0, 0.8), (1100.0, 400.0, 0.6), (2700.0, 900.0, 1.6)]
    return _bowed(rng, peaks, rng.uniform(0.7, 0.95), 1700)


def cello(rng: Rng) -> Note:
    """A dark bowed string an octave down."""
    peaks = [(110.0, 50.0, 1.0), (220.0, 90.0, 1.2), (420.0, 150.0, 1.0), (1300.0, 500.0, 0.5)]
    return _bowed(rng, peaks, rng.uniform(0.9, 1.2), 600)


def _brass(rng: Rng, centre_hz: float, width_hz: float, attack_s: float, scoop: float) -> Note:
    # Lips on a cup: the higher a harmonic, the later and the less it comes with the swell.
    bloom, fall_s, rest = rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.2), rng.uniform(0.7, 0.85)

    def note(pitch_hz: float, n: int) -> Signal:
        t = seconds(n)
        swell = np.clip(t / attack_s, 0, 1) * (rest + (1 - rest) * np.exp(-t / fall_s))
        partials_hz = pitch_hz * np.arange(1, _count_below_top(pitch_hz, 20) + 1)
        bright = 0.25 + np.exp(-(((partials_hz - centre_hz) / width_hz) ** 2))
        bright *= np.minimum(1, (2.5 * centre_hz / partials_hz) ** 2)
        levels = [b * swell ** (1 + bloom * h) for h, b in enumerate(bright)]
        phase = _vibrato_phase(pitch_hz, n, 5.2, 0.002, 0.3)
        return faded(harmonics(_scooped_phase(phase, scoop, 0.05, pitch_hz), levels), 0.005, 0.04)

    return note


def trumpet(rng: Rng) -> Note:
    """Bright brass with a quick attack."""
    return _brass(rng, rng.uniform(1500, 2000), rng.uniform(900, 1300), 0.04, 0.0)


def trombone(rng: Rng) -> Note:
    """Middle brass that slides up to each note."""
    return _brass(rng, rng.uniform(650, 850), rng.uniform(350, 500), 0.05, rng.uniform(0.16, 0.22))


def tuba(rng: Rng) -> Note:
    """Round low brass, slow to speak."""
    return _brass(rng, rng.uniform(240, 320), rng.uniform(180, 240), 0.09, 0.0)


def clarinet(rng: Rng) -> Note:
    """A single reed on a closed pipe: odd harmonics."""
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


def oboe(rng: Rng) -> Note:
    """A double reed: thin and nasal, two formants and a weak fundamental."""
    low_hz, high_hz = rng.uniform(1150, 1350), rng.uniform(2900, 3300)
    nasal = resonances([(low_hz, 300.0, 1.0), (high_hz, 500.0, 0.7)], 0.06)
    rate_hz, depth = rng.uniform(5.0, 6.0), rng.uniform(0.003, 0.006)

    def note(pitch_hz: float, n: int) -> Signal:
        phase = _vibrato_phase(pitch_hz, n, rate_hz, depth, 0.2)
        return faded(filtered(_saw(phase, pitch_hz, 26, 0.5), nasal), 0.03, 0.04)

    return note


def saxophone(rng: Rng) -> Note:
    """A rough, breathy reed that scoops into its notes."""
    horn = resonances([(rng.uniform(550, 750), 350.0, 1.0), (1500.0, 700.0, 0.5)], 0.08)
    rate_hz, depth = rng.uniform(4.8, 5.8), rng.uniform(0.012, 0.020)
    growl, breath = rng.uniform(0.35, 0.6), rng.uniform(0.25, 0.4)

    def note(pitch_hz: float, n: int) -> Signal:
        phase = _vibrato_phase(pitch_hz, n, rate_hz, depth, 0.15)
        tone = _saw(_scooped_phase(phase, 0.09, 0.05, pitch_hz), pitch_hz, 24, 0.8)
        tone *= 1 + growl * (2 * slow(rng, n, 70) - 1)
        air = breath * noise_band(rng, n, 2000, 6000)
        return faded(filtered(tone, horn) + 0.3 * air, 0.03, 0.06)

    return note


def accordion(rng: Rng) -> Note:
    """Pairs of reeds tuned apart, so that they beat, with an octave above."""
    beat_hz, fall = rng.uniform(7.0, 10.0), rng.uniform(0.6, 0.85)

    def note(pitch_hz: float, n: int) -> Signal:
        t = 2 * np.pi * seconds(n)
        out = _saw(t * pitch_hz, pitch_hz, 24, fall)
        # A musette pair beats at one rate in every harmonic: each is shifted by the same hertz.
        out *= 1 + 0.75 * np.sin(t * beat_hz + rng.uniform(0, 2 * np.pi))
        out += 0.5 * _saw(2 * t * pitch_hz, 2 * pitch_hz, 12, fall)
        return faded(out, 0.04, 0.03)

    return note


def harmonica(rng: Rng) -> Note:
    """Two blown reeds, a fifth apart, behind hands that open and close."""
    wah_hz, fall = rng.uniform(3.0, 5.0), rng.uniform(0.3, 0.5)
    closed_hz, open_hz = rng.uniform(700, 900), rng.uniform(2800, 3600)
    breath = rng.uniform(0.06, 0.12)

    def note(pitch_hz: float, n: int) -> Signal:
        t = seconds(n)
        reeds = _saw(2 * np.pi * pitch_hz * t, pitch_hz, 24, fall)
        reeds += 0.6 * _saw(3 * np.pi * pitch_hz * t, 1.5 * pitch_hz, 16, fall)
        reeds += breath * noise_band(rng, n, 1500, 6000)
        hands = (1 + np.cos(2 * np.pi * wah_hz * t)) / 2  # 1 closed, 0 open
        dull = filtered(reeds, resonances([(closed_hz, 500.0, 1.0)]))
        clear = filtered(reeds, resonances([(open_hz, 1500.0, 1.2)], 0.1))
        return faded(hands * 0.7 * dull + (1 - hands) * clear, 0.05, 0.04)

    return note


def bagpipe(rng: Rng) -> Note:
    """A loud reedy chanter with a grace note before each note, over drones that never move."""
    drone_hz, fall = rng.uniform(105, 125), rng.uniform(0.3, 0.5)
    chanter = resonances([(rng.uniform(1000, 1300), 500.0, 1.0), (2400.0, 800.0, 0.6)], 0.15)
    grace_s, up = rng.uniform(0.025, 0.04), float(rng.choice([1.335, 1.498]))

    def note(pitch_hz: float, n: int) -> Signal:
        t = seconds(n)
        bend = np.where(t < grace_s, up, 1.0)
        phase = 2 * np.pi * np.cumsum(pitch_hz * bend) / SAMPLE_RATE_HZ
        melody = filtered(_saw(phase, pitch_hz * up, 24, fall), chanter)
        drone = _saw(2 * np.pi * drone_hz * t, drone_hz, 24, 0.8)
        return faded(melody + 0.2 * drone, 0.004, 0.004)

    return note
