"""Synthetic phrases: an instrument plays three to six notes of one of four contours."""

import numpy as np

from steering.synthetic.instruments import FAMILIES, INSTRUMENTS, REGISTERS, TIMBRES
from steering.synthetic.synthesis import (
    SAMPLE_RATE_HZ,
    Rng,
    Samples,
    Signal,
    peak_normalised,
    place,
)

__all__ = ["CONTOURS", "FAMILIES", "INSTRUMENTS", "play"]

CONTOURS = ("rising", "falling", "arch", "steady")
MIN_SAMPLES, MAX_SAMPLES = SAMPLE_RATE_HZ, 5 * SAMPLE_RATE_HZ // 2
MIN_NOTE_SECONDS = 0.24  # of one note's slot: shorter ones blur into a glide
RANGE_SEMITONES = (11.0, 16.0)  # from the lowest note of a phrase to the highest


def _climb(steps: int, semitones: float, rng: Rng) -> Signal:
    # (steps,) all upwards and about as large, with the sum asked for.
    shares = rng.uniform(0.75, 1.25, steps)
    climb: Signal = shares / shares.sum() * semitones
    return climb


def pitches_hz(contour: str, count: int, rng: Rng, register: int = 0) -> Signal:
    """The pitches of a phrase: (count,) Hz, centred, so that no start gives the contour away.

    Args:
        contour: one of CONTOURS; anything else is a KeyError.
        count: notes, 3 or more.
        rng: source of the steps and the centre.
        register: semitones above 220 to 590 Hz.
    """
    peak = count // 2 if count % 2 else count // 2 - int(rng.integers(2))
    span = float(rng.uniform(*RANGE_SEMITONES))
    steps = {
        "rising": _climb(count - 1, span, rng),
        "falling": -_climb(count - 1, span, rng),
        "arch": np.concatenate([_climb(peak, span, rng), -_climb(count - 1 - peak, span, rng)]),
        "steady": np.zeros(count - 1),
    }[contour]
    semitones = np.concatenate([[0.0], np.cumsum(steps)])
    middle = (semitones.max() + semitones.min()) / 2
    centre = rng.uniform(57, 74) + register  # MIDI: 220 to 590 Hz
    midi = centre + semitones - middle + rng.normal(0, 0.06, count)
    pitches: Signal = 440.0 * 2 ** ((midi - 69) / 12)
    return pitches


def play(instrument: str, contour: str, rng: Rng, samples: int) -> Samples:
    """A phrase of three to six notes: (samples,) float32, mono, 16 kHz, peak 1.

    Args:
        instrument: one of INSTRUMENTS; anything else is a KeyError.
        contour: one of CONTOURS; anything else is a KeyError.
        rng: source of the timbre, the notes and their timing.
        samples: length of the phrase, 16_000 to 40_000 (1.0 to 2.5 s).
    """
    assert MIN_SAMPLES <= samples <= MAX_SAMPLES, f"a phrase has 16000 to 40000, not {samples}"
    note = TIMBRES[instrument](rng)
    most = min(6, int(samples / SAMPLE_RATE_HZ / MIN_NOTE_SECONDS))
    count = int(rng.integers(3, most + 1))
    out = np.zeros(samples)
    slot = samples // count
    held = int(slot * rng.uniform(0.85, 0.97))
    for i, pitch_hz in enumerate(pitches_hz(contour, count, rng, REGISTERS.get(instrument, 0))):
        late = int(rng.uniform(0, 0.03) * slot)
        place(out, note(float(pitch_hz), held) * rng.uniform(0.8, 1.0), i * slot + late)
    return peak_normalised(out)
