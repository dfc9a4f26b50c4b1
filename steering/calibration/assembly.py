"""Assembly: what calibration fitted becomes a profile, with the data and the versions behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steering.calibration.collecting import versions
from steering.calibration.prompt_trial import PromptTrial
from steering.calibration.search import FittedSettings
from steering.heads import Verdicts
from steering.items import DataSet
from steering.meters.regression import MeterGate
from steering.model.audio_model import AudioModel
from steering.profile import Profile, Silence

Origin = Literal["user data", "synthetic"]  # of the items that a profile was made from
USER_DATA: Origin = "user data"
SYNTHETIC: Origin = "synthetic"

Flags = NDArray[np.bool_]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FittedProfile:
    """What was fitted on I items, for N heads."""

    best: FittedSettings
    mass: NDArray[np.float32]  # (I, N) audio mass of the heads at the prompt's end
    direction: Tensor  # (D,) mean over the items
    listened: Flags  # (I,) whether an item was answered right, or its effect was large
    record: Mapping[str, Any]  # of the choices, as it stands in a profile
    held_out: Mapping[str, Any]
    refusal: str | None  # to steer
    silence: Silence
    meter_gate: MeterGate | None = None


def assembled(
    model: AudioModel,
    dataset: DataSet,
    fitted: FittedProfile,
    calibrated_on: Origin,
    trial: PromptTrial | None,
) -> Profile:
    """The profile of a model from what was fitted on a data set."""
    best, mass = fitted.best, fitted.mass
    scores = np.asarray(mass.mean(axis=1))
    return Profile(
        name=f"{model.name}-{dataset.sha256[:8]}",
        model=model.name,
        revision=model.revision,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=best.heads,
        correlations=best.r,
        intervention=best.intervention,
        gate=best.gate,
        fixed_strength=best.fixed_strength,
        verdicts=verdicts(scores, fitted.listened),
        calibration={
            "data": dataset.name,
            "sha256": dataset.sha256,
            "audio_sha256": dataset.audio_sha256,
            "items": len(dataset.items),
            "left_out": dataset.left_out,
            "calibrated_on": calibrated_on,
            "prompt_style": model.prompt_style.name,
            **({"prompt_trial": asdict(trial)} if trial else {}),
            **fitted.record,
        },
        held_out=fitted.held_out,
        versions=versions(),
        direction=fitted.direction,
        quantiles=np.quantile(scores, np.linspace(0, 1, 101)).astype(np.float32),
        head_mean=mass.mean(0).astype(np.float32),
        head_std=mass.std(0).astype(np.float32),
        refusal=fitted.refusal,
        silence=fitted.silence,
        meter_gate=fitted.meter_gate,
    )


def verdicts(scores: Scores, listened: Flags) -> Verdicts:
    """Two thresholds on the score, for the three verdicts.

    `listening` has the largest sum of sensitivity and specificity for items that were listened to,
    those answered right; `partly` is the median score of the others below. If all were, or none,
    the thresholds are quartiles of the scores.
    """
    if listened.all() or not listened.any():
        return Verdicts(*(float(q) for q in np.quantile(scores, [0.25, 0.75])))
    candidates = np.quantile(scores, np.linspace(0.02, 0.98, 97))
    balance = [(scores[listened] >= c).mean() + (scores[~listened] < c).mean() for c in candidates]
    listening = float(candidates[int(np.argmax(balance))])
    below = scores[~listened & (scores < listening)]
    return Verdicts(float(np.median(below)) if len(below) else listening, listening)
