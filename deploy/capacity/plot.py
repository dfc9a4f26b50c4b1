"""The plot of docs/capacity.md: a real server's answers and waits over its load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _SIMULATED, _REAL = "#333333", "#8a8a8a", "#c0392b"


def draw(figures: Mapping[str, Any], file: Path) -> None:
    """Write the plot: lines and circles are simulated, crosses were measured."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, figures, {"answered_a_second": ("answered", "-")})
    left.set_ylabel("answers, as a share of the most")
    _panel(right, figures, {"p50_seconds": ("median", "-"), "p99_seconds": ("99th", "--")})
    right.set_ylabel("seconds to the whole answer")
    for axes in (left, right):
        axes.set_xlabel("load: requests, as a share of the most answers")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110)


def _panel(axes: Axes, figures: Mapping[str, Any], lines: Mapping[str, tuple[str, str]]) -> None:
    """Trials as they would be on a quiet machine, without their slowdown."""
    curve, trials = figures["forecast"]["curve"], figures["trial"]
    limit, loads = figures["forecast"]["max_a_second"], [trial["load"] for trial in trials]

    def plain(name: str, value: float, slowdown: float) -> float:
        return value * slowdown / limit if name.endswith("a_second") else value / slowdown

    for name, (says, style) in lines.items():
        each = {
            kind: [plain(name, trial[kind][name], trial["slowdown"]["mean"]) for trial in trials]
            for kind in ("simulated", "real")
        }
        values = [plain(name, point[name], 1.0) for point in curve]
        axes.plot([point["load"] for point in curve], values, style, color=_SIMULATED)
        axes.lines[-1].set_label(f"{says}, simulated")
        axes.plot(loads, each["simulated"], "o", color=_INK, fillstyle="none")
        mark = "x" if style == "-" else "+"
        axes.plot(loads, each["real"], mark, color=_REAL, label=f"{says}, measured")
