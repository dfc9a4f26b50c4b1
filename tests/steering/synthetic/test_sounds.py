"""The synthetic sounds: any length, repeatable, varied, countable; the tables that name them."""

import re

import numpy as np
import pytest

from steering.synthetic import instruments, speech
from steering.synthetic.music import CONTOURS
from steering.synthetic.sounds import ACTIONS, COUNTED, FAMILIES, NOUNS, SOUNDS
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Samples, Sound, noise

NOISES: dict[str, Sound] = {**SOUNDS, "noise": noise}
LENGTHS = (11_200, 37_123)  # 0.7 s, and one that is no whole number of hops


@pytest.mark.parametrize("name", NOISES)
def test_sound_fills_any_length(name: str) -> None:
    clips = {samples: NOISES[name](np.random.default_rng(0), samples) for samples in LENGTHS}
    for samples, clip in clips.items():
        assert clip.dtype == np.float32
        assert clip.shape == (samples,)
        assert np.isfinite(clip).all()
        assert np.abs(clip).max() == 1.0
    again, other = (NOISES[name](np.random.default_rng(k), LENGTHS[0]) for k in (0, 1))
    np.testing.assert_array_equal(clips[LENGTHS[0]], again)
    assert not np.array_equal(clips[LENGTHS[0]], other)


def _event_count(clip: Samples) -> int:
    # Stretches above 2 % of the loudest hop, 0.12 s or more apart.
    hops = clip[: clip.size // 160 * 160].reshape(-1, 160)
    level = np.sqrt((hops**2).mean(axis=1))
    loud = np.flatnonzero(level > 0.02 * level.max())
    return 1 + int((np.diff(loud) > 12).sum())


@pytest.mark.parametrize("name", COUNTED)
def test_counted_clips_hold_so_many_events(name: str) -> None:
    for count in range(1, 5):
        clip = COUNTED[name](np.random.default_rng(count), count)
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


def test_phrases_name_their_sound_and_no_other() -> None:
    for name in SOUNDS:
        assert re.fullmatch("[a-z]+", name)
        for phrase in (NOUNS[name], ACTIONS[name]):
            assert set(re.findall("[a-z]+", phrase.lower())) & set(SOUNDS) == {name}
        assert ACTIONS[name].endswith(".")


def test_names_never_collide() -> None:
    names = [*SOUNDS, *instruments.INSTRUMENTS, *CONTOURS, *speech.WORDS]
    assert len(set(names)) == len(names)
    families = [*FAMILIES, *instruments.FAMILIES, *speech.FAMILIES]
    assert len(set(families)) == len(families)
