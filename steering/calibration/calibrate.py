"""Calibration: which heads listen, in which direction to steer, how far. A profile comes out.

Every item is heard once and its silence once (`gathering`); the `search` runs on what was kept of
them, and what is reported is measured outside the fold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations, pooled_directions
from steering.calibration.collecting import Progress, fill, open_store_for, versions
from steering.calibration.data_checks import check_items
from steering.calibration.search import FOLDS, FittedSettings, Search
from steering.errors import DataError
from steering.heads import Verdicts
from steering.items import DataSet
from steering.model.audio_model import AudioModel
from steering.profile import Profile, save

_NOT_SEARCHED = {
    "tokens": "every: one answer token is judged, the one that decides",
    "keep_norm": "false: it changes the likelihoods, and no greedy answer",
}

Origin = Literal["user data", "synthetic"]  # of the items that a profile was made from
USER_DATA: Origin = "user data"
SYNTHETIC: Origin = "synthetic"

Flags = NDArray[np.bool_]
Scores = NDArray[np.float32]


def calibrate(
    model: AudioModel,
    data: Path,
    audio_root: Path,
    out: Path,
    *,
    workers: int = 1,
    calibrated_on: Origin = USER_DATA,
    progress: Progress | None = None,
    skip_faulty: bool = False,
    keep_evidence: bool = False,
) -> Profile:
    """The profile of a model from a data set, saved in `out` as well.

    What the model does on each item is kept in the folder `evidence_of(out)` while it is gathered:
    a run that was stopped goes on from there, and the profile is the same to the last byte. The
    folder is deleted once the profile is saved, unless `keep_evidence`. `progress` is called with
    the items done and all items.

    Raises DataError for faults in the data, before the first pass, and where all answers are right
    or all wrong. Synthetic items are for models that nobody knows yet: there the profile is made
    all the same, and refuses to steer.
    """
    dataset = check_items(data, audio_root, skip_faulty=skip_faulty)
    with open_store_for(model, dataset, out) as store:
        fill(store, model, dataset.items, workers, progress)
        profile = fit_profile(model, dataset, store.activations(), calibrated_on=calibrated_on)
        save(profile, out)
        if not keep_evidence:
            store.remove()
    return profile


def fit_profile(
    model: AudioModel,
    dataset: DataSet,
    activations: Activations,
    *,
    calibrated_on: Origin = USER_DATA,
) -> Profile:
    """The profile that the evidence of a data set supports; DataError as `calibrate`."""
    search = Search(model, activations, dataset.items)
    best, held_out, refusal = _fitted(search, calibrated_on)
    if refusal:
        best = replace(best, gate=replace(best.gate, max_strength=0.0), fixed_strength=0.0)
    scores = activations.scores(best.heads, model.heads)
    columns = activations.mass[:, [layer * model.heads + head for layer, head in best.heads]]
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
        verdicts=verdicts(scores, activations.right),
        calibration={
            "data": dataset.name,
            "sha256": dataset.sha256,
            "audio_sha256": dataset.audio_sha256,
            "items": len(dataset.items),
            "left_out": dataset.left_out,
            "calibrated_on": calibrated_on,
            "heads_optimise": search.goal,
            "folds": FOLDS,
            "settings_tried": search.tried,
            "not_searched": _NOT_SEARCHED,
        },
        held_out=held_out,
        versions=versions(),
        direction=pooled_directions(activations, best.intervention).mean(0),
        quantiles=np.quantile(scores, np.linspace(0, 1, 101)).astype(np.float32),
        head_mean=columns.mean(0).astype(np.float32),
        head_std=columns.std(0).astype(np.float32),
        refusal=refusal,
    )


def _fitted(
    search: Search, calibrated_on: str
) -> tuple[FittedSettings, dict[str, Any], str | None]:
    """The best setting, what it reached outside the fold, and why steering is refused, if it is."""
    try:
        best = search.fit(np.arange(len(search.items)))
    except DataError as error:
        if calibrated_on != SYNTHETIC:
            raise
        return search.without_steering(), {}, f"no gain from steering could be shown: {error}"
    try:
        held_out = search.held_out()
    except DataError as error:
        return (
            best,
            {},
            f"no gain from steering could be shown outside the fold: {error}",
        )
    return best, held_out, _refusal(held_out)


def _refusal(held_out: dict[str, Any]) -> str | None:
    """Why steering is refused, in plain words; None where it gains outside the fold."""
    gain, low, high = held_out["gain_balanced"]
    if low > 0:
        return None
    return (
        "calibration found no gain from steering this model: outside the fold it changed the share"
        f" of right answers by {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    )


def verdicts(scores: Scores, right: Flags) -> Verdicts:
    """Two thresholds: where right and wrong answers are told apart best, and half-way below.

    `listening` has the largest sum of sensitivity and specificity for a right answer; `partly` is
    the median score of the wrong answers under it. Where all answers are right, or all wrong, they
    part nothing: then the thresholds are quartiles of the scores.
    """
    if right.all() or not right.any():
        return Verdicts(*(float(q) for q in np.quantile(scores, [0.25, 0.75])))
    candidates = np.quantile(scores, np.linspace(0.02, 0.98, 97))
    balance = [(scores[right] >= c).mean() + (scores[~right] < c).mean() for c in candidates]
    listening = float(candidates[int(np.argmax(balance))])
    below = scores[~right & (scores < listening)]
    return Verdicts(float(np.median(below)) if len(below) else listening, listening)
