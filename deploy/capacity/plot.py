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
    left.set_ylabel("answers, as a share of the most")
    _panel(right, results, {"p50_seconds": ("median", "-"), "p99_seconds": ("99th", "--")})
    right.set_ylabel("seconds to the whole answer, unstretched")
    for axes in (left, right):
        axes.set_xlabel("load: requests, as a share of the most answers")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def _panel(axes: Axes, results: Mapping[str, Any], lines: Mapping[str, tuple[str, str]]) -> None:
    """Of runs on a machine that others used, as they would be without their stretch."""
    curve, runs = results["forecast"]["curve"], results["trial"]
    most, loads = results["forecast"]["most_a_second"], [run["load"] for run in runs]

    def plain(name: str, value: float, stretch: float) -> float:
        return value * stretch / most if name.endswith("a_second") else value / stretch

    for name, (says, style) in lines.items():
        each = {
            kind: [plain(name, run[kind][name], run["stretch"]["mean"]) for run in runs]
            for kind in ("simulated", "real")
        }
        values = [plain(name, one[name], 1.0) for one in curve]
        axes.plot([one["load"] for one in curve], values, style, color=_SIMULATED)
        axes.lines[-1].set_label(f"{says}, simulated")
        axes.plot(loads, each["simulated"], "o", color=_INK, fillstyle="none")
        mark = "x" if style == "-" else "+"
        axes.plot(loads, each["real"], mark, color=_REAL, label=f"{says}, measured")
