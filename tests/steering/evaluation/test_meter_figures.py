from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.evaluation.meter_figures import ALL, WITHIN, meter_figures
from steering.items import Item
from steering.measures import auroc
from steering.meters.waveform import METERS
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import activations, item, profile_of

ITEMS = 60
CUES = ("weak", "strong")
EFFECT = np.random.default_rng(5).exponential(size=ITEMS)
SCORES = np.random.default_rng(6).random(ITEMS).astype(np.float32)


def items(wording: str = "conflict") -> list[Item]:
    return [item(f"{i}", wording, "sound", CUES[i % 2]) for i in range(ITEMS)]


def figures_with(
    model: AudioModel, peak: NDArray[np.float32], asked: list[Item], *, gate: bool = True
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Figures where the peak level is given, and which answers are right."""
    recorded = activations(model, ITEMS)
    assert recorded.meters is not None
    recorded.meters[:, 0] = peak
    profile = profile_of(model)
    profile = profile if gate else replace(profile, meter_gate=None)
    figures = meter_figures(profile, asked, recorded, SCORES, EFFECT, seed=0)
    json.dumps(figures, allow_nan=False)
    return figures, recorded.right


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_that_is_a_volume_meter_is_found_out(grouped: AudioModel, sign: int) -> None:
    figures, right = figures_with(grouped, 100 * sign * SCORES, items())
    names = [ALL, WITHIN, "conflict, within cue", "conflict/strong", "conflict/weak"]
    assert list(figures["parts"]) == names
    strong = np.arange(ITEMS) % 2 == 1
    for name, rows in ((ALL, strong | True), ("conflict/strong", strong)):
        part = figures["parts"][name]
        assert part["items"] == rows.sum()
        assert part["auroc"]["score"] == pytest.approx(auroc(SCORES[rows], right[rows]), abs=1e-4)
        assert part["auroc"]["effect"] == pytest.approx(auroc(EFFECT[rows], right[rows]), abs=1e-4)
        assert part["correlation_with_score"]["peak_dbfs"] == pytest.approx(sign, abs=1e-3)
        turned = part["auroc"]["score"] if sign > 0 else 1 - part["auroc"]["score"]
        assert part["auroc"]["peak_dbfs"] == pytest.approx(turned, abs=2e-4)
    for part in figures["parts"].values():
        assert part["auroc"].keys() == {"score", "effect", *METERS, "regression"}
        lead, low, high = part["score_over_regression"]
        assert low < lead < high
        best = part["auroc"][part["best_meter"]]
        assert max(best, 1 - best) >= max(part["auroc"]["peak_dbfs"], 0.5), "it is favoured"


def test_the_lead_over_the_best_meter_has_an_interval(grouped: AudioModel) -> None:
    knows = (activations(grouped, ITEMS).right + 0.01 * SCORES).astype(np.float32)
    figures, _ = figures_with(grouped, knows, items())
    part = figures["parts"][WITHIN]
    assert (part["best_meter"], part["auroc"]["peak_dbfs"]) == ("peak_dbfs", 1.0)
    lead, low, high = part["score_over_best_meter"]
    assert lead == pytest.approx(part["auroc"]["score"] - 1, abs=2e-4)
    assert low < lead < high < 0


def test_without_a_gate_in_the_profile_it_says_so(grouped: AudioModel) -> None:
    figures, _ = figures_with(grouped, SCORES, items(""), gate=False)
    assert "no meters in the profile" in figures["note"]
    assert list(figures["parts"]) == [ALL], "these items name no wordings"
    part = figures["parts"][ALL]
    assert part["auroc"]["regression"] is None and part["score_over_regression"] is None
    assert part["score_over_best_meter"][0] is not None


def test_what_can_not_be_measured_is_null(grouped: AudioModel) -> None:
    recorded = replace(activations(grouped, ITEMS), right=np.ones(ITEMS, bool))
    assert recorded.meters is not None
    recorded.meters[:, 2] = 3.0  # all of one length
    figures = meter_figures(profile_of(grouped), items(), recorded, SCORES, EFFECT, seed=0)
    json.dumps(figures, allow_nan=False)
    for part in figures["parts"].values():
        assert set(part["auroc"].values()) == {None} and part["best_meter"] is None
        assert part["score_over_regression"] == [None, None, None]
        assert part["correlation_with_score"]["seconds"] is None
