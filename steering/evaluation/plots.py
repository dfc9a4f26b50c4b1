"""The report's figures, drawn with matplotlib: each function turns numbers into a Figure.

Colours are those of Okabe and Ito, told apart by people with any colour vision; line styles and
marks say the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from steering.attention.taps import Head

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#5F6B76",
)
_WIDTH = 5.2  # inches: small, so that the words stay readable on a phone
_EXAMPLE_WIDTH = 3.5  # three of them stand side by side


def _figure(
    height: float, rows: int = 1, width: float = _WIDTH, **options: Any
) -> tuple[Figure, Any]:
    """A figure of the report's width and its axes, one below the other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, **options)


def gains(arms: Mapping[str, Any]) -> Figure:
    """Each arm's gain over bare with its interval, in the order of the table."""
    shown = [arm for arm in arms if arm != "bare"]
    figure, axes = _figure(0.8 + 0.24 * len(shown))
    axes.axvline(0, color=GREY, linewidth=1)
    for place, arm in enumerate(shown):
        gain, low, high = arms[arm]["gain_over_bare"]
        served = arm in ("adaptive", "fixed", "calibrated")
        colour = BLUE if served else GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, alpha=0.75)
        axes.plot([gain], [place], "o" if served else "D", color=colour, markersize=5)
    axes.set_yticks(range(len(shown)), [arm.replace("_", " ") for arm in shown])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("gain over bare, points")
    return figure


def head_map(r: Sequence[Sequence[float]], heads: Sequence[Head]) -> Figure:
    """Correlation of every head's audio attention with a right answer; specialists framed."""
    values = np.array(r)
    layers, count = values.shape
    figure, axes = _figure(min(5.2, 1.3 + 3.9 * layers / count))
    top = max(0.05, float(np.abs(values).max()))
    image = axes.imshow(values, cmap="PuOr_r", vmin=-top, vmax=top, origin="lower", aspect="auto")
    for layer, head in heads:
        frame = Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="black", lw=1.8)
        axes.add_patch(frame)
    _whole_ticks(axes, count, layers)
    axes.set(xlabel="head", ylabel="layer")
    figure.colorbar(image, ax=axes, label="Pearson r with a right answer", shrink=0.9)
    return figure


def _whole_ticks(axes: Axes, across: int, up: int) -> None:
    """Set a readable number of ticks, on whole numbers."""
    axes.set_xticks(range(0, across, max(1, across // 8)))
    axes.set_yticks(range(0, up, max(1, up // 8)))


def scores(
    right: NDArray[np.float32], wrong: NDArray[np.float32], silent: NDArray[np.float32]
) -> Figure:
    """Listening scores of items answered right and wrong, and of their silent twins."""
    figure, axes = _figure(3.0)
    highest = max([float(x.max()) for x in (right, wrong, silent) if len(x)], default=1.0)
    bins = np.linspace(0, highest or 1.0, 31)
    kinds = (
        (right, "answered right", BLUE, "-"),
        (wrong, "answered wrong", RED, "--"),
        (silent, "silence instead of the clip", GREY, ":"),
    )
    for values, label, colour, line in kinds:
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            name = f"{label} ({len(values)})"
            axes.hist(values, bins, weights=weights, color=colour, alpha=0.22)
            axes.hist(
                values, bins, weights=weights, histtype="step", color=colour, ls=line, lw=1.8,
                label=name,
            )  # fmt: skip
    axes.legend(fontsize=9)
    axes.set(xlabel="listening score", ylabel="% of the items of a kind")
    return figure


def strengths(curve: Mapping[str, Any], gates: Mapping[str, Any], fixed: float) -> Figure:
    """Accuracy against constant strength with intervals, a panel a mix, and the adaptive level."""
    mixes = [mix for mix in curve["mixes"] if mix != "all"] or ["all"]
    figure, panels = _figure(2.4 * len(mixes) + 0.3, len(mixes), sharex=True, squeeze=False)
    for axes, mix in zip(panels[:, 0], mixes, strict=True):
        points = curve["mixes"][mix]
        across = curve["strengths"]
        low, high = np.array([point["wilson_percent"] for point in points]).T
        axes.fill_between(across, low, high, color=ORANGE, alpha=0.22, linewidth=0)
        level = [point["right_percent"] for point in points]
        axes.plot(across, level, color="#B87700", marker=".", label="constant strength")
        adaptive = gates["adaptive"][mix]["right_percent"]
        axes.axhline(adaptive, color=BLUE, ls="--", label=f"adaptive: {adaptive:.1f} %")
        axes.axvline(fixed, color=GREY, ls=":", lw=1.2, label=f"the profile's fixed: {fixed:g}")
        axes.set_title(mix if mix != "all" else "all items")
        axes.set_ylabel("% right")
        axes.grid(axis="y")
        axes.legend(fontsize=8.5, loc="lower right")
    panels[-1, 0].set_xlabel("strength")
    return figure


PART_ARMS = {
    "adaptive": (BLUE, "o"),
    "fixed": (ORANGE, "s"),
    "aad": (GREEN, "^"),
    "random_heads": (PURPLE, "v"),
    "text_only": (GREY, "D"),
}


def parts(values: Mapping[str, Any]) -> Figure:
    """Gain over bare in each part of the data, served arms beside controls."""
    names = list(values)
    figure, axes = _figure(1.2 + 0.72 * len(names))
    axes.axvline(0, color=GREY, linewidth=1)
    for k, (arm, (colour, mark)) in enumerate(PART_ARMS.items()):
        for row, name in enumerate(names):
            gain, low, high = values[name]["arms"][arm]["gain_over_bare"]
            height = row + (k - 2) * 0.15
            axes.plot([low, high], [height, height], color=colour, linewidth=1.6, alpha=0.8)
            label = arm.replace("_", " ") if row == 0 else None
            axes.plot([gain], [height], mark, color=colour, markersize=5, label=label)
    labels = [f"{short(name)}\n({values[name]['items']})" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("gain over bare, points")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure


def against_random(panels: Sequence[tuple[str, str, Sequence[float], float]]) -> Figure:
    """Random sets as dots and the profile's choice as a line: (title, unit, random, own) each."""
    figure, grid = _figure(1.35 * len(panels) + 0.2, len(panels), squeeze=False)
    for axes, (title, unit, others, own) in zip(grid[:, 0], panels, strict=True):
        jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(others))
        axes.scatter(others, jitter, s=16, color=GREY, alpha=0.6, linewidths=0, label="random")
        axes.axvline(own, color=BLUE, lw=2.2, label="the profile's")
        low, high = min(*others, own), max(*others, own)
        margin = 0.04 * (high - low) or 0.02 * abs(own) or 1.0  # all alike: some room around them
        axes.set(title=title, xlabel=unit, yticks=[], ylim=(-0.6, 0.6))
        axes.set_xlim(low - margin, high + margin)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    grid[0, 0].legend(fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(0.45, 0.98))
    return figure


def example(
    samples: NDArray[np.float32], rate_hz: int, timeline: NDArray[np.float32], hop_seconds: float
) -> Figure:
    """A clip's waveform, and below it the attention of the specialist heads over time."""
    figure, (wave, looks) = _figure(2.0, 2, _EXAMPLE_WIDTH, sharex=True, height_ratios=(1, 1.1))
    seconds = len(samples) / rate_hz
    low, high = _envelope(samples, 400)
    wave.fill_between(np.linspace(0, seconds, len(low)), low, high, color=GREY, linewidth=0)
    wave.set(yticks=[], ylabel="sound")
    seconds_heard = (np.arange(len(timeline)) + 0.5) * hop_seconds
    looks.fill_between(
        seconds_heard, timeline * 100, step="mid", color=BLUE, alpha=0.3, linewidth=0
    )
    looks.plot(seconds_heard, timeline * 100, drawstyle="steps-mid", color=BLUE, lw=1.3)
    looks.set(
        xlabel="seconds", ylabel="attention %", xlim=(0, max(seconds, float(seconds_heard[-1])))
    )
    looks.set_ylim(bottom=0)
    return figure


def _envelope(samples: NDArray[np.float32], points: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Lowest and highest sample of each of `points` stretches of a waveform."""
    parts_of = np.array_split(samples, min(points, len(samples)))
    return np.array([p.min() for p in parts_of]), np.array([p.max() for p in parts_of])


def short(text: str) -> str:
    """A name from the data, cut to 24 characters."""
    return text if len(text) <= 24 else text[:23] + "…"
