from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from steering.evaluation.arms import choose_strengths
from steering.evaluation.controls import GRID, LAYER_SETS, Constants, control_figures, try_constants
from steering.evaluation.first_tokens import FirstTokens, one_token
from steering.items import Item
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import activations, item, profile_of

WORDINGS = ("neutral", "conflict", "consistent", "conflict")


def items(count: int) -> list[Item]:
    return [item(f"{i}", WORDINGS[i % 4], cue="" if i % 4 == 0 else "weak") for i in range(count)]


def test_the_best_constant_is_that_of_the_mix(grouped: AudioModel) -> None:
    known = one_token(grouped, items(4), "generate")
    tokens = FirstTokens(grouped, activations(grouped, 4), known)
    right = np.array([[1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1]], bool)
    weights = {
        "all": np.ones(4),
        "balanced": np.array([2.0, 0.75, 0.5, 0.75]),
        "natural": np.array([2.0, 0.25, 1.5, 0.25]),
    }
    constants = Constants(tokens, np.array([0.0, 0.5, 1.0]), right, weights)
    assert constants.best() == {"oracle_fixed": 0.5, "oracle_fixed_natural": 0.0}
    plain = replace(constants, weights={"all": np.ones(4)})
    assert plain.best() == {"oracle_fixed": 0.5}, "of equals the smallest"


def test_every_control_is_there_and_can_be_written(grouped: AudioModel) -> None:
    profile, sixty, recorded = profile_of(grouped), items(60), activations(grouped, 60)
    constants = try_constants(grouped, profile, sixty, recorded, "generate")
    assert constants.right.shape == (GRID, 60)
    assert constants.strengths[0] == 0 and constants.strengths[-1] == pytest.approx(3.0)
    arm_strengths = choose_strengths(grouped, profile, sixty, recorded, 0, constants.best())
    figures = control_figures(grouped, profile, sixty, recorded, constants, arm_strengths, seed=0)
    json.dumps(figures, allow_nan=False)
    assert figures["items"] == 60 and figures["left_out"] == 0
    assert {"bare", "adaptive", "fixed", "oracle_fixed", "oracle_fixed_natural"} <= set(
        figures["gates"]
    )
    assert {
        "wording_only",
        "cue_only",
        "shuffled",
        "divergence",
        "confidence",
        "meter_gate",
    } <= set(figures["gates"])
    for gate in figures["gates"].values():
        assert set(gate) == {"all", "balanced", "natural"}
    assert figures["gates"]["adaptive"]["all"]["gain_of_adaptive"] == [0, 0, 0]
    curve = figures["by_strength"]
    assert len(curve["strengths"]) == GRID == len(curve["mixes"]["natural"])
    assert curve["mixes"]["all"][0]["right_percent"] == pytest.approx(
        figures["gates"]["bare"]["all"]["right_percent"]
    )
    best = max(point["right_percent"] for point in curve["mixes"]["natural"])
    assert figures["gates"]["oracle_fixed_natural"]["natural"]["right_percent"] == best
    assert figures["random_layers"]["sets"] == LAYER_SETS >= 20
    assert figures["random_heads"]["sets"] == 60
    for each in (figures["random_layers"]["all"], figures["random_heads"]["all"]):
        assert each["mean_percent"] == pytest.approx(np.mean(each["each_percent"]), abs=0.01)
        assert each["sd_percent"] == pytest.approx(np.std(each["each_percent"], ddof=1), abs=0.01)
        mine = figures["gates"]["adaptive"]["all"]["right_percent"]
        above = np.mean(np.array(each["each_percent"]) < mine)
        assert each["chosen_above_share"] == pytest.approx(above, abs=1e-3)


def test_without_one_token_answers_it_says_so(grouped: AudioModel) -> None:
    profile, recorded = profile_of(grouped), activations(grouped, 4)
    long_answers = [
        replace(each, choices=("dog", "dog cow"), answer="dog cow") for each in items(4)
    ]
    constants = try_constants(grouped, profile, long_answers, recorded, "choices")
    assert constants.best() == {}
    arm_strengths = choose_strengths(grouped, profile, long_answers, recorded, 0, {})
    figures = control_figures(
        grouped, profile, long_answers, recorded, constants, arm_strengths, seed=0
    )
    assert figures["items"] == 0 and figures["left_out"] == 4
    assert "one token" in figures["reason"]
