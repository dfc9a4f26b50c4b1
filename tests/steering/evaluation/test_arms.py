from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from steering.evaluation.arms import (
    ARMS,
    PERMUTED_ARMS,
    Differences,
    another_clip,
    choose_strengths,
    group_means,
    permuted,
    plans,
    rank_matched,
    shuffled,
)
from steering.items import Item, read
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import activations, item, profile_of
from tests.steering.examples import write_items

WORDINGS = ("neutral", "conflict", "consistent", "conflict")
CUES = ("", "weak", "weak", "strong")


def items(count: int) -> list[Item]:
    return [item(f"{i}", WORDINGS[i % 4], cue=CUES[i % 4]) for i in range(count)]


def test_strengths_are_what_the_arms_say(grouped: AudioModel) -> None:
    profile, recorded, forty = profile_of(grouped), activations(grouped, 40), items(40)
    arm_strengths = choose_strengths(grouped, profile, forty, recorded, 3, {"oracle_fixed": 0.7})
    by_arm = arm_strengths.by_arm
    scores = recorded.scores(profile.heads, grouped.num_heads)
    adaptive = np.array([profile.gate.strength(float(score)) for score in scores])
    for arm in ("adaptive", "calibrated", "random_layers", "all_layers", "text_only", "other_item"):
        np.testing.assert_allclose(by_arm[arm], adaptive)
    assert set(by_arm["fixed"]) == {1.2} and set(by_arm["oracle_fixed"]) == {0.7}
    for arm in ("random_heads", "shuffled"):
        np.testing.assert_allclose(np.sort(by_arm[arm]), np.sort(adaptive))
        assert not np.allclose(by_arm[arm], adaptive)
    np.testing.assert_allclose(by_arm["inverted"], 2.0 - adaptive, atol=1e-9)
    assert len(np.unique(by_arm["wording_only"])) == 4, "one strength a wording and cue"
    assert len(np.unique(by_arm["cue_only"])) == 3, "one a cue"
    assert len(set(arm_strengths.random_layers)) == 2
    again = choose_strengths(grouped, profile, forty, recorded, 3, {"oracle_fixed": 0.7})
    assert all((again.by_arm[arm] == by_arm[arm]).all() for arm in by_arm)
    assert set(by_arm) | {"bare", "aad", "no_audio", "oracle_fixed_natural", *PERMUTED_ARMS} == set(
        ARMS
    )


def test_without_wordings_no_gate_knows_them(grouped: AudioModel) -> None:
    plain = [item(f"{i}") for i in range(20)]
    arm_strengths = choose_strengths(
        grouped, profile_of(grouped), plain, activations(grouped, 20), 0, {}
    )
    assert not {"wording_only", "cue_only", "oracle_fixed"} & set(arm_strengths.by_arm)


def test_the_lowest_score_gets_the_largest_strength() -> None:
    handed = rank_matched(np.array([0.1, 0.9, 0.5]), np.array([7.0, 3.0, 5.0]))
    assert handed.tolist() == [0.1, 0.9, 0.5]
    assert rank_matched(np.array([0.1, 0.9, 0.5]), np.array([1.0, 2.0, 3.0])).tolist() == [
        0.9,
        0.5,
        0.1,
    ]


def test_shuffling_stays_within_groups() -> None:
    groups = np.array(["a", "b"] * 20)
    strengths = np.arange(40.0)
    exchanged = shuffled(strengths, groups, np.random.default_rng(0))
    assert (exchanged % 2 == strengths % 2).all()
    assert (exchanged != strengths).any()
    assert sorted(exchanged) == sorted(strengths)


def test_a_group_has_its_mean() -> None:
    scores = np.array([1.0, 2.0, 3.0, 5.0], np.float32)
    assert group_means(scores, np.array(["a", "b", "a", "b"])).tolist() == [2.0, 3.5, 2.0, 3.5]


def test_plans_take_the_states_that_their_arm_names(grouped: AudioModel) -> None:
    profile, recorded = profile_of(grouped), activations(grouped, 8)
    arm_strengths = choose_strengths(grouped, profile, items(8), recorded, 0, {})
    layers, width = grouped.num_layers, grouped.hidden_size
    differences = Differences(*(torch.randn(layers, width) for _ in range(3)))
    plan_by_arm = plans(profile, arm_strengths, 5, differences)
    expected = {
        "adaptive": differences.clip[[1, 2]].mean(0),
        "fixed": differences.clip[[1, 2]].mean(0),
        "inverted": differences.clip[[1, 2]].mean(0),
        "all_layers": differences.clip.mean(0),
        "random_layers": differences.clip[list(arm_strengths.random_layers)].mean(0),
        "text_only": differences.text_only[[1, 2]].mean(0),
        "other_item": differences.other_clip[[1, 2]].mean(0),
        "calibrated": profile.direction,
    }
    for arm, direction in expected.items():
        got = plan_by_arm[arm].direction
        assert got is not None
        torch.testing.assert_close(got, direction)
        assert plan_by_arm[arm].strength == arm_strengths.by_arm[arm][5]
    assert plan_by_arm["bare"].direction is None


def test_another_items_direction_is_that_of_another_clip(tmp_path: Path) -> None:
    dataset_items = read(write_items(tmp_path, 6), tmp_path).items  # two items a clip
    assert [another_clip(dataset_items, i) for i in range(6)] == [2, 2, 4, 4, 0, 0]
    assert another_clip(dataset_items[:2], 1) == 1


def test_options_are_put_in_another_order() -> None:
    orders = set()
    for i in range(30):
        turned = permuted(item(f"{i}"), seed=0)
        assert sorted(turned.choices) == ["cat", "cow", "dog"]
        assert turned.choices != ("dog", "cow", "cat"), "never the same order"
        assert replace(turned, choices=("dog", "cow", "cat")) == item(f"{i}")
        orders.add(turned.choices)
    assert len(orders) > 2
    assert permuted(item("a"), 1) == permuted(item("a"), 1)
