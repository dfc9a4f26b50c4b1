"""The choice of heads by effect on planted data, and what chance makes of the same data."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from steering.calibration.effects.effect_heads import (
    EffectData,
    choose_by_effect,
    effect_against_chance,
    refuse_without_effect,
)
from steering.errors import DataError


def effect_data(items: int, *, knowing: int, places: int = 6, seed: int = 0) -> EffectData:
    """Answers of `places` tokens of which the first has most effect; some heads know the rest, and
    the last head knows the place.
    """
    rng = np.random.default_rng(seed)
    item, place = np.repeat(np.arange(items), places), np.tile(np.arange(places), items)
    effect = 2.0 ** rng.normal(-1.0 - 0.8 * place, 2.0)
    mass = rng.normal(0.5, 0.1, (items * places, 64))
    mass[:, :knowing] += 0.04 * np.log2(effect)[:, None]
    mass[:, -1] = 0.6 - 0.1 * place + rng.normal(0, 0.01, len(place))
    return EffectData(
        mass.astype(np.float32),
        effect.astype(np.float32),
        item,
        place,
        ("",) * items,
        np.array([f"{i // 2}.wav" for i in range(items)]),
    )


def test_the_heads_that_know_the_effect_are_chosen() -> None:
    data = effect_data(60, knowing=5)
    choice = choose_by_effect(data)
    assert set(range(5)) <= set(choice.columns)
    score = data.mass[:, list(choice.columns)].mean(1)
    by_hand = [np.corrcoef(column, data.log_effect)[0, 1] for column in (data.mass.T[0], score)]
    assert choice.r[0] == pytest.approx(by_hand[0], abs=1e-4)
    assert by_hand[1] > choice.r.max(), "together they know more than the best alone"


def test_what_differs_between_wordings_only_chooses_no_head() -> None:
    data = effect_data(60, knowing=0)
    loud = data.item % 4 >= 2  # of clips, so of wordings
    mass = data.mass.copy()
    mass[:, 7] += loud
    louder = replace(data, mass=mass, effect=np.where(loud, 100 * data.effect, data.effect))
    apart = replace(louder, strata=tuple("ab"[i % 4 >= 2] for i in range(60)))
    assert choose_by_effect(louder).r[7] > 0.7 > 0.2 > choose_by_effect(apart).r[7]


def test_heads_that_know_are_above_chance_and_those_that_know_the_place_are_not() -> None:
    figures = effect_against_chance(effect_data(40, knowing=3))
    assert figures["criterion"] == "effect" and figures["above_chance"]
    assert "warning" not in figures
    assert figures["r_across"] > figures["chance_r_best"] > 0.3, "the place is known by chance too"
    assert 0.8 < figures["auroc_across"] < 1
    json.dumps(figures, allow_nan=False)
    blind = [effect_against_chance(effect_data(40, knowing=0, seed=seed)) for seed in range(4)]
    assert sum(each["above_chance"] for each in blind) <= 1, "each is with p = 1/40"
    warned = next(each for each in blind if not each["above_chance"])
    assert "no better than chance" in warned["warning"] and "40 items" in warned["warning"]
    assert warned["r_across"] > 0.3, "in sample and out of it, place alone looks like knowledge"


def test_without_an_effect_there_is_nothing_to_choose_by() -> None:
    data = effect_data(60, knowing=3)
    refuse_without_effect(data)
    deaf = replace(data, effect=data.effect * np.float32(1e-5))
    with pytest.raises(DataError, match="hardly changes what this model says: 0 of 30 clips"):
        refuse_without_effect(deaf)
    with pytest.raises(DataError, match="the same to every answer"):
        choose_by_effect(replace(data, effect=np.zeros_like(data.effect)))


def test_places_of_some_items_in_the_order_asked() -> None:
    data = effect_data(6, knowing=0, places=3)
    some = data.select(np.array([4, 1]))
    np.testing.assert_array_equal(some.effect, data.effect[[12, 13, 14, 3, 4, 5]])
    np.testing.assert_array_equal(some.item, [0, 0, 0, 1, 1, 1])
    assert some.clips.tolist() == ["2.wav", "0.wav"]
