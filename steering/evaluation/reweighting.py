"""Mixes and parts of a data set: as it is, weighted to other shares of wordings, and by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from steering.items import Item

Weights = NDArray[np.float64]

# Shares of the items that say nothing about the answer, suggest the right one, a wrong one.
MIXES: Mapping[str, Mapping[str, float]] = {
    "balanced": {"neutral": 1 / 2, "consistent": 1 / 8, "conflict": 3 / 8},  # cue right 1 in 4
    "natural": {"neutral": 1 / 2, "consistent": 3 / 8, "conflict": 1 / 8},  # cue right 3 in 4
}
PARTS = ("wording", "task", "sub-category", "difficulty")
_MAX_PARTS = 40  # more values than this are names, not parts


def mixes(items: Sequence[Item]) -> dict[str, Weights]:
    """(I,) weights of each mix: all items unweighted and, if the data has all three wordings,
    MIXES.
    """
    weights_by_mix = {"all": np.ones(len(items))}
    wordings = np.array([item.wording for item in items])
    if {"neutral", "consistent", "conflict"} <= set(wordings):
        for name, shares in MIXES.items():
            weights = np.zeros(len(items))
            for wording, share in shares.items():
                rows = wordings == wording
                weights[rows] = share * len(items) / rows.sum()
            weights_by_mix[name] = weights
    return weights_by_mix


def parts(items: Sequence[Item]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Rows (I,) of each domain, sub-category, difficulty and wording in the data."""
    rows_by_part: dict[str, dict[str, NDArray[np.bool_]]] = {}
    for part in PARTS:
        values = np.array([_value(item, part) for item in items])
        names = sorted({str(value) for value in values} - {""})
        if 0 < len(names) <= _MAX_PARTS:
            rows_by_part[part] = {name: values == name for name in names}
    return rows_by_part


def _value(item: Item, part: str) -> str:
    own = {"wording": item.wording, "task": item.task}
    return own[part] if part in own else str(item.record.get(part) or "")
