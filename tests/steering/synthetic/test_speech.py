"""Spoken words: repeatable, trimmed, of a word's length, by men who speak lower than women."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from steering.synthetic.flite import flite_word
from steering.synthetic.speech import (
    EXTRA_TRAIN_VOICES,
    FAMILIES,
    SPEAKERS,
    TEST_VOICES,
    TRAIN_VOICES,
    WORDS,
    say,
)
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng, Samples

ESPEAK_VOICES = TRAIN_VOICES + TEST_VOICES
NEEDS_FLITE = pytest.mark.skipif(
    shutil.which("flite") is None, reason="flite is missing; Debian: apt install flite"
)
FRAME = 640  # samples: 40 ms, three periods of a low voice


def _rng(seed: int = 5) -> Rng:
    return np.random.default_rng(seed)


def test_words_are_many_and_in_one_family_each() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 44
    assert all(re.fullmatch("[a-z]+", word) for word in WORDS)
    assert all(3 <= len(family) <= 6 for family in FAMILIES.values())


def test_voices_for_testing_are_unheard_in_training_and_of_both_sexes() -> None:
    assert not set(TEST_VOICES) & set(TRAIN_VOICES + EXTRA_TRAIN_VOICES)
    assert set(SPEAKERS) == set(TRAIN_VOICES + EXTRA_TRAIN_VOICES + TEST_VOICES)
    for voices in (TRAIN_VOICES, TEST_VOICES, EXTRA_TRAIN_VOICES):
        assert {SPEAKERS[voice] for voice in voices} == {"man", "woman"}


def _check_format(speech: Samples) -> None:
    assert speech.dtype == np.float32
    assert speech.ndim == 1
    assert 0.25 <= speech.size / SAMPLE_RATE_HZ <= 1.4
    assert np.abs(speech).max() == 1.0
    assert min(abs(speech[0]), abs(speech[-1])) > 0.01  # nothing left to trim


def test_speech_is_the_trimmed_word() -> None:
    for i, word in enumerate(WORDS):
        _check_format(say(word, ESPEAK_VOICES[i % len(ESPEAK_VOICES)], _rng(i)))


@pytest.mark.parametrize("voice", ["en-us+m1", "en-gb-x-gbclan+Alicia", "en-gb-x-gbcwmd+Reed"])
def test_same_seed_same_samples(voice: str) -> None:
    first = say("river", voice, _rng())
    say("banana", "en-us+m2", _rng(1))  # what was said before must not matter
    np.testing.assert_array_equal(first, say("river", voice, _rng()))
    other = say("river", voice, _rng(6))
    assert first.size != other.size or not np.array_equal(first, other)


def _pitch_hz(speech: Samples) -> float:
    # The median over the voiced frames of the strongest period between 2.5 and 16 ms.
    window = np.hanning(FRAME)
    pitches = []
    for start in range(0, speech.size - FRAME, FRAME // 4):
        frame = speech[start : start + FRAME] * window
        spectrum = np.abs(np.fft.rfft(frame, 2 * FRAME)) ** 2
        likeness = np.fft.irfft(spectrum) / max(float(np.sum(spectrum)), 1e-9)
        likeness /= np.fft.irfft(np.abs(np.fft.rfft(window, 2 * FRAME)) ** 2) + 1e-9
        period = 40 + int(np.argmax(likeness[40:257]))
        if np.std(frame) > 0.3 * np.std(speech):
            pitches.append(SAMPLE_RATE_HZ / period)
    return float(np.median(pitches))


def test_men_speak_below_women() -> None:
    pitches: dict[str, list[float]] = {"man": [], "woman": []}
    for i, voice in enumerate(ESPEAK_VOICES):
        pitches[SPEAKERS[voice]].append(_pitch_hz(say("yellow", voice, _rng(i))))
    assert max(pitches["man"]) < min(pitches["woman"])


def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"en-us\+nobody.*TRAIN_VOICES"):
        say("river", "en-us+nobody", _rng())
    with pytest.raises(ValueError, match=r"takes .* choose another word"):
        say("incomprehensibilities", "en-us+m1", _rng())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install flite"):
        say("river", "flite+slt", _rng())


@pytest.mark.system
@NEEDS_FLITE
@pytest.mark.parametrize("voice", EXTRA_TRAIN_VOICES)
def test_flite_speaks_in_the_same_format(voice: str) -> None:
    first = say("yesterday", voice, _rng())
    _check_format(first)
    np.testing.assert_array_equal(first, say("yesterday", voice, _rng()))


@pytest.mark.system
@NEEDS_FLITE
def test_flite_refuses_a_voice_it_lacks() -> None:
    with pytest.raises(RuntimeError, match="nobody"):
        flite_word("river", "nobody", 1.0, 1.0)
