"""Times of a replica's stages: what the simulation draws from, and what forecasts are made with."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.capacity import costs
from deploy.capacity.costs import Machine, ModelSizes, max_answers_per_second

TRIAL_CLIPS = (1.8, 2.1, 2.4, 2.7, 3.0)
TRIAL_TOKENS = (4, 32)  # fewest and most of an answer
STEPS = 24  # decode steps measured of each number of rows


class Quantiles:
    """Quantile functions of seconds, one for each size (of a clip, or rows).

    The values of a size stand for shares that divide [0, 1] evenly, the least and the largest
    sample included; between two shares, and between two sizes, seconds are linear.
    """

    def __init__(self, by_size: Mapping[float, Sequence[float]]) -> None:
        self._sizes = sorted(by_size)
        self._values = [list(by_size[size]) for size in self._sizes]

    def at(self, size: float, share: float) -> float:
        """The seconds below which a `share` in [0, 1] lies; beyond the sizes, those of the last."""
        above = bisect.bisect_left(self._sizes, size)
        if above == 0 or above == len(self._sizes):
            return _interpolated(self._values[min(above, len(self._sizes) - 1)], share)
        low, high = self._sizes[above - 1], self._sizes[above]
        before = _interpolated(self._values[above - 1], share)
        after = _interpolated(self._values[above], share)
        return before + (size - low) / (high - low) * (after - before)


def _interpolated(values: Sequence[float], share: float) -> float:
    place = share * (len(values) - 1)
    below = min(int(place), len(values) - 1)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


@dataclass(frozen=True, slots=True, eq=False)
class StageTimes:
    """Times of a replica's stages, by seconds of the clip; a round by its rows."""

    open: Quantiles  # a body becomes files, then a question: in a worker thread
    decode: Quantiles  # a file becomes a clip: in a process of its own
    prompt: Quantiles  # a question becomes a prompt: in the engine, or a worker thread on a card
    bare: Quantiles  # in the engine, up to the first token
    hit: Quantiles  # the same with a silent twin whose prefix is cached
    miss: Quantiles  # whose prefix is not, but the encoder's silence is
    cold: Quantiles  # of which nothing is cached
    round: Quantiles  # one token more for every row
    entry_bytes: Callable[[float], int]  # of a silent prefix, by seconds of the clip
    feature_bytes: Callable[[float], int]
    slowdown: Callable[[float], float] = lambda _: 1.0  # of all these, by seconds from the start


# ---- of measured figures


def quantiles(
    model: Mapping[str, Any], stage: str, factor: float = 1.0
) -> dict[float, list[float]]:
    """CPU seconds of a stage by size."""
    by_size = model["stages"][stage]
    return {float(size): [factor * x for x in values] for size, values in by_size.items()}


def median(model: Mapping[str, Any], stage: str, size: float) -> float:
    """CPU seconds of a stage."""
    return Quantiles(quantiles(model, stage)).at(size, 0.5)


def mean_clip(model: Mapping[str, Any], stage: str) -> float:
    """CPU seconds of a stage for the mean of the trial's clips."""
    return median(model, stage, float(np.mean(TRIAL_CLIPS)))


def cpu_stage_times(model: Mapping[str, Any], preprocessing: float = 1.0) -> StageTimes:
    """Measured CPU seconds for the simulation; those of preprocessing so many times as long."""
    sizes, prompts = ModelSizes(**model["sizes"]), model["prompts"]
    clips = sorted(map(float, prompts))
    prefixes, audio = ([prompts[f"{c:g}"][key] for c in clips] for key in ("prefix", "audio"))

    def of(stage: str, factor: float = 1.0) -> Quantiles:
        return Quantiles(quantiles(model, stage, factor))

    return StageTimes(
        open=of("open", preprocessing),
        decode=of("decode", preprocessing),
        prompt=of("prompt"),
        bare=of("enter bare"),
        hit=of("enter hit"),
        miss=of("enter miss"),
        cold=of("enter cold"),
        round=of("round"),
        entry_bytes=lambda clip: sizes.entry_bytes(round(float(np.interp(clip, clips, prefixes)))),
        feature_bytes=lambda clip: sizes.feature_bytes(round(float(np.interp(clip, clips, audio)))),
    )


def engine_limit(model: Mapping[str, Any]) -> float:
    """Answers a second of the trial's traffic that the engine can give, by the closed form."""
    bare, hit, miss = (mean_clip(model, f"enter {kind}") for kind in ("bare", "hit", "miss"))
    entering = mean_clip(model, "prompt")  # on a CPU prompts are made in the engine's thread
    entering += 0.5 * bare + 0.25 * (hit + miss)  # half are steered, half of these hit
    round_seconds = median(model, "round", 16)
    return max_answers_per_second(16, float(np.mean(TRIAL_TOKENS)), entering, round_seconds)


def layer_seconds(model: Mapping[str, Any]) -> float:
    """To start one layer's operators: a step of one row of the smallest model is little else."""
    sizes, rates = ModelSizes(**model["sizes"]), model["rates"]
    floor = Machine(**rates).seconds(costs.step(sizes, 1, step_kv_length(model)))
    return max(median(model, "step", 1) - floor, 0.0) / sizes.layers


def step_kv_length(model: Mapping[str, Any]) -> int:
    """Keys that a measured step read: the longest row's, rounded up to 16 as on a CPU.

    It is the longest prompt and, while 16 rows and then fewer were measured, its answer.
    """
    longest: int = max(prompt["tokens"] for prompt in model["prompts"].values())
    return 16 * -(-(longest + int(7.5 * STEPS)) // 16)


def row_seconds(model: Mapping[str, Any]) -> float:
    """Between two steps, for each answer: its text grows, its event is posted."""
    return max(median(model, "round", 16) - median(model, "step", 16), 0.0) / 16
