"""The synthetic world: every clip is in format, repeatable, varied, and shaped like its name."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from steering.synthetic.music import CONTOURS, INSTRUMENTS, play
from steering.synthetic.sounds import ACTIONS, COUNTED, FAMILIES, NOUNS, SOUNDS
from steering.synthetic.speech import TEST_VOICES, TRAIN_VOICES, WORDS, say
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng, Samples, Sound, noise

Maker = Callable[[Rng], Samples]


def _playing(instrument: str, contour: str) -> Maker:
    return lambda rng: play(instrument, contour, rng)


def _saying(word: str, voice: str) -> Maker:
    return lambda rng: say(word, voice, rng)


NOISES: dict[str, Sound] = {**SOUNDS, "noise": noise}
LENGTHS = (11_200, 40_000, 17_123)  # 0.7 s, 2.5 s, and one that is no whole number of hops

MAKERS: dict[str, Maker] = {
    **{f"{i} {c}": _playing(i, c) for i in INSTRUMENTS for c in CONTOURS},
    **{word: _saying(word, TRAIN_VOICES[i]) for i, word in enumerate(WORDS)},
    **{voice: _saying("river", voice) for voice in TRAIN_VOICES + TEST_VOICES},
}


@pytest.mark.parametrize("name", MAKERS)
def test_clip_is_in_format(name: str) -> None:
    for seed in range(3):
        clip = MAKERS[name](np.random.default_rng(seed))
        assert clip.dtype == np.float32
        assert clip.ndim == 1
        assert 1.8 <= clip.size / SAMPLE_RATE_HZ <= 3.0
        assert np.isfinite(clip).all()
        assert np.abs(clip).max() == 1.0


@pytest.mark.parametrize("name", MAKERS)
def test_same_seed_same_samples(name: str) -> None:
    first = MAKERS[name](np.random.default_rng(5))
    MAKERS["en-us+m2"](np.random.default_rng(1))  # what was said before must not matter
    again = MAKERS[name](np.random.default_rng(5))
    other = MAKERS[name](np.random.default_rng(6))
    np.testing.assert_array_equal(first, again)
    assert first.size != other.size or not np.array_equal(first, other)


@pytest.mark.parametrize("name", NOISES)
def test_sound_fills_any_length(name: str) -> None:
    for seed, samples in enumerate(LENGTHS):
        clip = NOISES[name](np.random.default_rng(seed), samples)
        assert clip.dtype == np.float32
        assert clip.shape == (samples,)
        assert np.isfinite(clip).all()
        assert np.abs(clip).max() == 1.0
        again = NOISES[name](np.random.default_rng(seed), samples)
        other = NOISES[name](np.random.default_rng(seed + 10), samples)
        np.testing.assert_array_equal(clip, again)
        assert not np.array_equal(clip, other)


def _event_count(clip: Samples) -> int:
    # Stretches above 2 % of the loudest hop, 0.12 s or more apart.
    hops = clip[: clip.size // 160 * 160].reshape(-1, 160)
    level = np.sqrt((hops**2).mean(axis=1))
    loud = np.flatnonzero(level > 0.02 * level.max())
    return 1 + int((np.diff(loud) > 12).sum())


@pytest.mark.parametrize("name", COUNTED)
def test_counted_clips_hold_so_many_events(name: str) -> None:
    for seed in range(3):
        for count in range(1, 5):
            clip = COUNTED[name](np.random.default_rng(seed), count)
            assert clip.dtype == np.float32
            assert 0.3 <= clip.size / SAMPLE_RATE_HZ <= 2.6
            assert np.abs(clip).max() == 1.0
            assert _event_count(clip) == count


def test_tables_name_every_sound() -> None:
    members = [name for family in FAMILIES.values() for name in family]
    assert sorted(members) == sorted(SOUNDS)  # each in exactly one family
    assert all(3 <= len(family) <= 6 for family in FAMILIES.values())
    assert set(COUNTED) <= set(SOUNDS)
    assert len(SOUNDS) >= 44
    assert len(COUNTED) >= 10
    assert set(NOUNS) == set(ACTIONS) == set(SOUNDS)
    assert len(set(ACTIONS.values())) == len(ACTIONS)


@pytest.mark.parametrize("name", SOUNDS)
def test_phrases_name_their_sound_and_no_other(name: str) -> None:
    assert re.fullmatch("[a-z]+", name)
    for phrase in (NOUNS[name], ACTIONS[name]):
        assert set(re.findall("[a-z]+", phrase.lower())) & set(SOUNDS) == {name}
    assert ACTIONS[name].endswith(".")


def test_names_never_collide() -> None:
    names = [*SOUNDS, *INSTRUMENTS, *CONTOURS, *WORDS]
    assert len(set(names)) == len(names)
    assert not set(TRAIN_VOICES) & set(TEST_VOICES)


def _pitch_hz(clip: Samples) -> float:
    # The strongest frequency: a clarinet's is its fundamental.
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(clip.size)))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / clip.size)


@pytest.mark.parametrize("seed", range(4))
def test_contours_move_as_they_say(seed: int) -> None:
    def ratio(contour: str) -> float:
        clip = play("clarinet", contour, np.random.default_rng(seed))
        return _pitch_hz(clip[-SAMPLE_RATE_HZ // 2 :]) / _pitch_hz(clip[: SAMPLE_RATE_HZ // 2])

    assert ratio("rising") > 1.15
    assert ratio("falling") < 0.87
    assert ratio("steady") == pytest.approx(1.0, abs=0.03)


def test_unknown_names_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(KeyError):
        play("kazoo", "rising", rng)
    with pytest.raises(ValueError, match="TRAIN_VOICES"):
        say("river", "en-us+nobody", rng)
