from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steering.calibration.activations import (
    Activations,
    build_item_prompt,
    decode_answer,
    load_item_clip,
)
from steering.errors import AllEarsError, DataError
from steering.evaluation import evaluate as evaluations
from steering.evaluation.answering import ArmRunner
from steering.evaluation.arms import ARMS, permuted
from steering.evaluation.evaluate import JOURNAL, evaluate
from steering.generation import Sampling, SteeringPlan, generate, score_choices
from steering.items import Item, read
from steering.meters.waveform import read_meters
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.profile import Profile, Silence
from steering.prompt import silent_twin
from steering.readout import pool
from tests.steering.evaluation.judging import profile_of
from tests.steering.examples import write_items

SHORT = 4


def heard_of(model: AudioModel, item: Item) -> tuple[PrefillResult, PrefillResult, float]:
    """An item, its silence, and its score, each by a whole pass of its own."""
    prompt = build_item_prompt(model, item, load_item_clip(model, item))
    layers, heads = range(model.num_layers), profile_of(model).heads
    heard = prefill(model, prompt, heads=heads, layers=layers)
    silent = prefill(model, silent_twin(model, prompt), layers=layers)
    return heard, silent, float(heard.attention.sum(-1).mean())


def by_hand(model: AudioModel, item: Item) -> dict[str, tuple[PrefillResult, SteeringPlan]]:
    """Prompt and plan of the arms that are simple to say, for one item."""
    profile = profile_of(model)
    heard, silent, score = heard_of(model, item)
    difference = heard.states - silent.states
    live, intervention, strength = (
        pool(difference[[1, 2]], profile.intervention),
        profile.intervention,
        0.0,
    )
    strength = profile.gate.strength(score)
    gate, samples = profile.meter_gate, load_item_clip(model, item).samples
    assert gate is not None
    metered = float(gate.strengths(read_meters(samples, model.sample_rate_hz)[None])[0])
    turned, turned_silent, turned_score = heard_of(model, permuted(item, 0))
    turned_live = pool((turned.states - turned_silent.states)[[1, 2]], intervention)
    return {
        "bare": (heard, SteeringPlan()),
        "no_audio": (silent, SteeringPlan()),
        "fixed": (heard, SteeringPlan(live, 1.2, intervention)),
        "adaptive": (heard, SteeringPlan(live, strength, intervention)),
        "inverted": (heard, SteeringPlan(live, 2.0 - strength, intervention)),
        "calibrated": (heard, SteeringPlan(profile.direction, strength, intervention)),
        "all_layers": (heard, SteeringPlan(difference.mean(0), strength, intervention)),
        "meter_gate": (heard, SteeringPlan(live, metered, intervention)),
        "permuted_bare": (turned, SteeringPlan()),
        "permuted_adaptive": (
            turned,
            SteeringPlan(turned_live, profile.gate.strength(turned_score), intervention),
        ),
    }


def predictions_in(out: Path, key: str = "model_output") -> dict[str, list[str]]:
    return {
        path.name.split(".")[1]: [record[key] for record in json.loads(path.read_text())]
        for path in out.glob("predictions.*.json")
    }


# ---- the whole of it


def test_every_arm_answers_every_item(grouped: AudioModel, tmp_path: Path) -> None:
    data, out = write_items(tmp_path, 4), tmp_path / "out"
    items = read(data, tmp_path).items
    results = evaluate(grouped, profile_of(grouped), data, tmp_path, out, max_tokens=SHORT)

    predicted = predictions_in(out)
    expected = set(ARMS) - {"oracle_fixed_natural"}  # these items have no consistent wording
    assert set(predicted) == expected == set(results["arms"])
    for arm in expected:
        records = json.loads((out / f"predictions.{arm}.json").read_text())
        for record in records:
            record.pop("model_output")
        assert records == [item.record for item in items]
    strict = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert strict == json.loads(json.dumps(results))
    assert results["data"]["items"] == 4
    assert results["model"]["fingerprint"] == grouped.fingerprint
    assert results["meters"]["parts"]["conflict/weak"]["items"] == 2
    assert results["timeline"] is None, "these items know no events"
    assert "gain_over_meter_gate" in results["arms"]["adaptive"]
    assert "x " in results["asking"]["first_prompt"]
    rows = list(csv.DictReader((out / "items.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [item.id for item in items]
    tokens = list(csv.DictReader((out / "tokens.csv").read_text().splitlines()))
    assert {row["audio"] for row in tokens} == {item.audio.name for item in items}
    assert results["effect"]["tokens"]["count"] == len(tokens)
    assert results["effect"]["criterion"] == "correctness"
    assert (out / "report.html").stat().st_size > 10_000
    assert not list(out.glob(".*")), "nothing partial stays"
    assert not (out / JOURNAL).exists(), "the journal of a finished run is removed"

    for i, item in enumerate(items):
        hand = by_hand(grouped, item)
        texts = {
            arm: decode_answer(
                grouped, list(generate(grouped, heard, plan, Sampling(max_tokens=SHORT)))
            )
            for arm, (heard, plan) in hand.items()
        }
        assert {arm: predicted[arm][i] for arm in texts} == texts
        assert float(rows[i]["strength"]) == pytest.approx(hand["adaptive"][1].strength, abs=1e-3)
    assert len({tuple(texts) for texts in predicted.values()}) > 4, "arms differ"


def test_options_can_be_scored_instead(grouped: AudioModel, tmp_path: Path) -> None:
    data, out = write_items(tmp_path, 2), tmp_path / "out"
    items = read(data, tmp_path).items
    results = evaluate(grouped, profile_of(grouped), data, tmp_path, out, mode="choices")
    predicted = predictions_in(out)
    for i, item in enumerate(items):
        for arm, (heard, plan) in by_hand(grouped, item).items():
            choices = permuted(item, 0).choices if "permuted" in arm else item.choices
            best = int(np.argmax(score_choices(grouped, heard, plan, choices)))
            assert predicted[arm][i] == choices[best], arm
    assert results["asking"]["mode"] == "choices"
    assert all(text in items[0].choices for texts in predicted.values() for text in texts)


def test_a_stopped_run_goes_on_and_ends_the_same(
    grouped: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, data = profile_of(grouped), write_items(tmp_path, 4)
    whole = evaluate(grouped, profile, data, tmp_path, tmp_path / "whole", 7, max_tokens=SHORT)
    answered: list[int] = []
    answers = ArmRunner.answers

    def stopping(self: ArmRunner, i: int) -> dict[str, str]:
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(i)
        return answers(self, i)

    def counting(self: ArmRunner, i: int) -> dict[str, str]:
        answered.append(i)
        return answers(self, i)

    out = tmp_path / "stopped"
    monkeypatch.setattr(ArmRunner, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(grouped, profile, data, tmp_path, out, 7, max_tokens=SHORT)
    assert not (out / "results.json").exists()
    monkeypatch.setattr(ArmRunner, "answers", counting)
    with pytest.raises(DataError, match="another --out"):
        evaluate(grouped, profile, data, tmp_path, out, 8, max_tokens=SHORT)
    again = evaluate(grouped, profile, data, tmp_path, out, 7, max_tokens=SHORT)
    assert answered == [0, 1, 2, 3], "nothing is answered twice"
    assert again == whole
    for path in (tmp_path / "whole").glob("*.*"):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("silence", ["exact", "ladder"])
def test_strengths_are_of_the_silence_that_is_served(
    grouped: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence: Silence
) -> None:
    class Seen(Exception):
        pass

    def see(model: AudioModel, profile: Profile, items: object, seen: Activations, *_: Any) -> None:
        assert seen.exact_differences is not None
        raise Seen(np.array_equal(seen.differences, seen.exact_differences))

    monkeypatch.setattr(evaluations, "choose_strengths", see)
    profile = replace(profile_of(grouped), silence=silence)
    with pytest.raises(Seen) as caught:
        evaluate(grouped, profile, write_items(tmp_path, 4), tmp_path, tmp_path / "out")
    assert caught.value.args == (silence == "exact",)


def test_mmars_items_get_mmars_key(grouped: AudioModel, tmp_path: Path) -> None:
    data = write_items(tmp_path, 2)
    records: list[dict[str, Any]] = json.loads(data.read_text())
    data.write_text(json.dumps([{**r, "audio_path": r["audio_id"]} for r in records]))
    evaluate(grouped, profile_of(grouped), data, tmp_path, tmp_path / "out", max_tokens=1)
    assert set(map(len, predictions_in(tmp_path / "out", "answer_prediction").values())) == {2}


def test_faults_in_the_data_come_before_any_pass(
    grouped: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> Activations:
        raise AssertionError("a pass was run")

    monkeypatch.setattr(evaluations, "fill", never)
    data = write_items(tmp_path, 4)
    (tmp_path / "1.wav").unlink()
    with pytest.raises(DataError, match=r"1\.wav"):
        evaluate(grouped, profile_of(grouped), data, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mode_that_is_not_known_is_refused(grouped: AudioModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="generate, choices"):
        evaluate(grouped, profile_of(grouped), tmp_path, tmp_path, tmp_path, mode="guess")


# ---- without the extra `evaluate`


BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({packages!r}))  # None: an import of it fails
from steering.model import loading

def load(*_, **__):
    raise AssertionError("the model was loaded")

loading.load = load
import server.app, server.serve, steering.evaluation.evaluate
from server.cli import app
app(["evaluate", "--data", "items.json", "--out", "out"])
"""


@pytest.mark.parametrize("packages", [("matplotlib",), ("jinja2", "markupsafe", "matplotlib")])
def test_without_the_report_s_packages_it_says_so_at_once(packages: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(packages=packages)], capture_output=True, text=True
    )
    assert run.returncode == 1, run.stderr
    assert f"needs {', '.join(packages)}: pip install 'allears[evaluate]'" in run.stderr


def test_the_library_says_so_before_any_pass(
    grouped: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    data = write_items(tmp_path, 4)
    with pytest.raises(AllEarsError, match=r"pip install 'allears\[evaluate\]'"):
        evaluate(grouped, profile_of(grouped), data, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
