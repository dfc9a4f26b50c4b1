"""Calibration: the specialist heads of a model, and direction and strength of its steering.

1. `data_checks`: all faults of the data are found. 2. `collecting`: one pass over each clip and one
over its silence are recorded. 3. `search`: all settings are tried on the recorded activations.
4. `confirmation`: the best really generate, outside the fold. 5. They become the profile.

By the criterion `effect` heads are chosen by what the sound does to every token of an answer
(`effects`). Items without answers then make a profile of the score alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activation_store import ActivationStore
from steering.calibration.activations import Activations, head_columns, pooled_directions
from steering.calibration.assembly import (
    SYNTHETIC,
    USER_DATA,
    FittedProfile,
    Origin,
    assembled,
)
from steering.calibration.collecting import (
    EVIDENCE,
    EvidenceKind,
    Progress,
    fill,
    open_store_for,
    take_over,
)
from steering.calibration.confirmation import (
    AnswerGenerator,
    Generate,
    answer_at_strengths,
    confirm,
    fit_on_generated,
)
from steering.calibration.data_checks import check_items
from steering.calibration.effects.effect_heads import (
    EffectData,
    effect_against_chance,
    refuse_without_effect,
)
from steering.calibration.effects.listening_only import fit_listening
from steering.calibration.effects.token_effects import TOKEN_EFFECTS, TokenEffects
from steering.calibration.option_mentions import FORMS
from steering.calibration.prompt_trial import PromptTrial
from steering.calibration.search import FOLDS, FittedSettings, Search
from steering.calibration.specialists import CORRECTNESS, EFFECT, Criterion, telling_rows
from steering.calibration.twin_choice import likeness, with_exact_twins
from steering.errors import DataError
from steering.items import DataSet
from steering.measures import Flags, paired_gain
from steering.meters.against_heads import against_heads
from steering.meters.regression import MeterGate, fit_regression
from steering.model.audio_model import AudioModel
from steering.profile import Profile, Silence, check_replaceable, save
from steering.strength import Gate

_NOT_SEARCHED = {
    "tokens": "every: one answer token is judged, the one that decides",
    "keep_norm": "false: it changes the likelihoods, and no greedy answer",
}


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
    criterion: Criterion = CORRECTNESS,
) -> Profile:
    """Calibrate a model on items, and save its profile.

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
        criterion: what heads are chosen by. `effect` needs no `choices` and `answer` in the items;
            unless all have them, no strength can be fitted, and the profile does not steer.

    Returns:
        The profile, as it was saved. Its max_strength is 0 if no gain was shown outside the fold.

    Raises:
        DataError: faults in the data, all of them, before the first pass; or all answers are right
            or all wrong. From synthetic items a profile that refuses to steer is made instead. By
            `effect`: the sound does nothing to the answers, or the heads are no better than chance.
        EvidenceError: `OUT.evidence` is another calibration's, damaged, in use, or has no room.
        AudioError: a clip can't be used.
        ProfileError: `out` holds other files and no profile.
        ModelError: the readout has no norm and matrix that can be steered, or workers fail.
    """
    check_replaceable(out)
    labelled = criterion == CORRECTNESS
    dataset = check_items(data, audio_root, skip_faulty=skip_faulty, labelled=labelled)
    with ExitStack() as opened:
        stores: list[ActivationStore] = []

        def recorded(kind: EvidenceKind) -> ActivationStore:
            store = opened.enter_context(open_store_for(model, dataset, out, kind))
            stores.append(store)
            fill(store, model, dataset.items, workers, progress, kind)
            return store

        effects = TokenEffects.of(recorded(TOKEN_EFFECTS)) if criterion == EFFECT else None
        by_effect = _by_effect(effects, dataset) if effects else None
        if effects and by_effect and not dataset.labelled:
            fitted = fit_listening(model, effects, by_effect)
            profile = assembled(model, dataset, fitted, calibrated_on, trial)
        else:
            profile = fit_profile(
                model,
                dataset,
                recorded(EVIDENCE).activations(),
                calibrated_on=calibrated_on,
                trial=trial,
                generate=AnswerGenerator(model, dataset.items, _still_wanted(progress, dataset)),
                by_effect=by_effect,
            )
        save(profile, out)
        if not keep_evidence:
            for store in stores:
                store.remove()
    return profile


def _by_effect(effects: TokenEffects, dataset: DataSet) -> EffectData:
    """The effects, if heads can be chosen by them; DataError, in plain words, if not."""
    data = EffectData.of(effects, dataset.items)
    refuse_without_effect(data)
    figures = effect_against_chance(data)
    if not figures["above_chance"]:
        raise DataError(figures["warning"])
    return data


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
        EvidenceError: as `calibrate`.
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
    by_effect: EffectData | None = None,
) -> Profile:
    """The best profile for recorded activations; DataError as `calibrate`.

    `generate` answers items in full, to confirm what one token of each predicts; None leaves that
    out. Heads are chosen `by_effect` where that is given.
    """
    silence: Silence = "ladder"
    search = Search(model, activations, dataset.items, by_effect)
    compared: dict[str, Any] = {}
    if activations.exact_differences is not None:
        exact = Search(model, with_exact_twins(activations), dataset.items, by_effect)
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
        gates = {best.reads: replace(best.gate, max_strength=0.0)}
        best = replace(best, gates=gates, fixed_strength=0.0)
    fitted = FittedProfile(
        best,
        activations.mass[:, head_columns(best.heads, model.num_heads)],
        pooled_directions(activations, best.intervention).mean(0),
        _listened(activations, by_effect),
        {
            "answer_forms": _forms(activations),
            "heads_optimise": search.goal,
            "head_choice": search.head_choice(),
            "meters": _meters_against_heads(search),
            "folds": FOLDS,
            "settings_tried": search.tried,
            "not_searched": _NOT_SEARCHED,
            "silence": compared,
        },
        fit.held_out,
        refusal,
        silence,
        meter_gate,
    )
    return assembled(model, dataset, fitted, calibrated_on, trial)


def _listened(activations: Activations, by_effect: EffectData | None) -> Flags:
    """(I,) whether items were answered right; by effect where that is the same for all."""
    right = np.asarray(activations.right)
    if by_effect is None or (right.any() and not right.all()):
        return right
    return by_effect.decided_first


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
            raise DataError(f"{error}. Or choose heads by the sound: --criterion effect") from error
        refusal = f"no gain from steering could be shown: {error}"
        return _Fit(search.without_steering(), refusal=refusal)
    try:
        outside = search.held_out()
        held_out = search.held_out_figures(outside)
        if outside.reads == "effect":
            best = replace(best, reads="effect")
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
    own settings, gates of the score, and outside the fold; empty if none could be judged.
    """
    try:
        gain = paired_gain(exact.held_out().by_score, ladder.held_out().by_score, ladder.clips)
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
