"""What measured stages say: samples for the simulation, and the few numbers that forecasts need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.capacity import costs
from deploy.capacity.costs import Machine, Shape
from deploy.capacity.forecast import most_a_second
from deploy.capacity.seconds import Seconds, Stages
from deploy.capacity.stages import STEPS

TRIAL_CLIPS = (1.8, 2.1, 2.4, 2.7, 3.0)
TRIAL_TOKENS = (4, 32)  # fewest and most of an answer


def samples(model: Mapping[str, Any], stage: str, factor: float = 1.0) -> dict[float, list[float]]:
    """CPU seconds of a stage by size."""
    found = model["stages"][stage]["cpu"]
    return {float(size): [factor * one for one in each] for size, each in found.items()}


def median(model: Mapping[str, Any], stage: str, size: float) -> float:
    """CPU seconds of a stage."""
    return float(np.median(samples(model, stage)[size]))


def usual(model: Mapping[str, Any], stage: str) -> float:
    """CPU seconds of a stage for the mean of the trial's clips."""
    found = samples(model, stage)
    clips = sorted(found)
    medians = [float(np.median(found[clip])) for clip in clips]
    return float(np.interp(np.mean(TRIAL_CLIPS), clips, medians))


def cpu_stages(model: Mapping[str, Any], front: float = 1.0) -> Stages:
    """Measured CPU seconds for the simulation; those of the front so many times as long."""
    shape, prompts = Shape(**model["shape"]), model["prompts"]
    clips = sorted(map(float, prompts))
    prefixes, audio = ([prompts[f"{c:g}"][key] for c in clips] for key in ("prefix", "audio"))

    def at(stage: str) -> Seconds:
        return Seconds(samples(model, stage))

    return Stages(
        open=Seconds(samples(model, "open", front)),
        decode=Seconds(samples(model, "decode", front)),
        prepare=at("prepare"),
        bare=at("enter bare"),
        hit=at("enter hit"),
        words=at("enter words"),
        cold=at("enter cold"),
        round=at("round"),
        entry_bytes=lambda clip: shape.entry_bytes(round(float(np.interp(clip, clips, prefixes)))),
        feature_bytes=lambda clip: shape.feature_bytes(round(float(np.interp(clip, clips, audio)))),
    )


def engine_most(model: Mapping[str, Any]) -> float:
    """Answers a second of the trial's traffic that the engine can give, by the closed form."""
    bare, hit, words = (usual(model, f"enter {kind}") for kind in ("bare", "hit", "words"))
    entering = usual(model, "prepare")  # on a CPU prompts are made in the engine's thread
    entering += 0.5 * bare + 0.25 * (hit + words)  # half are steered, half of these hit
    return most_a_second(16, float(np.mean(TRIAL_TOKENS)), entering, median(model, "round", 16))


def layer_seconds(model: Mapping[str, Any]) -> float:
    """To start one layer's operators: a step of one row of the smallest model is little else."""
    shape, rates = Shape(**model["shape"]), model["rates"]
    floor = Machine(**rates).seconds(costs.step(shape, 1, step_reach(model)))
    return max(median(model, "step", 1) - floor, 0.0) / shape.layers


def step_reach(model: Mapping[str, Any]) -> int:
    """Keys that a measured step read: the longest row's, rounded up to 16 as on a CPU.

    It is the longest prompt and, while 16 rows and then fewer were measured, its answer.
    """
    longest: int = max(sizes["tokens"] for sizes in model["prompts"].values())
    return 16 * -(-(longest + int(7.5 * STEPS)) // 16)


def row_seconds(model: Mapping[str, Any]) -> float:
    """Between two steps, for each answer: its text grows, its event is posted."""
    return max(median(model, "round", 16) - median(model, "step", 16), 0.0) / 16
