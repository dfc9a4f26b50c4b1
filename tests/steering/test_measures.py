from __future__ import annotations

from math import comb, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.measures import (
    ClusterBootstrap,
    auroc,
    auroc_within_strata,
    concordance,
    effective_count,
    mcnemar,
    paired_gain,
    repaired_broken,
    wilson,
)


def flags(*values: int) -> NDArray[np.bool_]:
    return np.array(values, bool)


# ---- AUROC


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.2])
    positive = flags(0, 1, 0, 1, 0, 1)
    pairs = [
        1.0 if up > down else 0.5 if up == down else 0.0
        for up in scores[positive]
        for down in scores[~positive]
    ]
    assert auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_of_perfect_reversed_and_equal_scores() -> None:
    positive = flags(0, 0, 1, 1)
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), positive) == 1.0
    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), positive) == 0.0
    assert auroc(np.zeros(4), positive) == 0.5


@pytest.mark.parametrize("positive", [flags(1, 1), flags(0, 0)])
def test_auroc_needs_both_kinds(positive: NDArray[np.bool_]) -> None:
    assert np.isnan(auroc(np.array([0.1, 0.2]), positive))


def test_concordance_counts_an_item_as_often_as_it_weighs() -> None:
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 5, 30) / 4, rng.random(30) < 0.5
    counts = rng.integers(0, 4, (6, 30))
    above, pairs = concordance(scores, positive, counts.astype(float))
    for row, share in zip(counts, above / pairs, strict=True):
        assert share == pytest.approx(auroc(np.repeat(scores, row), np.repeat(positive, row)))


def test_the_difference_of_two_aurocs_and_its_interval() -> None:
    rng = np.random.default_rng(2)
    right = rng.random(240) < 0.5
    better, worse = rng.standard_normal((2, 240)) + np.array([[2.0], [0.5]]) * right
    strata = ["ab"[i % 2] for i in range(240)]
    groups = [np.arange(0, 240, 2), np.arange(1, 240, 2)]
    bootstrap = ClusterBootstrap.of([f"{i // 4}" for i in range(240)])
    gain, low, high = bootstrap.auroc_difference((better, worse), right, groups)
    own, other = (auroc_within_strata(signal, right, strata) for signal in (better, worse))
    assert gain == pytest.approx(own - other)
    assert 0 < low < gain < high < 0.5
    assert bootstrap.auroc_difference((better, better), right, groups) == (0, 0, 0)
    alike = np.ones(240, bool)
    assert np.isnan(bootstrap.auroc_difference((better, worse), alike, groups)).all()


# ---- intervals


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (10, 10), (499, 1000)])
def test_wilson_by_its_formula(right: int, count: int) -> None:
    z, p = 1.959963984540054, right / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    assert wilson(right, count) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_the_paired_gain_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(400) < 0.5
    after = np.where(rng.random(400) < 0.2, True, before)
    gain, low, high = paired_gain(after, before)
    difference = after.astype(float) - before
    assert gain == pytest.approx(difference.mean())
    error = 1.96 * difference.std() / sqrt(400)  # the normal approximation
    assert (low, high) == pytest.approx((gain - error, gain + error), abs=0.01)
    assert paired_gain(after, before) == (gain, low, high), "the same seed, the same interval"


def test_the_interval_is_that_of_drawing_items_again() -> None:
    after, before = flags(1, 1, 1, 0, 0, 1, 0, 1), flags(0, 1, 0, 0, 1, 0, 0, 1)
    difference = after.astype(float) - before
    drawn = np.random.default_rng(5).choice(difference, (20_000, 8)).mean(1)
    _, low, high = paired_gain(after, before, draws=20_000)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.01)


def test_the_interval_over_clips_is_that_of_whole_clips() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random(200) < 0.5, rng.random(200) < 0.7
    clips = np.array([str(i) for i in range(200)])
    twice = [np.repeat(each, 2) for each in (after, before, clips)]
    over_clips, over_items = paired_gain(*twice), paired_gain(*twice[:2])
    assert over_clips == pytest.approx(paired_gain(after, before), abs=0.012)
    width, narrow = (high - low for _, low, high in (over_clips, over_items))
    assert narrow < 0.8 * width


def test_no_change_is_no_gain() -> None:
    same = flags(1, 0, 1)
    assert paired_gain(same, same) == (0.0, 0.0, 0.0)


# ---- McNemar


def test_repaired_and_broken_are_counted() -> None:
    assert repaired_broken(flags(1, 1, 0, 0, 1), flags(0, 1, 1, 0, 0)) == (2, 1)


@pytest.mark.parametrize(("repaired", "broken"), [(1, 0), (7, 2), (2, 7), (5, 5), (12, 1)])
def test_mcnemar_is_the_exact_binomial(repaired: int, broken: int) -> None:
    changed = repaired + broken
    after = np.array([True] * repaired + [False] * broken + [True] * 9)
    before = np.array([False] * repaired + [True] * broken + [True] * 9)
    tail = sum(comb(changed, k) for k in range(max(repaired, broken), changed + 1)) / 2**changed
    assert mcnemar(after, before) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_of_no_change_is_one() -> None:
    assert mcnemar(flags(1, 0), flags(1, 0)) == 1.0


# ---- weights and clips


def test_weights_of_one_are_no_weights() -> None:
    assert effective_count(np.ones(7)) == 7
    assert effective_count(np.array([1.0, 0.0, 0.0])) == 1
    assert 2 < effective_count(np.array([1.0, 1.0, 0.5])) < 3


def test_a_weighted_gain_by_hand() -> None:
    after, before = flags(1, 1, 0, 1), flags(0, 1, 1, 1)
    redraws = ClusterBootstrap.of(["a", "b", "c", "d"])
    assert redraws.gain(after, before, np.array([3.0, 1.0, 1.0, 1.0]))[0] == pytest.approx(2 / 6)
    assert redraws.gain(after, before, np.ones(4))[0] == 0


def test_one_item_a_clip_is_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(300) < 0.5, rng.random(300) < 0.7
    clips = [str(i) for i in range(300)]
    gain = ClusterBootstrap.of(clips, draws=4000).gain(after, before, np.ones(300))
    assert gain == pytest.approx(paired_gain(after, before), abs=0.012)


def test_items_of_one_clip_come_and_go_together() -> None:
    """Items that only repeat each other tell nothing more: the interval must stay as wide."""
    rng = np.random.default_rng(2)
    before, after = rng.random(100) < 0.5, rng.random(100) < 0.7
    once = ClusterBootstrap.of([str(i) for i in range(100)], draws=4000)
    clips = [str(i // 5) for i in range(500)]
    repeated = ClusterBootstrap.of(clips, draws=4000)
    five = repeated.gain(after.repeat(5), before.repeat(5), np.ones(500))
    assert five == pytest.approx(once.gain(after, before, np.ones(100)), abs=0.02)


def test_a_part_without_items_has_no_gain() -> None:
    gain = ClusterBootstrap.of(["a", "b"]).gain(flags(1, 1), flags(0, 0), np.zeros(2))
    assert np.isnan(gain).all()
