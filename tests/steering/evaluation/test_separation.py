from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from steering.evaluation.separation import RANDOM_SETS, correlation_map, listening_figures
from steering.heads import correlations
from steering.items import Item
from steering.measures import auroc
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import HEADS, activations, item, profile_of

EFFECT = np.random.default_rng(5).exponential(size=60)


def conflicts(count: int) -> list[Item]:
    cues = ("weak", "strong")
    return [item(f"{i}", "conflict", "sound", cues[i % 2]) for i in range(count)]


def test_listening_is_set_against_chance_and_confidence(grouped: AudioModel) -> None:
    recorded = activations(grouped, 60)
    effect = EFFECT + recorded.right
    figures = listening_figures(
        grouped, profile_of(grouped), conflicts(60), recorded, effect, seed=0
    )
    scores = recorded.scores(HEADS, grouped.num_heads)
    assert figures["clip_silence"] == 1.0
    assert figures["mean_right"] == pytest.approx(float(scores[recorded.right].mean()), abs=1e-4)
    assert figures["mean_right"] > figures["mean_wrong"] > figures["mean_silent"]
    cues: dict[str, Any] = figures["right_wrong_within_cue_of_conflict"]
    assert cues.keys() == {"weak", "strong"}
    for figure in cues.values():
        assert figure["items"] == 30
        assert figure["auroc"] > 0.85 > figure["top_probability"]
        assert figure["random_mean"] < figure["auroc"]
        assert figure["above_random_share"] > 0.9
    odd = np.arange(60) % 2 == 1
    assert cues["strong"]["effect"] == pytest.approx(
        auroc(effect[odd], recorded.right[odd]), abs=1e-4
    )
    assert 0.7 < figures["right_wrong_within_wording"]["effect"] < 1


@pytest.mark.parametrize("right", [True, False])
def test_what_can_not_be_measured_is_null(grouped: AudioModel, right: bool) -> None:
    alike = replace(activations(grouped, 8), right=np.full(8, right))
    figures = listening_figures(
        grouped, profile_of(grouped), conflicts(8), alike, EFFECT[:8], seed=0
    )
    json.dumps(figures, allow_nan=False)
    assert figures["right_wrong"] is None
    assert (figures["mean_right"] is None) != right
    assert (figures["mean_wrong"] is None) == right
    weak = figures["right_wrong_within_cue_of_conflict"]["weak"]
    assert weak.pop("items") == 4
    assert set(weak.values()) == {None}


def test_the_score_is_set_against_sixty_random_sets(grouped: AudioModel) -> None:
    recorded = activations(grouped, 60)
    figures = listening_figures(
        grouped, profile_of(grouped), conflicts(60), recorded, EFFECT, seed=0
    )
    within = figures["right_wrong_within_wording"]
    assert len(within["random_each"]) == RANDOM_SETS == 60
    assert within["random_each"] == sorted(within["random_each"])
    assert within["random_mean"] == pytest.approx(np.mean(within["random_each"]), abs=1e-3)
    assert within["auroc"] > within["random_best"]
    assert within["above_random_share"] == 1.0
    assert list(figures["right_wrong_within_cue_of_conflict"]) == ["weak", "strong"]


def test_the_map_is_the_correlation_of_every_head(grouped: AudioModel) -> None:
    recorded, items = activations(grouped, 60), conflicts(60)
    head_map = correlation_map(grouped, items, recorded)
    r = correlations(recorded.mass, recorded.right, [i.stratum for i in items])
    assert head_map is not None
    np.testing.assert_allclose(np.array(head_map).ravel(), r, atol=1e-4)
    assert np.array(head_map).shape == (grouped.num_layers, grouped.num_heads)
    alike = replace(recorded, right=np.ones(60, bool))
    assert correlation_map(grouped, items, alike) is None
