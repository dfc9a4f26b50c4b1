"""Figures of all arms: shares right with intervals, gains over others, by mix and by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.evaluation.reweighting import Weights, mixes, parts
from steering.items import Item, is_right
from steering.measures import (
    ClusterBootstrap,
    Flags,
    effective_count,
    mcnemar,
    repaired_broken,
    wilson,
)

COMPARED = (
    "bare",
    "fixed",
    "aad",
    "oracle_fixed",
    "oracle_fixed_natural",
    "wording_only",
    "meter_gate",
)


def rightness(items: Sequence[Item], outputs: Mapping[str, Sequence[str]]) -> dict[str, Flags]:
    """(I,) by arm: whether a prediction is right by MMAU's official rule."""
    return {
        arm: np.array(
            [is_right(t, i.answer, i.choices) for t, i in zip(texts, items, strict=True)], bool
        )
        for arm, texts in outputs.items()
    }


def arm_figures(items: Sequence[Item], right: Mapping[str, Flags], seed: int) -> dict[str, Any]:
    """By arm: share right in all and in each mix, gains with intervals, repaired and broken."""
    bootstrap = ClusterBootstrap.of([str(item.audio) for item in items], seed=seed)
    weights = mixes(items)
    figures: dict[str, Any] = {}
    for arm, flags in right.items():
        in_mixes = {}
        for mix, weight in weights.items():
            gains = {
                f"gain_over_{other}": gain_percent(flags, right[other], weight, bootstrap)
                for other in COMPARED
                if other in right
            }
            in_mixes[mix] = share_percent(flags, weight) | gains
        figures[arm] = {
            **in_mixes["all"],
            "repaired_broken": list(repaired_broken(flags, right["bare"])),
            "mcnemar_p": mcnemar(flags, right["bare"]),
            "mixes": in_mixes,
        }
    return figures


def part_figures(items: Sequence[Item], right: Mapping[str, Flags], seed: int) -> dict[str, Any]:
    """By domain, sub-category, difficulty and wording: each arm's share and gain over bare."""
    bootstrap = ClusterBootstrap.of([str(item.audio) for item in items], seed=seed)
    figures: dict[str, Any] = {}
    for part, values in parts(items).items():
        figures[part] = {}
        for value, rows in values.items():
            weight = rows.astype(np.float64)
            figures[part][value] = {
                "items": int(rows.sum()),
                "arms": {
                    arm: share_percent(flags, weight)
                    | {"gain_over_bare": gain_percent(flags, right["bare"], weight, bootstrap)}
                    for arm, flags in right.items()
                },
            }
    return figures


def share_percent(flags: Flags, weights: Weights) -> dict[str, Any]:
    """Share right, and its Wilson interval at the weights' effective number of items."""
    share = float((weights * flags).sum() / weights.sum())
    count = effective_count(weights)
    return {
        "right_percent": percent(share),
        "wilson_percent": [percent(x) for x in wilson(share * count, count)],
    }


def gain_percent(
    after: Flags, before: Flags, weights: Weights, bootstrap: ClusterBootstrap
) -> list[float | None]:
    """Gain in points and its paired interval."""
    return [percent(x) for x in bootstrap.gain(after, before, weights)]


def percent(share: float | np.floating[Any]) -> float | None:
    """Percent to 2 digits; None if it could not be measured, since JSON has no NaN."""
    return None if np.isnan(share) else round(100 * float(share), 2)


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text for people: a header, then one row for each arm."""
    mixes_shown = list(next(iter(results["arms"].values()))["mixes"])
    rows = [["arm", *mixes_shown, "gain over bare", "repaired / broken"]]
    for arm, arm_results in results["arms"].items():
        gain, low, high = arm_results["gain_over_bare"]
        repaired, broken = arm_results["repaired_broken"]
        rows.append(
            [
                arm,
                *(f"{arm_results['mixes'][mix]['right_percent']:.1f}" for mix in mixes_shown),
                f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
                f"{repaired} / {broken}",
            ]
        )
    return rows


def item_rows(right: Mapping[str, Flags], more: Mapping[str, NDArray[Any]]) -> list[list[Any]]:
    """A header and one row for each item: the given numbers, then 1 or 0 for every arm."""
    header = ["id", *more, *(f"right.{arm}" for arm in right)]
    body = zip(*more.values(), *(flags.astype(int) for flags in right.values()), strict=True)
    return [header, *([*row] for row in body)]
