"""Phrases: as long as asked, repeatable, and moving as their contour says."""

import numpy as np
import pytest

from steering.synthetic.instruments import TIMBRES
from steering.synthetic.music import CONTOURS, FAMILIES, INSTRUMENTS, pitches_hz, play
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Samples


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_phrase_fills_its_samples(instrument: str) -> None:
    phrases = {n: play(instrument, "arch", np.random.default_rng(0), n) for n in (16_000, 40_000)}
    for samples, phrase in phrases.items():
        assert phrase.dtype == np.float32
        assert phrase.shape == (samples,)
        assert np.isfinite(phrase).all()
        assert np.abs(phrase).max() == 1.0
    again, other = (play(instrument, "arch", np.random.default_rng(k), 16_000) for k in (0, 1))
    np.testing.assert_array_equal(phrases[16_000], again)
    assert not np.array_equal(phrases[16_000], other)


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_notes_sound_at_the_ends_of_the_register(instrument: str) -> None:
    for seed, pitch_hz in enumerate((75.0, 1600.0)):
        note = TIMBRES[instrument](np.random.default_rng(seed))
        sound = note(pitch_hz, 2000)
        assert np.isfinite(sound).all()
        assert np.std(sound) > 0.01


def test_every_instrument_has_one_family() -> None:
    members = [instrument for family in FAMILIES.values() for instrument in family]
    assert sorted(members) == sorted(INSTRUMENTS)
    assert len(set(members)) == len(members) >= 18
    assert all(3 <= len(family) <= 6 for family in FAMILIES.values())


@pytest.mark.parametrize("count", range(3, 7))
def test_notes_decide_the_contour(count: int) -> None:
    for seed in range(20):
        semitones = {}
        for contour in CONTOURS:
            pitches = pitches_hz(contour, count, np.random.default_rng(seed))
            semitones[contour] = 12 * np.log2(pitches / pitches[0])
        steps = {contour: np.diff(moved) for contour, moved in semitones.items()}
        assert (steps["rising"] > 1).all()
        assert semitones["rising"][-1] > 9
        assert (steps["falling"] < -1).all()
        assert semitones["falling"][-1] < -9
        top = int(np.argmax(semitones["arch"]))
        assert 0 < top < count - 1
        assert semitones["arch"][top] > 9
        assert semitones["arch"][top] - semitones["arch"][-1] > 9
        assert np.abs(semitones["steady"]).max() < 0.5


def _pitch_hz(clip: Samples) -> float:
    # The strongest frequency: a clarinet's is its fundamental.
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(clip.size)))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / clip.size)


@pytest.mark.parametrize("seed", range(2))
def test_played_contours_move_as_they_say(seed: int) -> None:
    def ratio(contour: str) -> float:
        clip = play("clarinet", contour, np.random.default_rng(seed), 32_000)
        return _pitch_hz(clip[-SAMPLE_RATE_HZ // 4 :]) / _pitch_hz(clip[: SAMPLE_RATE_HZ // 4])

    assert ratio("rising") > 1.5
    assert ratio("falling") < 0.67
    assert ratio("steady") == pytest.approx(1.0, abs=0.03)


def test_unknown_names_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(KeyError):
        play("kazoo", "rising", rng, 16_000)
    with pytest.raises(KeyError):
        play("piano", "wavy", rng, 16_000)
