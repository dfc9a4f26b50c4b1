from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steering.evaluate import ARMS, evaluate, figures, listening_figures, table

from steering import evaluate as evaluations
from steering import evidence as evidences
from steering.answer import Plan, Sampling
from steering.errors import DataError
from steering.evidence import Evidence, answer_text, clip_of, prompt_of
from steering.heads import Verdicts
from steering.items import DataSet, Item, read
from steering.measures import mcnemar, paired_gain, wilson
from steering.model import AudioModel
from steering.prefill import prefill
from steering.profile import Profile
from steering.prompt import silent_twin
from steering.readout import Intervention, pool
from steering.strength import Gate
from tests.steering.examples import write_items

SHORT = Sampling(max_tokens=4)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidences, "ANSWER", SHORT)
    monkeypatch.setattr(evaluations, "ANSWER", SHORT)


def profile_of(model: AudioModel) -> Profile:
    """A profile that fits, with a gate in the middle of the scores of an untrained model."""
    return Profile(
        name="mine",
        model=model.name,
        revision=None,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=((1, 3), (2, 6), (0, 1)),
        correlations=(0.3, 0.2, 0.1),
        how=Intervention(layers=(1, 2)),
        gate=Gate(2.0, 0.3, 0.1),
        fixed_strength=1.2,
        verdicts=Verdicts(0.2, 0.4),
        calibration={},
        held_out={},
        versions={},
        direction=torch.randn(model.width, generator=torch.Generator().manual_seed(0)),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        head_mean=np.full(3, 0.3, np.float32),
        head_std=np.full(3, 0.1, np.float32),
    )


# ---- the whole of it


def test_every_arm_answers_every_item(grouped: AudioModel, tmp_path: Path) -> None:
    profile = profile_of(grouped)
    data = write_items(tmp_path, 4)
    items = read(data, tmp_path).items
    results = evaluate(grouped, profile, data, tmp_path, tmp_path / "out")

    said: dict[str, list[str]] = {}
    for arm in ARMS:
        records = json.loads((tmp_path / "out" / f"predictions.{arm}.json").read_text())
        assert [r["id"] for r in records] == [item.id for item in items]
        said[arm] = [r.pop("model_output") for r in records]
        assert records == [item.record for item in items]
    strict = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert strict == json.loads(json.dumps(results))
    assert set(results["arms"]) == set(ARMS)
    assert results["data"]["items"] == 4
    assert results["model"]["fingerprint"] == grouped.fingerprint
    assert not list((tmp_path / "out").glob(".*")), "nothing partial stays"

    for i, item in enumerate(items):
        asked = prompt_of(grouped, item, clip_of(grouped, item))
        layers = range(grouped.layers)
        heard = prefill(grouped, asked, heads=profile.heads, layers=layers)
        silent = prefill(grouped, silent_twin(grouped, asked), layers=layers)
        score = float(heard.attention.sum(-1).mean())
        difference = heard.states - silent.states
        live = pool(difference[[1, 2]], profile.how)
        strength = profile.gate.strength(score)
        by_hand = {
            "bare": answer_text(grouped, heard),
            "no_audio": answer_text(grouped, silent),
            "fixed": answer_text(grouped, heard, Plan(live, 1.2, profile.how)),
            "adaptive": answer_text(grouped, heard, Plan(live, strength, profile.how)),
            "calibrated": answer_text(
                grouped, heard, Plan(profile.direction, strength, profile.how)
            ),
            "all_layers": answer_text(
                grouped, heard, Plan(difference.mean(0), strength, profile.how)
            ),
        }
        assert {arm: said[arm][i] for arm in by_hand} == by_hand
    assert len({tuple(texts) for texts in said.values()}) > 4, "arms differ"


def test_the_same_seed_gives_the_same_figures(grouped: AudioModel, tmp_path: Path) -> None:
    data = write_items(tmp_path, 2)
    first, again = (
        evaluate(grouped, profile_of(grouped), data, tmp_path, tmp_path / name, seed=7)
        for name in ("one", "two")
    )
    assert first == again


def test_faults_in_the_data_come_before_any_pass(
    grouped: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Evidence:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(evaluations, "gather", never)
    data = write_items(tmp_path, 4)
    (tmp_path / "1.wav").unlink()
    with pytest.raises(DataError, match=r"1\.wav"):
        evaluate(grouped, profile_of(grouped), data, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_controls_are_what_they_say(grouped: AudioModel) -> None:
    profile = profile_of(grouped)
    shown = evidence(grouped, 40)
    controls = evaluations._controls(grouped, profile, shown, seed=3)
    scores = shown.scores(profile.heads, grouped.heads)
    assert len(set(controls.random_layers)) == len(profile.how.layers)
    np.testing.assert_allclose(controls.adaptive, [profile.gate.strength(float(s)) for s in scores])
    np.testing.assert_allclose(
        np.sort(controls.random_heads), np.sort(controls.adaptive), err_msg="other items, as strong"
    )
    assert not np.allclose(controls.random_heads, controls.adaptive)
    np.testing.assert_allclose(
        controls.inverted, profile.gate.max_strength - controls.adaptive, atol=1e-5
    )


def test_another_items_direction_is_that_of_another_clip(tmp_path: Path) -> None:
    items = read(write_items(tmp_path, 6), tmp_path).items  # two items a clip
    assert [evaluations._next_clip(items, i) for i in range(6)] == [2, 2, 4, 4, 0, 0]
    assert evaluations._next_clip(items[:2], 1) == 1


# ---- figures


def item(name: str, wording: str, task: str, cue: str = "") -> Item:
    return Item(name, Path("x.wav"), "Which?", ("dog", "cow"), "dog", task, wording, cue, {})


def test_figures_by_hand() -> None:
    items = (
        item("a", "neutral", "sound"),
        item("b", "conflict", "sound", "weak"),
        item("c", "conflict", "music", "weak"),
        item("d", "", "music"),
    )
    outputs = {
        "bare": ["dog", "cow", "cow", "dog"],
        "fixed": ["dog", "dog", "cow", "cow"],
        "aad": ["cow", "cow", "cow", ""],
    }
    found = figures(DataSet(items, "", ""), outputs)
    assert found["bare"]["right_percent"] == {
        "all": 50,
        "conflict": 0,
        "neutral": 100,
        "music": 50,
        "sound": 50,
    }
    assert found["fixed"]["repaired_broken"] == [1, 1]
    assert found["aad"]["repaired_broken"] == [0, 2]
    bare, fixed, aad = (np.array([t == "dog" for t in outputs[arm]]) for arm in outputs)
    assert found["aad"]["mcnemar_p"] == mcnemar(aad, bare)
    assert found["bare"]["wilson_percent"] == pytest.approx(
        [100 * x for x in wilson(2, 4)], abs=0.01
    )
    assert found["fixed"]["gain_over_aad"] == pytest.approx(
        [100 * x for x in paired_gain(fixed, aad)], abs=0.01
    )
    assert found["bare"]["gain_over_bare"] == [0, 0, 0]


def test_the_table_is_for_people() -> None:
    outputs = {"bare": ["dog", "cow"], "fixed": ["dog", "dog"], "aad": ["cow", "cow"]}
    items = (item("a", "neutral", "sound"), item("b", "conflict", "sound"))
    rows = table({"arms": figures(DataSet(items, "", ""), outputs)})
    assert rows[0] == [
        "arm",
        "all",
        "conflict",
        "neutral",
        "sound",
        "gain over bare",
        "repaired / broken",
    ]
    assert [row[0] for row in rows[1:]] == ["bare", "fixed", "aad"]
    assert {len(row) for row in rows} == {7}
    assert rows[2][1:4] == ["100.0", "100.0", "100.0"]
    assert rows[2][-1] == "1 / 0"


def evidence(model: AudioModel, count: int) -> Evidence:
    """Random numbers; the profile's heads see which answers are right."""
    rng = np.random.default_rng(2)
    right = rng.random(count) < 0.5
    mass = rng.random((count, model.layers * model.heads)).astype(np.float32)
    mass[:, [11, 22, 1]] += 0.5 * right[:, None].astype(np.float32)
    return Evidence(
        mass=mass,
        silent_mass=mass - 3,
        differences=np.zeros((count, model.layers, 1), np.float32),
        final=np.zeros((count, 1), np.float32),
        first_token=np.zeros(count, np.int64),
        right=right,
        top_probability=rng.random(count).astype(np.float32),
    )


def conflicts(count: int) -> DataSet:
    cues = ("weak", "strong")
    return DataSet(
        tuple(item(f"{i}", "conflict", "sound", cues[i % 2]) for i in range(count)), "", ""
    )


def test_listening_is_set_against_chance_and_confidence(grouped: AudioModel) -> None:
    shown = evidence(grouped, 60)
    found = listening_figures(grouped, profile_of(grouped), conflicts(60), shown, seed=0)
    scores = shown.scores(((1, 3), (2, 6), (0, 1)), grouped.heads)
    assert found["clip_silence"] == 1.0
    assert found["mean_right"] == pytest.approx(float(scores[shown.right].mean()), abs=1e-4)
    assert found["mean_right"] > found["mean_wrong"] > found["mean_silent"]
    cues: dict[str, Any] = found["right_wrong_within_cue_of_conflict"]
    assert cues.keys() == {"weak", "strong"}
    for figure in cues.values():
        assert figure["items"] == 30
        assert figure["auroc"] > 0.85 > figure["top_probability"]
        assert figure["random_mean"] < figure["auroc"]
        assert figure["above_random_share"] > 0.9


@pytest.mark.parametrize("right", [True, False])
def test_what_can_not_be_measured_is_null(grouped: AudioModel, right: bool) -> None:
    alike = replace(evidence(grouped, 8), right=np.full(8, right))
    found = listening_figures(grouped, profile_of(grouped), conflicts(8), alike, seed=0)
    json.dumps(found, allow_nan=False)
    assert found["right_wrong"] is None
    assert (found["mean_right"] is None) != right
    assert (found["mean_wrong"] is None) == right
    weak = found["right_wrong_within_cue_of_conflict"]["weak"]
    assert weak.pop("items") == 4
    assert set(weak.values()) == {None}
