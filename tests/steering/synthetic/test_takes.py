"""Recorded clips: noise as asked, no word of the level, and a masked stretch that is gone."""

from dataclasses import replace

import numpy as np
import pytest

from steering.synthetic.synthesis import Samples
from steering.synthetic.takes import (
    BACKGROUNDS,
    CODECS,
    LEVEL_DBFS,
    Take,
    draw_take,
    masked,
    record,
)

PLAIN = Take(
    snr_db=300.0,
    reverberation_s=0.0,
    direct_db=14.0,
    bandwidth_hz=8000.0,
    codec="none",
    level_dbfs=-1.0,
    tilt_db=0.0,
    background="hiss",
    colour_db=0.0,
)


def _events(samples: int = 40_000) -> Samples:
    # A tone early and a tone late, silence around them.
    clean = np.zeros(samples, dtype=np.float32)
    t = np.arange(8000) / 16_000
    clean[4000:12000] = np.sin(2 * np.pi * 700 * t)
    clean[24000:32000] = 0.5 * np.sin(2 * np.pi * 1900 * t)
    return clean


def _power(signal: Samples) -> float:
    return float(np.mean(np.square(signal, dtype=np.float64)))


@pytest.mark.parametrize(
    ("background", "snr_db"), list(zip(BACKGROUNDS, (-12.0, 6.0, 30.0), strict=True))
)
def test_snr_over_the_active_samples_is_as_asked(background: str, snr_db: float) -> None:
    clean = _events()
    asked = replace(
        PLAIN, background=background, snr_db=snr_db, reverberation_s=0.3, bandwidth_hz=4000.0
    )
    noisy = record(clean, clean != 0, asked, np.random.default_rng(3))
    alone = record(clean, clean != 0, replace(asked, snr_db=300.0), np.random.default_rng(3))
    louder = record(clean, clean != 0, replace(asked, snr_db=snr_db - 20), np.random.default_rng(3))
    # Three mixtures of the same two signals: the background is what is left of a fit to the event.
    basis = np.stack([alone, louder], axis=1).astype(np.float64)
    weights = np.linalg.lstsq(basis, noisy.astype(np.float64), rcond=None)[0]
    share = np.linalg.lstsq(alone[:, None].astype(np.float64), louder, rcond=None)[0]
    background_alone = louder - share * alone
    event = (weights[0] + weights[1] * share) * alone
    measured_db = 10 * np.log10(_power(event[clean != 0]) / _power(weights[1] * background_alone))
    assert measured_db == pytest.approx(snr_db, abs=1.0)


@pytest.mark.parametrize("codec", CODECS)
def test_level_is_the_peak_and_changes_nothing_else(codec: str) -> None:
    clean = _events()
    asked = replace(PLAIN, codec=codec, snr_db=10.0)
    loud = record(clean, clean != 0, asked, np.random.default_rng(1))
    quiet = record(clean, clean != 0, replace(asked, level_dbfs=-31.0), np.random.default_rng(1))
    assert loud.dtype == np.float32
    assert np.abs(loud).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4)
    np.testing.assert_allclose(quiet * 10 ** (30 / 20), loud, atol=1e-5)


def test_drawn_conditions_are_independent_and_spread() -> None:
    rng = np.random.default_rng(7)
    drawn = [draw_take(rng) for _ in range(4000)]
    levels = np.array([take.level_dbfs for take in drawn])
    clarity = np.array([take.clarity for take in drawn])
    assert LEVEL_DBFS[0] <= levels.min() < LEVEL_DBFS[0] + 1
    assert LEVEL_DBFS[1] - 1 < levels.max() <= LEVEL_DBFS[1]
    assert abs(np.corrcoef(levels, clarity)[0, 1]) < 0.06
    assert 0 <= clarity.min() < 0.2
    assert 0.95 < clarity.max() <= 1
    assert np.mean([take.snr_db < 2.0 for take in drawn]) == pytest.approx(0.35, abs=0.03)


def test_clarity_falls_with_each_condition() -> None:
    clear = replace(PLAIN, snr_db=36.0)
    assert clear.clarity == 1.0
    for worse in (
        {"snr_db": 0.0},
        {"reverberation_s": 0.6, "direct_db": 0.0},
        {"bandwidth_hz": 3000.0},
        {"codec": "telephone"},
        {"codec": "coarse"},
    ):
        assert replace(clear, **worse).clarity < 0.95


def test_same_seed_same_samples() -> None:
    clean = _events()
    for seed in range(6):
        take = draw_take(np.random.default_rng(seed))
        first = record(clean, clean != 0, take, np.random.default_rng(seed))
        again = record(clean, clean != 0, take, np.random.default_rng(seed))
        other = record(clean, clean != 0, take, np.random.default_rng(seed + 100))
        assert np.isfinite(first).all()
        assert first.shape == clean.shape
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_silence_stays_digital() -> None:
    silence = np.zeros(32_000, dtype=np.float32)
    assert not record(silence, silence == 0, PLAIN, np.random.default_rng(0)).any()


def test_band_and_room_are_as_asked() -> None:
    click = np.zeros(32_000, dtype=np.float32)
    click[1000] = 1.0
    narrow = record(
        click, click != 0, replace(PLAIN, bandwidth_hz=2000.0), np.random.default_rng(0)
    )
    spectrum = np.abs(np.fft.rfft(narrow)) ** 2  # bins of 0.5 Hz
    assert spectrum[6000:].sum() < 0.01 * spectrum[:4000].sum()
    far = replace(PLAIN, reverberation_s=0.5, direct_db=0.0)
    echo = record(click, click != 0, far, np.random.default_rng(0))
    assert _power(echo[1040:9000]) / _power(echo[990:1010]) * 7960 / 20 == pytest.approx(1, abs=0.2)
    early, late = _power(echo[1800:2200]), _power(echo[5800:6200])
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=3)  # 60 dB over 8000 samples


@pytest.mark.parametrize("seed", range(2))
def test_a_masked_stretch_cannot_be_made_out(seed: int) -> None:
    clean = _events()
    empty = clean.copy()
    empty[24000:32000] = 0
    hidden = masked(clean, 24000, 32000, np.random.default_rng(seed))
    noise = masked(empty, 24000, 32000, np.random.default_rng(seed))
    gain = hidden[8001] / noise[8001]
    under = hidden[24000:32000] - gain * noise[24000:32000]
    burst = gain * noise[24000:32000]
    assert 10 * np.log10(_power(burst) / _power(under)) > 24.9
    tone = slice(930, 970)  # 2 Hz a bin: even next to the tone's own pitch
    ratio = np.abs(np.fft.rfft(burst))[tone] ** 2, np.abs(np.fft.rfft(under))[tone] ** 2
    assert ratio[0].sum() > ratio[1].sum()
    loudness_db = 10 * np.log10(_power(burst) / _power(hidden[4000:12000]))
    assert loudness_db == pytest.approx(0, abs=1)
    assert np.abs(hidden).max() == pytest.approx(1)
