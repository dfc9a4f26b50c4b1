from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steering.calibration.activations import head_columns
from steering.calibration.effects.effect_heads import EffectData
from steering.calibration.effects.token_effects import TokenEffects
from steering.evaluation.effect_figures import (
    effect_figures,
    effect_table,
    open_questions,
    tokens_csv,
)
from steering.items import DataSet
from steering.measures import auroc
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import HEADS, activations, item, profile_of

ITEMS, PLACES = 60, 5
KNOWING = 13  # a head that knows the effect on tokens, and is none of the profile's


def items_of_pairs() -> DataSet:
    """Two items a clip, neutral and conflict."""
    made = [
        replace(item(f"{i}", ("neutral", "conflict")[i % 2]), audio=Path(f"{i // 2}.wav"))
        for i in range(ITEMS)
    ]
    return DataSet(tuple(made), "00ff", "items.json")


def token_effects(model: AudioModel) -> TokenEffects:
    """Random numbers of open answers, one a clip; one head knows the effect."""
    rng = np.random.default_rng(8)
    clips = ITEMS // 2
    effect = 2.0 ** rng.normal(0, 3, (clips, PLACES))
    mass = rng.uniform(0.40, 0.45, (clips, PLACES, model.num_layers * model.num_heads))
    mass[..., KNOWING] = 0.5 + 0.02 * np.log2(effect) + rng.normal(0, 0.01, effect.shape)
    numbers = (mass.astype(np.float32), effect.astype(np.float32))
    nothing = np.zeros((clips, 1), np.float32)
    ids = rng.integers(300, 400, (clips, PLACES))
    return TokenEffects(*numbers, np.full(clips, PLACES), ids, nothing, nothing)


def test_every_set_of_heads_is_set_against_the_effect(grouped: AudioModel) -> None:
    data, recorded = items_of_pairs(), activations(grouped, ITEMS)
    opened = open_questions(data, "What is it?")
    assert [each.id for each in opened.items] == [str(i) for i in range(0, ITEMS, 2)]
    assert {(each.question, each.choices) for each in opened.items} == {("What is it?", ())}
    assert opened.sha256 != open_questions(data, "What else?").sha256
    effects = token_effects(grouped)
    effect = np.where(recorded.right, 4.0, 0.2) + np.random.default_rng(1).random(ITEMS)
    places = EffectData.of(effects, opened.items)
    profile = profile_of(grouped)
    figures = effect_figures(grouped, profile, data.items, recorded, effect, places, 0)
    json.dumps(figures, allow_nan=False)

    tokens, own = figures["tokens"], figures["items"]
    assert tokens["count"] == ITEMS // 2 * PLACES and own["count"] == ITEMS
    assert tokens["decided_share"] == pytest.approx((effects.effect >= 1).mean(), abs=1e-4)
    assert set(tokens["sets"]) == set(own["sets"]) == {"correctness", "effect", "random"}
    by_effect = tokens["sets"]["effect"]
    assert by_effect["auroc"] > 0.9 and by_effect["above_random_share"] > 0.6
    assert by_effect["rank_correlation"] > 0.8
    assert tokens["sets"]["correctness"]["heads"] == len(HEADS)
    assert len(tokens["sets"]["random"]["each"]) == 60
    assert own["sets"]["correctness"]["auroc"] > 0.8, "these know which answers are right"
    assert own["sets"]["correctness"]["right_wrong"] > 0.8
    assert set(own["by_wording"]) == {"neutral", "conflict"}
    header, *rows = effect_table({"effect": figures})
    assert [row[0] for row in rows] == ["correctness", "effect", "random"]
    assert {len(row) for row in rows} == {len(header)}

    turned = replace(profile, calibration={"head_choice": {"criterion": "effect"}})
    named = effect_figures(grouped, turned, data.items, recorded, effect, places, 0)
    assert named["criterion"] == "effect"
    assert named["tokens"]["sets"]["effect"]["auroc"] == tokens["sets"]["correctness"]["auroc"]


def test_heads_are_judged_on_clips_that_they_were_not_chosen_on(grouped: AudioModel) -> None:
    """Of pure noise the choice looks good on its own clips, and is at chance on the others."""
    data, recorded = items_of_pairs(), activations(grouped, ITEMS)
    opened = open_questions(data, "What is it?")
    effects = token_effects(grouped)
    rng = np.random.default_rng(0)
    noise = replace(effects, mass=rng.random(effects.mass.shape).astype(np.float32))
    places = EffectData.of(noise, opened.items)
    figures = effect_figures(
        grouped, profile_of(grouped), data.items, recorded, np.arange(ITEMS) / 30, places, 0
    )
    assert figures["tokens"]["sets"]["effect"]["auroc"] == pytest.approx(0.5, abs=0.13)


def test_every_token_stands_in_a_table(grouped: AudioModel) -> None:
    opened, effects = open_questions(items_of_pairs(), "What?"), token_effects(grouped)
    text = tokens_csv(grouped, profile_of(grouped), opened, effects)
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == ITEMS // 2 * PLACES
    columns = head_columns(HEADS, grouped.num_heads)
    by_hand = float(effects.mass[1, 2, columns].mean())
    row = rows[PLACES + 2]
    assert (row["id"], row["audio"], row["place"]) == ("2", "1.wav", "2")
    assert float(row["score"]) == pytest.approx(by_hand, abs=1e-4)
    assert row["token"] == grouped.processor.tokenizer.decode([int(effects.token_ids[1, 2])])
    scores, bits = (np.array([float(r[key]) for r in rows]) for key in ("score", "effect_bits"))
    assert auroc(scores, bits >= 1) == pytest.approx(0.5, abs=0.2)
