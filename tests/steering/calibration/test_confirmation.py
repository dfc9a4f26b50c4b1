from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.calibration.activations import Activations
from steering.calibration.calibrate import fit_profile
from steering.calibration.confirmation import GRID, Generate
from steering.calibration.search import Search, nearest
from steering.model.audio_model import AudioModel
from steering.readout import Intervention
from tests.steering.calibration.test_calibrate import ITEMS, activations, dataset, items


def generator(
    model: AudioModel, more: float = 0.0, *, broken: bool = False
) -> tuple[Generate, list[Any]]:
    """Answers that take so much more strength than the decisive token says, or that are all broken;
    and the calls for them.
    """
    search = Search(model, activations(model, helps=True), items())
    calls = []

    def generate(
        _: Activations,
        rows: NDArray[np.int64],
        interventions: Sequence[Intervention],
        strengths: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        calls.append((rows, strengths))
        right = np.zeros(strengths.shape, bool)
        for n, (row, intervention) in enumerate(zip(rows, interventions, strict=True)):
            right[n] = search.correct_at(intervention)[nearest(strengths[n] - more), row]
        return right & (not broken)

    return generate, calls


def test_what_is_generated_as_predicted_changes_nothing(untrained: AudioModel) -> None:
    planted = activations(untrained, helps=True)
    generate, calls = generator(untrained)
    alone = fit_profile(untrained, dataset(), planted)
    profile = fit_profile(untrained, dataset(), planted, generate=generate)
    assert (profile.gate, profile.fixed_strength) == (alone.gate, alone.fixed_strength)
    assert len(calls) == 1, "no grid is generated"
    rows, strengths = calls[0]
    assert len(set(rows.tolist())) == len(rows) <= ITEMS, "each once"
    assert strengths.shape == (len(rows), 1) and (strengths > 0).all(), "bare ones are known"
    generated = dict(profile.held_out["generated"])
    assert generated["items"] == ITEMS
    for arm in ("bare", "adaptive"):
        both = generated[arm]
        expected = profile.held_out["accuracy_percent"][arm]["all"]
        assert both["predicted_percent"] == both["generated_percent"] == expected
        assert both["agree_percent"] == 100
    assert "part by" not in generated["words"]


def test_where_they_part_the_gate_is_fitted_on_what_was_generated(untrained: AudioModel) -> None:
    planted = activations(untrained, helps=True)
    generate, calls = generator(untrained, more=0.5)
    alone = fit_profile(untrained, dataset(), planted)
    profile = fit_profile(untrained, dataset(), planted, generate=generate)
    assert [strengths.shape[1] for _, strengths in calls] == [1, len(GRID)]
    generated = profile.held_out["generated"]
    adaptive = generated["adaptive"]
    assert adaptive["predicted_percent"] - adaptive["generated_percent"] > 3
    assert "part by more than 3 points" in generated["words"]
    assert profile.gate.strength(0.3) > alone.gate.strength(0.3) + 0.3
    assert profile.fixed_strength > alone.fixed_strength + 0.3
    assert profile.meter_gate is not None and alone.meter_gate is not None
    assert profile.meter_gate.regression == alone.meter_gate.regression
    assert profile.meter_gate.gate.max_strength > alone.meter_gate.gate.max_strength
    scores = planted.scores(profile.heads, untrained.num_heads)
    served = generate(
        planted,
        np.arange(ITEMS),
        [profile.intervention] * ITEMS,
        profile.gate.strengths(scores)[:, None],
    )[:, 0]
    gain, low, _ = profile.held_out["gain_balanced"]
    assert 0 < low <= gain
    assert 100 * (served.mean() - planted.right.mean()) == pytest.approx(gain, abs=5)


def test_what_breaks_every_answer_is_refused(untrained: AudioModel) -> None:
    generate, _ = generator(untrained, broken=True)
    profile = fit_profile(
        untrained, dataset(), activations(untrained, helps=True), generate=generate
    )
    assert profile.max_strength == 0 and profile.refusal
    adaptive = profile.held_out["generated"]["adaptive"]
    assert adaptive["generated_percent"] < adaptive["predicted_percent"] - 20
