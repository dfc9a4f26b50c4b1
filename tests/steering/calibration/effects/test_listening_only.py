"""Calibrations by effect: of items without answers, of models that know nothing or everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steering.calibration import data_checks
from steering.calibration.activations import head_columns
from steering.calibration.assembly import assembled
from steering.calibration.calibrate import calibrate, fit_profile
from steering.calibration.data_checks import MIN_ITEMS, check_items
from steering.calibration.effects import token_effects
from steering.calibration.effects.effect_heads import EffectData
from steering.calibration.effects.listening_only import fit_listening
from steering.calibration.effects.token_effects import TokenEffects
from steering.errors import DataError
from steering.generation import Sampling
from steering.model.audio_model import AudioModel
from steering.profile import load, save
from tests.steering.calibration.test_calibrate import ITEMS, activations, dataset
from tests.steering.examples import write_items

KNOWING = ((5, 3), (2, 6), (6, 0), (5, 1))


def effects(model: AudioModel, items: int = ITEMS, places: int = 4) -> TokenEffects:
    """Random numbers; some heads know the effect."""
    rng = np.random.default_rng(6)
    effect = 2.0 ** rng.normal(-1, 3, (items, places))
    mass = rng.uniform(0.2, 0.6, (items, places, model.num_layers * model.num_heads))
    for column in head_columns(KNOWING, model.num_heads):
        mass[..., column] = 0.4 + 0.02 * np.log2(effect) + rng.normal(0, 0.02, effect.shape)
    shape = (items, model.num_layers, model.hidden_size)
    return TokenEffects(
        mass.astype(np.float32),
        effect.astype(np.float32),
        np.full(items, places),
        np.zeros((items, places), np.int64),
        mass[:, 0].astype(np.float32) - 1,
        rng.standard_normal(shape).astype(np.float32),
    )


def without_answers(folder: Path, count: int = MIN_ITEMS) -> Path:
    """Items of which only sound and question are known."""
    path = write_items(folder, count)
    kept = [
        {key: record[key] for key in ("id", "audio_id", "question")}
        for record in json.loads(path.read_text())
    ]
    path.write_text(json.dumps(kept))
    return path


def test_items_without_answers_make_a_profile_of_the_score_alone(
    untrained: AudioModel, tmp_path: Path
) -> None:
    recorded = effects(untrained)
    data = EffectData.of(recorded, dataset().items)
    fitted = fit_listening(untrained, recorded, data)
    save(assembled(untrained, dataset(), fitted, "user data", None), tmp_path / "out")
    profile = load(tmp_path / "out")
    assert set(profile.heads) == set(KNOWING)
    assert min(profile.correlations) > 0.8
    assert profile.criterion == profile.calibration["head_choice"]["criterion"] == "effect"
    assert profile.max_strength == 0 and profile.refusal and "without answers" in profile.refusal
    assert profile.layers == (2, 5, 6)
    by_hand = recorded.differences[:, [2, 5, 6]].mean((0, 1))
    np.testing.assert_allclose(profile.direction.numpy(), by_hand, atol=1e-5)
    first = recorded.mass[:, 0, head_columns(profile.heads, untrained.num_heads)].mean(1)
    decided = recorded.effect[:, 0] >= 1
    old = {key: value for key, value in profile.calibration.items() if key != "head_choice"}
    save(replace(profile, calibration=old), tmp_path / "old")
    assert load(tmp_path / "old").criterion == "correctness", "there was no other"
    heard = np.array([profile.verdicts.of(score) == "listening" for score in first])
    assert (heard == decided).mean() > 0.9


def test_a_model_that_is_always_right_gets_its_heads_by_effect(untrained: AudioModel) -> None:
    recorded = replace(
        activations(untrained, helps=False), right=np.ones(ITEMS, bool), exact_differences=None
    )
    by_effect = EffectData.of(effects(untrained), dataset().items)
    with pytest.raises(DataError, match="--criterion effect"):
        fit_profile(untrained, dataset(), recorded)
    profile = fit_profile(untrained, dataset(), recorded, by_effect=by_effect)
    assert set(profile.heads) == set(KNOWING)
    assert profile.criterion == "effect" and "effect" in profile.calibration["heads_optimise"]
    assert profile.max_strength == 0 and profile.refusal
    assert profile.held_out["auroc_right_wrong"] is None
    json.dumps([dict(profile.held_out), dict(profile.calibration)], allow_nan=False)


def test_with_answers_the_strength_is_fitted_behind_heads_by_effect(untrained: AudioModel) -> None:
    by_effect = EffectData.of(effects(untrained), dataset().items)
    recorded = replace(activations(untrained, helps=True), exact_differences=None)
    profile = fit_profile(untrained, dataset(), recorded, by_effect=by_effect)
    assert profile.criterion == "effect" and profile.max_strength > 0
    assert profile.held_out["gain_balanced"][1] > 0
    assert "halves" not in profile.held_out["nulls"], "that is of right answers"


def test_a_model_of_random_weights_is_refused_in_plain_words(
    untrained: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_effects, "ANSWER", Sampling(max_tokens=1))
    monkeypatch.setattr(data_checks, "MIN_ITEMS", 10)
    data, out = without_answers(tmp_path, 10), tmp_path / "out"
    with pytest.raises(DataError, match="without choices, answer"):
        calibrate(untrained, data, tmp_path, out)
    with pytest.raises(DataError, match="hardly changes what this model says: 0 of"):
        calibrate(untrained, data, tmp_path, out, criterion="effect")
    assert not out.exists()


def test_items_without_answers_are_sound_data_for_it(tmp_path: Path) -> None:
    data = check_items(without_answers(tmp_path), tmp_path, labelled=False)
    assert len(data.items) == MIN_ITEMS and not data.labelled
    assert {(item.choices, item.answer) for item in data.items} == {((), "")}
    assert check_items(write_items(tmp_path, MIN_ITEMS), tmp_path, labelled=False).labelled
