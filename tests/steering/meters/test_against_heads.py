from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.meters.against_heads import REGRESSION, against_heads
from steering.meters.waveform import METERS

ITEMS = 300
RNG = np.random.default_rng(4)
RIGHT = RNG.random(ITEMS) < 0.4
LEVEL, KNOWN = RNG.standard_normal((2, ITEMS)) + 2 * RIGHT  # two signs of a right answer
NOISE = RNG.standard_normal((ITEMS, len(METERS)))


def compare(scores: NDArray[np.float64], peak: NDArray[np.float64]) -> dict[str, Any]:
    meters = np.column_stack([peak, NOISE[:, 1:]])
    strata = [("conflict/weak", "conflict/strong")[i % 2] for i in range(ITEMS)]
    clips = [f"{i // 2}.wav" for i in range(ITEMS)]
    figures = against_heads(
        meters.astype(np.float32),
        scores.astype(np.float32),
        RIGHT,
        strata,
        np.arange(ITEMS) // 2 % 5,
        clips,
    )
    json.dumps(figures, allow_nan=False)
    return figures


@pytest.mark.parametrize("sign", [1, -1])
def test_a_score_that_reads_the_level_is_warned_of(sign: int) -> None:
    figures = compare(LEVEL + 0.3 * NOISE[:, 0], sign * LEVEL)
    assert figures["best_meter"][0] == "peak_dbfs"
    assert figures["by_meter"]["peak_dbfs"] > 0.9, "whichever way it points"
    assert figures["heads_over_better"][0] < 0
    assert "as well as the heads do" in figures["warning"]
    assert f"against {figures['heads']:.2f}" in figures["warning"]


def test_a_score_that_knows_more_is_not() -> None:
    figures = compare(KNOWN + LEVEL, 0.3 * LEVEL + NOISE[:, 0])
    assert "warning" not in figures
    lead, low, high = figures["heads_over_better"]
    assert 0 < low < lead < high
    better = max(figures["best_meter"][1], figures[REGRESSION])
    assert lead == pytest.approx(figures["heads"] - better, abs=2e-4)


def test_a_difference_that_is_not_shown_is_said_to_be_that() -> None:
    figures = compare(KNOWN + 0.1 * RIGHT, LEVEL)
    lead, low, _ = figures["heads_over_better"]
    assert low <= 0 < lead
    assert "not shown" in figures["warning"] and f"{low:+.2f}" in figures["warning"]


def test_meters_that_know_nothing_are_no_reason_to_warn() -> None:
    figures = compare(NOISE[:, 0], NOISE[:, 1])
    assert "warning" not in figures
    assert 0.35 < figures[REGRESSION] < 0.65


def test_too_few_answers_to_compare_are_said() -> None:
    figures = against_heads(
        NOISE[:4].astype(np.float32),
        NOISE[:4, 0].astype(np.float32),
        np.ones(4, bool),
        ["x"] * 4,
        np.arange(4),
        list("abcd"),
    )
    assert "not known" in figures["note"]
