"""Spoken words: which, in whose voice, and one of them as sound."""

from collections.abc import Iterable

import numpy as np

from steering.synthetic.espeak import espeak_word
from steering.synthetic.flite import flite_program, flite_word
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng, Samples, Signal, peak_normalised

# Words that are easily taken for one another, by their sound or by their subject.
FAMILIES: dict[str, tuple[str, ...]] = {
    "numbers": ("seven", "eleven", "twenty", "thousand"),
    "days": ("monday", "friday", "tomorrow", "yesterday"),
    "colours": ("yellow", "orange", "purple", "silver"),
    "fruit": ("banana", "tomato", "lemon", "cherry"),
    "kitchen": ("coffee", "sugar", "butter", "honey"),
    "machines": ("computer", "satellite", "battery"),
    "home": ("window", "pillow", "table", "curtain"),
    "places": ("hospital", "museum", "library", "village"),
    "arts": ("music", "magic", "picture", "poem"),
    "land": ("river", "mountain", "island", "desert"),
    "animals": ("elephant", "rabbit", "zebra", "giraffe"),
    "things": ("jacket", "pocket", "ticket", "basket", "rocket"),
}
WORDS = tuple(word for family in FAMILIES.values() for word in family)

# An espeak-ng voice is a language, which sets the accent (plain en is
# British), and a variant, which sets the speaker.
_TRAIN_MEN = (
    "en-us+m1",
    "en-us+m3",
    "en-us+m7",
    "en-us+Andy",
    "en-us+benjamin",
    "en+m2",
    "en+m4",
    "en+Michael",
    "en-gb-x-rp+m3",
    "en-gb-scotland+m1",
    "en-gb-x-gbclan+m7",
    "en-gb-x-gbcwmd+Reed",
)
_TRAIN_WOMEN = (
    "en-us+f1",
    "en-us+f3",
    "en-us+f5",
    "en-us+Annie",
    "en-us+belinda",
    "en+f2",
    "en+f4",
    "en+steph",
    "en-gb-x-rp+f1",
    "en-gb-scotland+f3",
    "en-gb-x-gbclan+Alicia",
    "en-gb-x-gbcwmd+f2",
)
_TEST_MEN = ("en-us+m2", "en-gb-x-rp+m1", "en+boris")
_TEST_WOMEN = ("en+f3", "en-us+linda", "en-gb-scotland+f4")
# Flite's voices: a sampled one, then people whose recordings were modelled.
_FLITE_MEN = ("flite+kal16", "flite+awb", "flite+rms")
_FLITE_WOMEN = ("flite+slt",)

TRAIN_VOICES = _TRAIN_MEN + _TRAIN_WOMEN
EXTRA_TRAIN_VOICES = _FLITE_MEN + _FLITE_WOMEN  # these need the program flite
TEST_VOICES = _TEST_MEN + _TEST_WOMEN

SEXES = ("man", "woman")
SPEAKERS: dict[str, str] = {
    **dict.fromkeys(_TRAIN_MEN + _TEST_MEN + _FLITE_MEN, "man"),
    **dict.fromkeys(_TRAIN_WOMEN + _TEST_WOMEN + _FLITE_WOMEN, "woman"),
}

MIN_WORD_SECONDS = 0.25
MAX_WORD_SECONDS = 1.4


def _trimmed(signal: Signal) -> Signal:
    # Without the near-silence (below 1 % of the peak) on either side.
    loud = np.flatnonzero(np.abs(signal) > 0.01 * np.max(np.abs(signal)))
    return signal[loud[0] : loud[-1] + 1]


def _by_espeak(word: str, voice: str, rng: Rng) -> Signal:
    # Pitches in which a man's voice stays below about 130 Hz and a woman's above.
    lowest, highest = (36, 75) if SPEAKERS[voice] == "man" else (45, 76)
    words_a_minute = int(rng.integers(115, 180))
    pitch = int(rng.integers(lowest, highest))
    return espeak_word(word, voice, words_a_minute, pitch, span=int(rng.integers(30, 81)))


def _by_flite(word: str, voice: str, rng: Rng) -> Signal:
    lowest, highest = (0.8, 1.05) if SPEAKERS[voice] == "man" else (0.95, 1.25)
    stretch, pitch = float(rng.uniform(1.1, 1.35)), float(rng.uniform(lowest, highest))
    return flite_word(word, voice.removeprefix("flite+"), stretch, pitch)


def require_synthesisers(voices: Iterable[str]) -> None:
    """Nothing, where the programs of the voices are installed.

    Raises:
        RuntimeError: A program is missing; the message says how to install it.
    """
    if set(voices) & set(EXTRA_TRAIN_VOICES):
        flite_program()


def say(word: str, voice: str, rng: Rng) -> Samples:
    """One spoken word and nothing around it: (S,) float32, mono, 16 kHz, 0.25 to 1.4 s, peak 1.

    Speed, pitch and, by espeak-ng, the range of the intonation are drawn from rng.

    Args:
        word: What to say, in English: one of WORDS, or another as long as those.
        voice: A name in SPEAKERS.
        rng: Where the settings are drawn from; the same state gives the same samples.

    Raises:
        ValueError: The voice is unknown, or the word takes less or more time than a clip allows.
        RuntimeError: The voice's synthesiser is not there or fails.
    """
    if voice not in SPEAKERS:  # espeak-ng passes over a variant that it does not know
        raise ValueError(
            f"voice {voice!r} is unknown, choose from TRAIN_VOICES, EXTRA_TRAIN_VOICES or "
            "TEST_VOICES"
        )
    spoken = _by_flite if voice in EXTRA_TRAIN_VOICES else _by_espeak
    speech = _trimmed(spoken(word, voice, rng))
    seconds = speech.size / SAMPLE_RATE_HZ
    if not MIN_WORD_SECONDS <= seconds <= MAX_WORD_SECONDS:
        raise ValueError(
            f"{word!r} takes {seconds:.2f} s in voice {voice!r}, and "
            f"{MIN_WORD_SECONDS} to {MAX_WORD_SECONDS} s are allowed: choose another word"
        )
    return peak_normalised(speech)
