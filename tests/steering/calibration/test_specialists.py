"""The choice of heads on planted data, and what chance makes of the same data."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.calibration import specialists
from steering.calibration.specialists import (
    HALVINGS,
    MIN_HEADS,
    SHUFFLES,
    HeadChoice,
    HeadData,
    against_chance,
    choose_heads,
    items_needed,
)
from steering.errors import DataError
from steering.heads import correlations
from steering.measures import auroc_against_silence, auroc_within_strata


def head_data(
    items: int, *, heads: int = 256, knowing: int = 0, effect: float = 1.0, seed: int = 0
) -> HeadData:
    """Items of two strata about clips of two; the first heads know the answer, with noise."""
    rng = np.random.default_rng(seed)
    right = rng.random(items) < 0.5
    heard = rng.normal(0.6, 0.1, (items, heads)).astype(np.float32)
    heard[:, :knowing] += np.float32(0.1 * effect) * right[:, None]
    silent = rng.normal(0.2, 0.1, (items, heads)).astype(np.float32)
    return HeadData(
        heard,
        silent,
        np.ones(heads, bool),
        heard,
        right,
        tuple("ab"[i % 2] for i in range(items)),
        np.array([f"{i // 4}.wav" for i in range(items)]),
    )


def plain_choice(data: HeadData) -> list[int]:
    """The greedy forward selection, set by set."""
    r = correlations(data.telling, data.right, data.strata)
    ranked = [int(i) for i in np.argsort(-r, kind="stable")[:48]]

    def quality(heads: list[int]) -> float:
        told, heard, silent = (m[:, heads].mean(1) for m in (data.telling, data.heard, data.silent))
        return auroc_within_strata(told, data.right, data.strata) + auroc_against_silence(
            heard, silent
        )

    chosen, best = ranked[:1], -np.inf
    while True:
        left = [head for head in ranked if head not in chosen]
        qualities = [quality([*chosen, head]) for head in left]
        if len(chosen) >= MIN_HEADS and max(qualities) < best + 1e-3:
            return chosen
        best = max(qualities)
        chosen.append(left[int(np.argmax(qualities))])


# ---- the choice


@pytest.mark.parametrize("seed", range(2))
def test_the_choice_is_that_of_trying_set_by_set(seed: int) -> None:
    data = head_data(60, heads=60, knowing=3, seed=seed)
    choice = choose_heads(data)
    assert list(choice.columns) == plain_choice(data)
    assert choice.tried >= 4 * 40


def test_a_head_that_is_deaf_is_no_candidate() -> None:
    data = head_data(120, knowing=3)
    deaf = replace(data, audible=np.arange(256) > 0)
    assert 0 in choose_heads(data).columns
    assert 0 not in choose_heads(deaf).columns


# ---- chance


def test_heads_that_know_are_above_chance() -> None:
    data = head_data(150, heads=30, knowing=4, effect=1.5)
    figures = against_chance(data, 400)
    assert figures["above_chance"] and "warning" not in figures
    assert figures["auroc_across"] > 0.75 > figures["chance_auroc_best"]
    assert figures["chance_auroc_mean"] == pytest.approx(0.5, abs=0.05)
    assert figures["r_best"] > 0.45 > 0.4 > figures["chance_r_best"]
    json.dumps(figures, allow_nan=False)
    assert figures == against_chance(data, 400)


def test_of_heads_that_know_nothing_a_choice_is_seldom_above_chance() -> None:
    """Each is with p = 1/40: more than 1 of 4 are with p = 0.004."""
    found = [against_chance(head_data(40, heads=8, seed=seed), 40) for seed in range(4)]
    assert sum(figures["above_chance"] for figures in found) <= 1


def test_a_choice_by_chance_says_what_is_missing() -> None:
    figures = against_chance(head_data(40, heads=30, knowing=2, effect=0.3, seed=3), 100)
    assert not figures["above_chance"]
    assert "no better than chance" in figures["warning"]
    assert "100 items, 40 of them telling" in figures["warning"]
    assert f"{figures['auroc_across']:.2f}" in figures["warning"]


def test_the_number_of_items_follows_the_distance_from_chance() -> None:
    by_chance = np.array([0.58, 0.60, 0.62])  # a spread of 0.02
    near, far = (items_needed(auroc, by_chance, 100) for auroc in (0.63, 0.615))
    assert near == 280 and far == 1200  # (2.5 / 1.5)^2 and (2.5 / 0.75)^2 times as many
    assert items_needed(0.605, by_chance, 100) is None, "no end in sight"
    assert items_needed(0.66, by_chance, 100) == 150, "always more than there are"


def test_answers_are_exchanged_within_strata_and_by_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    data = head_data(80, heads=8)
    seen: list[NDArray[np.bool_]] = []

    def watched(shuffled: HeadData) -> float:
        seen.append(shuffled.right)
        return 0.0

    monkeypatch.setattr(specialists, "_best_r", watched)
    monkeypatch.setattr(specialists, "_across_halves", lambda *_: 0.5)
    against_chance(data, 80)
    assert len(seen) == 1 + SHUFFLES
    strata, clips = np.array(data.strata), data.clips
    for shuffled in seen[1:]:
        for stratum in "ab":
            rows = strata == stratum
            pairs, before = (
                sorted(tuple(each[rows & (clips == clip)]) for clip in set(clips))
                for each in (shuffled, data.right)
            )
            assert pairs == before, "the two answers about a clip stay together"
    assert len({flags.tobytes() for flags in seen}) == len(seen)


def test_heads_are_judged_on_clips_they_were_not_chosen_on(monkeypatch: pytest.MonkeyPatch) -> None:
    data = head_data(80, heads=8)
    halves: list[set[str]] = []

    def watched(half: HeadData) -> HeadChoice:
        halves.append(set(half.clips))
        return choose_heads(half)

    monkeypatch.setattr(specialists, "choose_heads", watched)
    against_chance(data, 80)
    assert len(halves) == 2 * HALVINGS * (1 + SHUFFLES)
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        assert not first & second and first | second == set(data.clips)


def test_without_right_and_wrong_answers_nothing_can_be_told() -> None:
    with pytest.raises(DataError, match="every item is right"):
        against_chance(replace(head_data(40), right=np.ones(40, bool)), 40)
