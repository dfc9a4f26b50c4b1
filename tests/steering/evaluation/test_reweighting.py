from __future__ import annotations

import numpy as np
import pytest

from steering.evaluation.reweighting import mixes, parts
from tests.steering.evaluation.judging import item

WORDINGS = ("neutral", "neutral", "conflict", "consistent", "conflict", "conflict", "neutral")


def test_a_mix_gives_each_wording_its_share() -> None:
    items = [item(f"{i}", wording) for i, wording in enumerate(WORDINGS)]
    by_mix = mixes(items)
    assert list(by_mix) == ["all", "balanced", "natural"]
    assert by_mix["all"].tolist() == [1.0] * 7
    for mix, shares in {
        "balanced": {"neutral": 0.5, "consistent": 0.125, "conflict": 0.375},
        "natural": {"neutral": 0.5, "consistent": 0.375, "conflict": 0.125},
    }.items():
        weights = by_mix[mix]
        assert weights.sum() == pytest.approx(7)
        for wording, share in shares.items():
            rows = np.array([w == wording for w in WORDINGS])
            assert weights[rows].sum() / weights.sum() == pytest.approx(share)
            assert len(set(weights[rows])) == 1


@pytest.mark.parametrize("wordings", [("", "", ""), ("neutral", "conflict", "conflict")])
def test_without_all_three_wordings_items_are_as_they_are(wordings: tuple[str, ...]) -> None:
    assert list(mixes([item(f"{i}", w) for i, w in enumerate(wordings)])) == ["all"]


def test_parts_are_those_that_the_data_names() -> None:
    more = [{"sub-category": "pitch", "difficulty": "easy"}, {"sub-category": "tempo"}, {}]
    tasks = ("music", "music", "speech")
    items = [item(f"{i}", task=tasks[i], **more[i]) for i in range(3)]
    rows_by_part = parts(items)
    assert list(rows_by_part) == ["task", "sub-category", "difficulty"]
    assert rows_by_part["task"]["music"].tolist() == [True, True, False]
    assert rows_by_part["sub-category"]["tempo"].tolist() == [False, True, False]
    assert list(rows_by_part["difficulty"]) == ["easy"]


def test_what_has_too_many_values_is_no_part() -> None:
    items = [item(f"{i}", **{"sub-category": f"{i}"}) for i in range(50)]
    assert list(parts(items)) == ["task"]
