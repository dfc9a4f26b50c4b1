"""The plot of docs/capacity.md: a real server's answers and waits over what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _SIMULATED, _REAL = "#333333", "#8a8a8a", "#c0392b"


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Write the plot: lines and circles are simulated, crosses were measured."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, results, {"answered_a_second": ("answered", "-")})
    left.set_ylabel("answers a second")
    _panel(right, results, {"p50_seconds": ("median", "-"), "p99_seconds": ("99th", "--")})
    right.set_ylabel("seconds to the whole answer")
    for axes in (left, right):
        axes.set_xlabel("requests a second")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def _panel(axes: Axes, results: Mapping[str, Any], lines: Mapping[str, tuple[str, str]]) -> None:
    curve, runs = results["forecast"]["curve"], results["trial"]
    for name, (says, style) in lines.items():
        asked = [one["asked_a_second"] for one in curve]
        values = [one[name] for one in curve]
        axes.plot(asked, values, style, color=_SIMULATED, label=f"{says}, simulated")
        at = [run["real"]["asked_a_second"] for run in runs]
        each = [run["simulated"][name] for run in runs]
        axes.plot(at, each, "o", color=_INK, fillstyle="none", label="_of the same requests")
        label = f"{says}, measured"
        mark = "x" if style == "-" else "+"
        axes.plot(at, [run["real"][name] for run in runs], mark, color=_REAL, label=label)
