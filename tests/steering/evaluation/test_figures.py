from __future__ import annotations

import json

import numpy as np
import pytest

from steering.evaluation.figures import (
    arm_figures,
    item_rows,
    part_figures,
    percent,
    rightness,
    table,
)
from steering.measures import mcnemar, wilson
from tests.steering.evaluation.judging import item

ITEMS = (
    item("a", "neutral", "sound"),
    item("b", "conflict", "sound", "weak"),
    item("c", "conflict", "music", "weak"),
    item("d", "consistent", "music", "weak"),
)
OUTPUTS = {
    "bare": ["dog", "cow", "cow", "dog"],
    "fixed": ["dog", "dog", "cow", "cow"],
    "aad": ["cow", "cow", "cow", ""],
}


def test_figures_by_hand() -> None:
    right = rightness(ITEMS, OUTPUTS)
    figures = arm_figures(ITEMS, right, seed=0)
    bare, fixed, aad = (figures[arm] for arm in OUTPUTS)
    assert bare["right_percent"] == 50
    assert bare["mixes"]["all"]["right_percent"] == 50
    assert bare["mixes"]["balanced"]["right_percent"] == pytest.approx(62.5)
    assert bare["mixes"]["natural"]["right_percent"] == pytest.approx(87.5)
    assert fixed["mixes"]["natural"]["gain_over_bare"][0] == pytest.approx(6.25 - 37.5)
    assert fixed["repaired_broken"] == [1, 1]
    assert aad["repaired_broken"] == [0, 2]
    assert aad["mcnemar_p"] == mcnemar(right["aad"], right["bare"])
    assert bare["wilson_percent"] == pytest.approx([100 * x for x in wilson(2, 4)], abs=0.01)
    assert fixed["gain_over_aad"][0] == 50
    assert bare["gain_over_bare"] == [0, 0, 0]
    assert "gain_over_oracle_fixed" not in bare, "no such arm was run"


def test_parts_by_hand() -> None:
    figures = part_figures(ITEMS, rightness(ITEMS, OUTPUTS), seed=0)
    assert figures["task"]["sound"]["items"] == 2
    assert figures["task"]["sound"]["arms"]["bare"]["right_percent"] == 50
    assert figures["task"]["sound"]["arms"]["fixed"]["gain_over_bare"][0] == 50
    assert figures["wording"]["conflict"]["arms"]["bare"]["right_percent"] == 0
    json.dumps(figures, allow_nan=False)


def test_nothing_to_measure_is_null() -> None:
    assert percent(float("nan")) is None
    assert percent(0.98765) == 98.77


def test_the_table_is_for_people() -> None:
    rows = table({"arms": arm_figures(ITEMS, rightness(ITEMS, OUTPUTS), 0)})
    assert rows[0] == ["arm", "all", "balanced", "natural", "gain over bare", "repaired / broken"]
    assert [row[0] for row in rows[1:]] == ["bare", "fixed", "aad"]
    assert {len(row) for row in rows} == {6}
    assert rows[2][1] == "50.0"
    assert rows[2][-1] == "1 / 1"


def test_columns_have_a_row_an_item() -> None:
    right = rightness(ITEMS, OUTPUTS)
    header, *rows = item_rows(right, {"score": np.array([0.1, 0.2, 0.3, 0.4])})
    assert header == ["id", "score", "right.bare", "right.fixed", "right.aad"]
    assert rows[3] == [0.4, 1, 0, 0]
