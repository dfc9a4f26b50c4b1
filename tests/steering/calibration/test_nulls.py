from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.calibration.nulls import RANDOM_LAYERS, random_heads, random_layers, stability
from steering.calibration.specialists import HeadData
from steering.measures import auroc, auroc_within_strata
from tests.steering.calibration.test_specialists import head_data

ITEMS, HEADS = 200, 64


def test_random_heads_lose_to_heads_that_know() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(ITEMS) < 0.5
    mass = rng.random((ITEMS, HEADS)).astype(np.float32)
    mass[:, 3] += right
    strata = ["a", "b"] * (ITEMS // 2)
    fold = np.arange(ITEMS) % 5
    by_stratum = random_heads(mass, right, strata, fold, [[3, 7]] * 5)["strata"]
    assert set(by_stratum) == {"all", "a", "b"}
    for figures in by_stratum.values():
        assert figures["auroc"] > 0.85
        assert 0.4 < figures["random_mean"] < 0.65
        assert figures["share_beaten"] > 0.9
    lost = random_heads(mass, right, strata, fold, [[8, 9]] * 5)["strata"]["all"]
    assert 0 < lost["share_beaten"] < 0.95, "heads that know nothing are random ones"


def test_a_stratum_of_right_answers_only_has_no_figure() -> None:
    mass = np.random.default_rng(1).random((20, 8)).astype(np.float32)
    right = np.arange(20) % 2 == 0
    strata = ["even" if flag else "mixed" for flag in right]
    strata[0] = "mixed"
    figures = random_heads(mass, right, strata, np.zeros(20, np.int64), [[0]])
    assert "even" not in figures["strata"] and "mixed" in figures["strata"]
    json.dumps(figures, allow_nan=False)


def test_random_layers_are_as_many_and_the_same_in_every_fold() -> None:
    tried: list[list[tuple[int, ...]]] = []

    def judged(layers: Sequence[tuple[int, ...]]) -> float:
        tried.append(list(layers))
        return 0.9 if layers[0] == (6, 7) else 0.5

    figures = random_layers(8, [(6, 7), (6, 7), (7,)], judged)
    assert tried[0] == [(6, 7), (6, 7), (7,)]
    assert len(tried) == 1 + RANDOM_LAYERS == 1 + figures["seeds"]
    for first, second, third in tried[1:]:
        assert first == second and len(set(first)) == 2 and third[0] in first
    assert figures["accuracy_percent"] == 90 and figures["random_mean_percent"] < 60
    assert figures["share_beaten"] > 0.8
    assert "all layers" in random_layers(2, [(0, 1)], lambda _: 0.5)["note"]


def test_halves_that_agree_and_halves_that_can_not_say() -> None:
    whole = head_data(ITEMS, heads=8, knowing=5)
    clips = whole.clips
    seen: list[set[str]] = []

    def part_of(rows: NDArray[np.int64]) -> HeadData:
        seen.append(set(clips[rows]))
        part = {
            f: getattr(whole, f)[rows] for f in ("heard", "silent", "telling", "right", "clips")
        }
        return replace(whole, **part, strata=tuple(whole.strata[i] for i in rows))

    figures = stability(clips, part_of)
    assert len(seen) == 2 * figures["splits"]
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert not first & second, "items of one clip are in one half"
    assert figures["auroc_across"] > 0.8
    assert figures["shared"] >= 4 and figures["specialists"] >= 4
    correlation = figures["rank_correlation"]
    assert figures["reliability"] == pytest.approx(
        2 * max(correlation, 0) / (1 + max(correlation, 0)), abs=1e-3
    )

    def undefined(rows: NDArray[np.int64]) -> HeadData:
        return replace(part_of(rows), right=np.ones(len(rows), bool))

    assert "not known" in stability(clips, undefined)["note"]


def test_within_averages_strata_by_their_pairs() -> None:
    scores = np.array([1.0, 2.0, 3.0, 0.5, 0.1, 0.2, 9.0], np.float32)
    right = np.array([False, True, True, True, False, True, True])
    strata = ["a", "a", "a", "b", "b", "b", "c"]  # c holds no wrong answer
    a, b = auroc(scores[:3], right[:3]), auroc(scores[3:6], right[3:6])
    assert auroc_within_strata(scores, right, strata) == pytest.approx((2 * a + 2 * b) / 4)
    assert np.isnan(auroc_within_strata(scores, np.ones(7, bool), strata))
