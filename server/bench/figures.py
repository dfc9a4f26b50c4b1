"""Figures of the runs: medians with their spread, ratios beside their bounds, tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Runs = Mapping[str, Sequence[Mapping[str, float]]]  # arm -> one row of measures a round


@dataclass(frozen=True, slots=True)
class Bound:
    """A promised ratio of two arms, at most or at least."""

    label: str
    numerator: str
    denominator: str
    measure: str
    sense: Literal["<=", ">="]
    limit: float
    models: tuple[str, ...]


FIRST = "first_token_seconds"
BOUNDS = (
    Bound("warm steered / bare, first token", "warm", "bare", FIRST, "<=", 1.05, ("mid",)),
    Bound("warm steered / bare, first token", "warm", "bare", FIRST, "<=", 1.05, ("real",)),
    Bound(
        "warm with the effect / bare, first token", "effect", "bare", FIRST, "<=", 1.08, ("mid",)
    ),
    Bound(
        "taps / no taps, first token", "bare", "bare_without_profile", FIRST, "<=", 1.01, ("mid",)
    ),
    Bound("cold steered / bare, first token", "cold", "bare", FIRST, "<=", 1.5, ("mid",)),
    Bound("new words steered / bare, first token", "new_words", "bare", FIRST, "<=", 1.5, ("mid",)),
    Bound("naive / warm steered, first token", "naive", "warm", FIRST, ">=", 2.3, ("mid",)),
    Bound("two SDPA passes / warm steered", "two_passes", "warm", FIRST, ">=", 1.5, ()),
    Bound("calibrated / bare, first token", "calibrated", "bare", FIRST, "<=", 1.01, ()),
    Bound("bare / transformers, first token", "bare", "hf", FIRST, "<=", 1.0, ()),
    Bound(
        "warm steered / bare, whole answer",
        "warm",
        "bare",
        "total_seconds",
        "<=",
        1.03,
        ("demo", "mid", "real"),
    ),
    Bound(
        "Audio-Aware Decoding / warm steered, whole answer",
        "aad",
        "warm",
        "total_seconds",
        ">=",
        1.7,
        ("demo", "mid", "real"),
    ),
    Bound(
        "words weighed / not, bare answer", "words", "bare", "total_seconds", "<=", 1.15, ("mid",)
    ),
    Bound(
        "words weighed / not, steered answer",
        "warm_words",
        "warm",
        "total_seconds",
        "<=",
        1.15,
        ("mid",),
    ),
    Bound("steered / bare, a token", "warm", "bare", "seconds_a_token", "<=", 1.02, ()),
)


def summary(runs: Runs) -> dict[str, dict[str, Any]]:
    """Median, smallest and largest of each arm and measure."""
    return {
        arm: {name: spread([row[name] for row in rows]) for name in rows[0]}
        for arm, rows in runs.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def ratios(runs: Runs, model: str | None) -> list[dict[str, Any]]:
    """Every ratio within its rounds, so that a slow round slows both sides; never an error."""
    figures = []
    for bound in BOUNDS:
        promised = model in bound.models
        if bound.models and not promised:
            continue
        above = [row[bound.measure] for row in runs[bound.numerator]]
        below = [row[bound.measure] for row in runs[bound.denominator]]
        if not all(below):
            continue
        quotients = [a / b for a, b in zip(above, below, strict=True)]
        figure = ratio(bound.label, quotients, bound.sense, bound.limit if promised else None)
        figures.append({**figure, "of_the_fastest": min(above) / min(below)})
    return figures


def ratio(
    label: str, quotients: Sequence[float], sense: Literal["<=", ">="], limit: float | None
) -> dict[str, Any]:
    """A ratio beside its bound, if it has one."""
    middle = median(quotients)
    holds = None if limit is None else (middle <= limit if sense == "<=" else middle >= limit)
    return {"ratio": label, **spread(quotients), "sense": sense, "bound": limit, "holds": holds}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under each other; the first is the header, the first column is left-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *rest]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def arms_table(results: Mapping[str, Any]) -> str:
    """A line for each arm: medians of its times, and the spread of the first token's."""
    rows = [["arm", "prefill s", "first token s", "low", "high", "ms a token", "total s", "MiB"]]
    for arm, measures in results["arms"].items():
        first, memory = measures[FIRST], measures.get("peak_memory_bytes")
        rows.append(
            [
                f"{arm}: {results['legend'][arm]}",
                _number(measures["prefill_seconds"]["median"]),
                _number(first["median"]),
                _number(first["low"]),
                _number(first["high"]),
                _number(1000 * measures["seconds_a_token"]["median"]),
                _number(measures["total_seconds"]["median"]),
                "-" if memory is None else f"{memory['median'] / 2**20:.0f}",
            ]
        )
    return table(rows)


def load_table(results: Mapping[str, Any]) -> str:
    """A line for each way of serving: requests and tokens a second."""
    rows = [["load", "requests a second", "low", "high", "tokens a second"]]
    for name, rates in results["load"].items():
        values = [rates[key] for key in ("median", "low", "high")]
        rows.append([name, *map(_number, [*values, rates["median"] * results["tokens"]])])
    return table(rows)


def ratios_table(results: Mapping[str, Any]) -> str:
    """A line for each ratio, with its bound and whether it holds."""
    rows = [["ratio", "median", "low", "high", "of the fastest", "bound", "holds"]]
    for figure in results["ratios"]:
        bound = "-" if figure["bound"] is None else f"{figure['sense']} {figure['bound']:g}"
        holds = {None: "-", True: "yes", False: "NO"}[figure["holds"]]
        cells = [f"{figure[name]:.3f}" for name in ("median", "low", "high")]
        fastest = figure.get("of_the_fastest")
        cells.append("-" if fastest is None else f"{fastest:.3f}")
        rows.append([figure["ratio"], *cells, bound, holds])
    return table(rows)


def _number(value: float) -> str:
    return "-" if not value else f"{value:.4g}"
