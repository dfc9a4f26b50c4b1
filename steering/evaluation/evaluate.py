"""Evaluation: every arm answers every item; gains come with intervals, controls beside them.

1. The data is read and checked. 2. Activations are recorded: one prefill of each clip and one of
its silence, and every token of an open answer about each clip. 3. Constant strengths are tried on
them, and each arm's strengths chosen. 4. Every arm answers every item, into a journal from which a
killed run goes on. 5. Predictions, figures and the report are written; the journal of a finished
run is removed.

The report needs packages of the extra `evaluate`, which are imported when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import ANSWER, Activations
from steering.calibration.collecting import fill, open_store_for, versions
from steering.calibration.effects.effect_heads import EffectData
from steering.calibration.effects.first_effects import first_effects
from steering.calibration.effects.token_effects import TOKEN_EFFECTS, TokenEffects
from steering.calibration.option_mentions import prediction
from steering.calibration.twin_choice import with_exact_twins
from steering.errors import AllEarsError
from steering.evaluation.answering import OPEN_QUESTION, AnswerOptions, ArmRunner
from steering.evaluation.arms import PERMUTED_ARMS, ArmStrengths, choose_strengths, permuted
from steering.evaluation.controls import control_figures, try_constants
from steering.evaluation.effect_figures import (
    effect_figures,
    effect_table,
    open_questions,
    tokens_csv,
)
from steering.evaluation.figures import arm_figures, item_rows, part_figures, rightness, table
from steering.evaluation.journal import Journal
from steering.evaluation.localisation import localisation_figures
from steering.evaluation.meter_figures import meter_figures
from steering.evaluation.predictions import csv_text, write_predictions, write_whole
from steering.evaluation.provenance import data_record, prompt_text
from steering.evaluation.separation import correlation_map, listening_figures
from steering.items import DataSet, read
from steering.measures import Flags
from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread
from steering.profile import Profile

__all__ = ["AnswerOptions", "effect_table", "evaluate", "require_report_packages", "table"]

JOURNAL = "answers.partial.jsonl"
REPORT_PACKAGES = ("jinja2", "markupsafe", "matplotlib")  # of the extra `evaluate`


def require_report_packages() -> None:
    """Raise AllEarsError unless the packages that write the report are installed."""
    missing = [package for package in REPORT_PACKAGES if find_spec(package) is None]
    if missing:
        raise AllEarsError(
            f"evaluation writes a report and needs {', '.join(missing)}: "
            "pip install 'allears[evaluate]'"
        )


def evaluate(
    model: AudioModel,
    profile: Profile,
    data: Path,
    audio_root: Path,
    out: Path,
    seed: int = 0,
    *,
    mode: str = "generate",
    max_tokens: int = ANSWER.max_tokens,
    open_question: str = OPEN_QUESTION,
) -> dict[str, Any]:
    """Answer every item bare, steered and by every control, and write a report.

    A run that was stopped goes on when it is started again with the same arguments.
    Source: arXiv 2603.06854 for steering; arXiv 2506.07233 for the arm `aad`.

    Args:
        model: what answers.
        profile: how it is steered.
        data: items in MMAU's, MMAR's or the plain form.
        audio_root: folder that the items' audio paths start from.
        out: folder for `predictions.<arm>.json`, `results.json`, `items.csv`, `tokens.csv`,
            `report.html` and the report's figures.
        seed: of the random controls, the permuted options and the bootstrap.
        mode: `generate` writes answers, `choices` takes the likeliest option.
        max_tokens: of a written answer.
        open_question: asked of every clip without options: score and effect of the answer's tokens
            are compared.

    Returns:
        The contents of `results.json`: shares right and gains of every arm with 95 % intervals,
        by mix and part of the data, figures of the listening score beside meters of the waveform,
        of the timeline where items name their events, and of the controls.

    Raises:
        AllEarsError: the packages of the extra `evaluate` are not installed.
        DataError: faults in the data, all of them, before the first pass; or `out` holds the
            answers of another run that was stopped.
        EvidenceError: what was recorded of the items is another run's, damaged, or has no room.
        AudioError: a clip can't be used.
    """
    require_report_packages()
    options = AnswerOptions(mode, seed, max_tokens, open_question)
    dataset = read(data, audio_root)
    opened = open_questions(dataset, open_question)
    out.mkdir(parents=True, exist_ok=True)
    run = _run(model, profile, dataset, options)
    with (
        one_thread(model),
        Journal(out / JOURNAL, run) as journal,
        open_store_for(model, dataset, out / "listening") as store,
        open_store_for(model, opened, out / "listening", TOKEN_EFFECTS) as tokens,
    ):
        fill(store, model, dataset.items, 1, None)
        fill(tokens, model, opened.items, 1, None, TOKEN_EFFECTS)
        recorded = store.activations(), TokenEffects.of(tokens)
        results = _results(model, profile, dataset, opened, *recorded, options, journal, out)
        store.remove()
        tokens.remove()
    (out / JOURNAL).unlink()
    return results


def _results(
    model: AudioModel,
    profile: Profile,
    dataset: DataSet,
    opened: DataSet,
    activations: Activations,
    token_effects: TokenEffects,
    options: AnswerOptions,
    journal: Journal,
    out: Path,
) -> dict[str, Any]:
    """Figures of the answers by every arm; writes the files."""
    from steering.evaluation.report import ReportDetails, write_report  # needs the extra `evaluate`

    items, seed = dataset.items, options.seed
    if profile.silence == "exact":  # as it is served
        activations = with_exact_twins(activations)
    constants = try_constants(model, profile, items, activations, options.mode)
    arm_strengths = choose_strengths(model, profile, items, activations, seed, constants.best())
    answers = ArmRunner(model, profile, items, activations, arm_strengths, options).run(journal)
    outputs = _predictions(dataset, answers, options, lettered=model.prompt_style.lettered)
    right = rightness(items, outputs)
    activations = replace(activations, right=right["bare"])
    effect = first_effects(model, activations)
    scores = activations.scores(profile.heads, model.num_heads)
    results = {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "profile": profile.name,
        "data": data_record(dataset),
        "asking": {
            **asdict(options),
            "prompt_style": model.prompt_style.name,
            "first_prompt": prompt_text(model, items[0]),
        },
        "seed": seed,
        "versions": versions(),
        "arms": arm_figures(items, right, seed),
        "parts": part_figures(items, right, seed),
        "listening": listening_figures(model, profile, items, activations, effect, seed),
        "effect": effect_figures(
            model,
            profile,
            items,
            activations,
            effect,
            EffectData.of(token_effects, opened.items),
            seed,
        ),
        "meters": meter_figures(profile, items, activations, scores, effect, seed),
        "timeline": localisation_figures(model, profile, items, activations, seed),
        "correlation_map": correlation_map(model, items, activations),
        "first_tokens": control_figures(
            model, profile, items, activations, constants, arm_strengths, seed
        ),
    }
    for arm, texts in outputs.items():
        write_predictions(out / f"predictions.{arm}.json", items, texts)
    write_whole(
        out / "items.csv",
        _items_csv(model, profile, dataset, activations, effect, arm_strengths, right),
    )
    write_whole(out / "tokens.csv", tokens_csv(model, profile, opened, token_effects))
    write_whole(out / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    details = ReportDetails(model, profile, items, activations, outputs, right, effect)
    write_report(out, results, details)
    return results


def _run(
    model: AudioModel, profile: Profile, dataset: DataSet, options: AnswerOptions
) -> dict[str, str | int]:
    """The identity of a run: with another value of any of these its answers are not reused."""
    settings = [
        profile.heads,
        asdict(profile.intervention),
        asdict(profile.gate),
        profile.fixed_strength,
        profile.meter_gate.record() if profile.meter_gate else None,
    ]
    digest = sha256(json.dumps(settings).encode() + profile.direction.numpy().tobytes())
    return {
        "model": model.fingerprint,
        "profile": digest.hexdigest()[:16],
        "data": dataset.sha256[:16],
        "prompt_style": model.prompt_style.name,
        **asdict(options),
    }


def _predictions(
    dataset: DataSet,
    answers: Mapping[str, Sequence[str]],
    options: AnswerOptions,
    *,
    lettered: bool,
) -> dict[str, list[str]]:
    """By arm: predictions in the form of the official scripts."""
    permuted_items = [permuted(item, options.seed) for item in dataset.items]
    return {
        arm: [
            prediction(text, item.choices, lettered=lettered)
            for text, item in zip(
                texts, permuted_items if arm in PERMUTED_ARMS else dataset.items, strict=True
            )
        ]
        for arm, texts in answers.items()
    }


def _items_csv(
    model: AudioModel,
    profile: Profile,
    dataset: DataSet,
    activations: Activations,
    effect: NDArray[np.float64],
    arm_strengths: ArmStrengths,
    right: Mapping[str, Flags],
) -> str:
    """CSV: score, silent score, effect and strength of every item, and which arms were right."""
    header, *rows = item_rows(
        right,
        {
            "score": activations.scores(profile.heads, model.num_heads).round(5),
            "silent_score": activations.silent_scores(profile.heads, model.num_heads).round(5),
            "effect_bits": effect.round(4),
            "strength": arm_strengths.by_arm["adaptive"].round(4),
        },
    )
    return csv_text(
        [header, *([item.id, *row] for item, row in zip(dataset.items, rows, strict=True))]
    )
