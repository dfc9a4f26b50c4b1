"""The synthetic world: every clip is in format, repeatable, varied, and shaped like its name."""

from collections.abc import Callable

import numpy as np
import pytest

from steering.synthetic.music import CONTOURS, INSTRUMENTS, play
from steering.synthetic.sounds import SOUNDS, noise
from steering.synthetic.speech import WORDS
from steering.synthetic.synthesis import SAMPLE_RATE_HZ, Rng, Samples

Maker = Callable[[Rng], Samples]


def _playing(instrument: str, contour: str) -> Maker:
    return lambda rng: play(instrument, contour, rng)


MAKERS: dict[str, Maker] = {
    **SOUNDS,
    "noise": noise,
    **{f"{i} {c}": _playing(i, c) for i in INSTRUMENTS for c in CONTOURS},
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
    again = MAKERS[name](np.random.default_rng(5))
    other = MAKERS[name](np.random.default_rng(6))
    np.testing.assert_array_equal(first, again)
    assert first.size != other.size or not np.array_equal(first, other)


def test_names_never_collide() -> None:
    names = [*SOUNDS, *INSTRUMENTS, *CONTOURS, *WORDS]
    assert len(set(names)) == len(names) == 12 + 8 + 4 + 48


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
