"""Calibration: the specialist heads of a model, and direction and strength of its steering.

1. `data_checks`: all faults of the data are found. 2. `collecting`: one pass over each clip and one
over its silence are recorded. 3. `search`: all settings are tried on the recorded activations.
4. `confirmation`: the best really generate, outside the fold. 5. They become the profile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations, head_columns, pooled_directions
from steering.calibration.collecting import (
    Progress,
    fill,
    open_store_for,
    take_over,
    versions,
)
from steering.calibration.confirmation import (
    AnswerGenerator,
    Generate,
    answer_at_strengths,
    confirm,
    fit_on_generated,
)
from steering.calibration.data_checks import check_items
from steering.calibration.option_mentions import FORMS
from steering.calibration.prompt_trial import PromptTrial
from steering.calibration.search import FOLDS, FittedSettings, Search
from steering.calibration.specialists import telling_rows
from steering.calibration.twin_choice import likeness, with_exact_twins
from steering.errors import DataError
from steering.heads import Verdicts
from steering.items import DataSet
from steering.measures import paired_gain
from steering.meters.against_heads import against_heads
from steering.meters.regression import MeterGate, fit_regression
from steering.model.audio_model import AudioModel
from steering.profile import Profile, Silence, check_replaceable, save
from steering.strength import Gate

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
    trial: PromptTrial | None = None,
) -> Profile:
    """Calibrate a model on items with known answers, and save its profile.

    The activations are kept beside `out`, in `OUT.evidence`, while they are recorded: a run that
    was stopped goes on from there, and its profile is the same to the last byte.
    Source: arXiv 2603.06854, section on audio-specialist heads; the gate is ours.

    Args:
        model: the model to calibrate.
        data: items in MMAU's, MMAR's or the plain form; `audio_root` holds their clips.
        out: folder of the profile.
        workers: processes that share the items; more than one needs Ray.
        calibrated_on: origin of the items, written into the profile.
        progress: called with the items done and all items, and again while answers are confirmed;
            an exception from it ends the work.
        skip_faulty: leave items with faults out, and count them in the profile.
        keep_evidence: keep `OUT.evidence` when the profile is saved.
        trial: how the model's prompt style was chosen, written into the profile.

    Returns:
        The profile, as it was saved. Its max_strength is 0 if no gain was shown outside the fold.

    Raises:
        DataError: faults in the data, all of them, before the first pass; or all answers are right
            or all wrong. From synthetic items a profile that refuses to steer is made instead.
        AudioError: a clip can't be used.
        ProfileError: `out` holds other files and no profile.
        ModelError: the readout has no norm and matrix that can be steered, or workers fail.
    """
    check_replaceable(out)
    dataset = check_items(data, audio_root, skip_faulty=skip_faulty)
    with open_store_for(model, dataset, out) as store:
        fill(store, model, dataset.items, workers, progress)
        activations = store.activations()
        profile = fit_profile(
            model,
            dataset,
            activations,
            calibrated_on=calibrated_on,
            trial=trial,
            generate=AnswerGenerator(model, dataset.items, _still_wanted(progress, dataset)),
        )
        save(profile, out)
        if not keep_evidence:
            store.remove()
    return profile


def beats_chance(
    model: AudioModel,
    data: Path,
    audio_root: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    earlier: Path | None = None,
) -> bool | None:
    """Record the activations of items, and judge the heads that would be chosen on them.

    What is recorded stays in `OUT.evidence`, for `calibrate`.

    Args:
        model: the model to calibrate.
        data: items; `audio_root` holds their clips.
        out: folder of the profile that `calibrate` would write.
        progress: called with the items done and all items.
        earlier: evidence folder of the first of these items; what fits is moved from there, and the
            folder is deleted.

    Returns:
        Whether the choice of heads is above chance; None where all answers are right or all wrong.

    Raises:
        DataError: faults in the data.
    """
    dataset = check_items(data, audio_root)
    with open_store_for(model, dataset, out) as store:
        if earlier is not None:
            take_over(store, model, dataset, earlier)
        fill(store, model, dataset.items, 1, progress)
        choice = Search(model, store.activations(), dataset.items).head_choice()
    above: bool | None = choice.get("above_chance")
    return above


def fit_profile(
    model: AudioModel,
    dataset: DataSet,
    activations: Activations,
    *,
    calibrated_on: Origin = USER_DATA,
    generate: Generate | None = None,
    trial: PromptTrial | None = None,
) -> Profile:
    """The best profile for recorded activations; DataError as `calibrate`.

    `generate` answers items in full, to confirm what one token of each predicts; None leaves that
    out.
    """
    silence: Silence = "ladder"
    search = Search(model, activations, dataset.items)
    compared: dict[str, Any] = {}
    if activations.exact_differences is not None:
        exact = Search(model, with_exact_twins(activations), dataset.items)
        compared["gain_of_exact"] = gain = _gain_of_exact(exact, search)
        if gain and gain[1] > 0:  # what the ladder saves costs right answers
            silence, search = "exact", exact
    fit = _fitted(search, calibrated_on, generate)
    best, refusal = fit.settings, fit.refusal
    if compared:
        compared |= likeness(activations, best.intervention, best.heads, model.num_heads)
    activations = search.activations
    meter_gate = _meter_gate(search, fit)
    if refusal:
        best = replace(best, gate=replace(best.gate, max_strength=0.0), fixed_strength=0.0)
    scores = activations.scores(best.heads, model.num_heads)
    mass = activations.mass[
        :, head_columns(best.heads, model.num_heads)
    ]  # (I, N) of the specialists
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
            "prompt_style": model.prompt_style.name,
            **({"prompt_trial": asdict(trial)} if trial else {}),
            "answer_forms": _forms(activations),
            "heads_optimise": search.goal,
            "head_choice": search.head_choice(),
            "meters": _meters_against_heads(search),
            "folds": FOLDS,
            "settings_tried": search.tried,
            "not_searched": _NOT_SEARCHED,
            "silence": compared,
        },
        held_out=fit.held_out,
        versions=versions(),
        direction=pooled_directions(activations, best.intervention).mean(0),
        quantiles=np.quantile(scores, np.linspace(0, 1, 101)).astype(np.float32),
        head_mean=mass.mean(0).astype(np.float32),
        head_std=mass.std(0).astype(np.float32),
        refusal=refusal,
        silence=silence,
        meter_gate=meter_gate,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The best settings, and the answers that their gate was fitted on."""

    settings: FittedSettings
    held_out: dict[str, Any] = field(default_factory=dict)  # figures outside the fold
    refusal: str | None = None  # why steering is refused
    rows: NDArray[np.int64] | None = None  # (N,) items whose answers were generated; None is all
    right: Flags | None = None  # (S, N) whether these are right at each strength


def _still_wanted(progress: Progress | None, dataset: DataSet) -> Callable[[], None]:
    """Progress reported once more, so that it can stop the work while answers are confirmed."""
    count = len(dataset.items)
    return lambda: progress(count, count) if progress else None


def _fitted(search: Search, calibrated_on: str, generate: Generate | None) -> _Fit:
    """The best settings, their held-out figures, and the reason if steering is refused."""
    try:
        best = search.fit(np.arange(len(search.items)))
    except DataError as error:
        if calibrated_on != SYNTHETIC:
            raise
        refusal = f"no gain from steering could be shown: {error}"
        return _Fit(search.without_steering(), refusal=refusal)
    try:
        outside = search.held_out()
        held_out = search.held_out_figures(outside)
    except DataError as error:
        return _Fit(best, refusal=f"no gain from steering could be shown outside the fold: {error}")
    rows = right = None
    if generate:
        confirmation = confirm(search, outside, generate)
        if confirmation.parted:
            rows = confirmation.rows
            right = answer_at_strengths(search, best, rows, generate)
            best, figures = fit_on_generated(search, best, outside, rows, right)
            held_out |= figures
        held_out["generated"] = confirmation.record
    return _Fit(best, held_out, _refusal(held_out), rows, right)


def _meter_gate(search: Search, fit: _Fit) -> MeterGate | None:
    """The gate fed by the clip's meters, fitted as the score's is; its strength is 0 where steering
    is refused. None where the meters were not recorded, or all answers are right or all wrong.
    """
    meters, rows = search.activations.meters, fit.rows
    if meters is None:
        return None
    telling = telling_rows(search.items)
    regression = fit_regression(meters[telling], search.activations.right[telling])
    if regression is None:
        return None
    if fit.refusal:
        return MeterGate(regression, Gate(0.0, 0.0, 1.0))
    right = search.correct_at(fit.settings.intervention) if fit.right is None else fit.right
    odds = regression.log_odds(meters if rows is None else meters[rows])
    return MeterGate(regression, search.best_gate(right, odds)[0])


def _meters_against_heads(search: Search) -> dict[str, Any]:
    """The heads beside meters of the waveform, outside the fold; empty where it is not known."""
    meters, rows = search.activations.meters, telling_rows(search.items)
    try:
        outside = search.held_out()
    except DataError:
        return {}
    if meters is None:
        return {}
    return against_heads(
        meters[rows],
        outside.scores[rows],
        search.activations.right[rows],
        [search.strata[i] for i in rows],
        outside.fold[rows],
        search.clips[rows].tolist(),
    )


def _gain_of_exact(exact: Search, ladder: Search) -> list[float]:
    """Gain and 95 % interval, in points, of steering by exact twins over the ladder's, each by its
    own settings and outside the fold; empty if none could be judged.
    """
    try:
        gain = paired_gain(exact.held_out().adaptive, ladder.held_out().adaptive)
    except DataError:
        return []
    return [round(100 * x, 2) for x in gain]


def _forms(activations: Activations) -> dict[str, int]:
    """Number of bare answers in each form that occurs."""
    counts = np.bincount(activations.form, minlength=len(FORMS))
    return {form: int(count) for form, count in zip(FORMS, counts, strict=True) if count}


def _refusal(held_out: dict[str, Any]) -> str | None:
    """The reason why steering is refused, in plain words; None if it gains outside the fold."""
    gain, low, high = held_out["gain_balanced"]
    if low > 0:
        return None
    return (
        "calibration found no gain from steering this model: outside the fold it changed the share"
        f" of right answers by {gain:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    )


def verdicts(scores: Scores, right: Flags) -> Verdicts:
    """Two thresholds on the score, for the three verdicts.

    `listening` has the largest sum of sensitivity and specificity for a right answer; `partly` is
    the median score of the wrong answers below. If all answers are right, or all wrong, the
    thresholds are quartiles of the scores.
    """
    if right.all() or not right.any():
        return Verdicts(*(float(q) for q in np.quantile(scores, [0.25, 0.75])))
    candidates = np.quantile(scores, np.linspace(0.02, 0.98, 97))
    balance = [(scores[right] >= c).mean() + (scores[~right] < c).mean() for c in candidates]
    listening = float(candidates[int(np.argmax(balance))])
    below = scores[~right & (scores < listening)]
    return Verdicts(float(np.median(below)) if len(below) else listening, listening)
