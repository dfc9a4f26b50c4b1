"""Confirmation: the chosen settings really generate, steered, and the whole answers are judged.

The search judges one token of each item. Here a sample of items is answered in full by the settings
of the fold that each item was held out of. Where generated accuracy parts from the predicted one by
more than MAX_DIFFERENCE_POINTS, the gate is fitted on generated answers: the sample is answered at
each of GRID, and a strength in between counts as the nearest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from steering.calibration.activations import (
    Activations,
    build_item_prompt,
    greedy_answer,
    load_item_clip,
    pooled_directions,
)
from steering.calibration.option_mentions import answered_right
from steering.calibration.search import (
    FOLDS,
    STRENGTHS,
    FittedSettings,
    OutsideFold,
    Search,
    nearest,
)
from steering.generation import SteeringPlan
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.model.one_thread import one_thread
from steering.prefill import prefill
from steering.readout import Intervention

SAMPLE_ITEMS = 300
MAX_DIFFERENCE_POINTS = 3.0
GRID = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)

Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]
Strengths = NDArray[np.float64]
# Activations, rows (N,), the intervention of each, strengths (N, G) -> (N, G) whether the answers
# are right.
Generate = Callable[[Activations, Rows, Sequence[Intervention], Strengths], Flags]


@dataclass(frozen=True, slots=True, eq=False)
class AnswerGenerator:
    """Greedy answers of a data set's items at given strengths, judged by MMAU's rule."""

    model: AudioModel
    items: Sequence[Item]
    after_each: Callable[[], None] = lambda: None  # an exception from it ends the work

    def __call__(
        self,
        activations: Activations,
        rows: Rows,
        interventions: Sequence[Intervention],
        strengths: Strengths,
    ) -> Flags:
        """(N, G) whether the answers are right: one pass over each clip, then G answers."""
        right = np.zeros(strengths.shape, bool)
        with one_thread(self.model):
            bar = tqdm(rows, "answering", disable=None)
            for n, (row, intervention) in enumerate(zip(bar, interventions, strict=True)):
                direction = pooled_directions(activations, intervention, np.array([row]))[0]
                right[n] = self._row(int(row), direction, intervention, strengths[n])
                self.after_each()
        return right

    def _row(
        self, row: int, direction: Tensor, intervention: Intervention, strengths: Strengths
    ) -> list[bool]:
        model, item = self.model, self.items[row]
        heard = prefill(model, build_item_prompt(model, item, load_item_clip(model, item)))
        plans = [
            SteeringPlan(direction.to(model.device), float(strength), intervention)
            for strength in strengths
        ]
        lettered = model.prompt_style.lettered
        return [
            answered_right(greedy_answer(model, heard, plan), item, lettered=lettered)
            for plan in plans
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Confirmation:
    """Predicted and generated accuracy of N items outside the fold."""

    rows: Rows  # (N,) of all items
    record: dict[str, Any]  # as it stands in a profile

    @property
    def parted(self) -> bool:
        """Whether the prediction is too far off to be used."""
        return any(
            abs(self.record[arm]["predicted_percent"] - self.record[arm]["generated_percent"])
            > MAX_DIFFERENCE_POINTS
            for arm in ("bare", "adaptive")
        )


def confirm(search: Search, outside: OutsideFold, generate: Generate) -> Confirmation:
    """Answer a sample of the items, each by the settings that were fitted without it."""
    rows = _sample(len(search.items))
    bare = search.activations.right[rows]
    adaptive = np.array(bare)  # at strength 0 the answer is the bare one
    steered = outside.strengths[rows] > 0
    if steered.any():
        interventions = [outside.fits[k].intervention for k in outside.fold[rows[steered]]]
        strengths = outside.strengths[rows[steered], None]
        answers = generate(search.activations, rows[steered], interventions, strengths)  # (N, 1)
        adaptive[steered] = answers[:, 0]
    record = {
        "items": len(rows),
        "bare": _side_by_side(outside.bare[rows], bare),
        "adaptive": _side_by_side(outside.adaptive[rows], adaptive),
    }
    confirmation = Confirmation(rows, record)
    record["words"] = _words(confirmation)
    return confirmation


def answer_at_strengths(
    search: Search, best: FittedSettings, rows: Rows, generate: Generate
) -> Flags:
    """(S, N) whether the whole answers of some items are right at each of STRENGTHS."""
    grid = np.array(GRID)
    interventions = [best.intervention] * len(rows)
    right = generate(search.activations, rows, interventions, np.tile(grid, (len(rows), 1)))
    tried = np.column_stack([search.activations.right[rows], right]).T  # (1 + G, N)
    distance = np.abs(STRENGTHS[:, None] - np.array([0.0, *grid]))
    return np.asarray(tried[distance.argmin(1)])


def fit_on_generated(
    search: Search, best: FittedSettings, outside: OutsideFold, rows: Rows, at_strengths: Flags
) -> tuple[FittedSettings, dict[str, Any]]:
    """The best settings with a gate fitted on generated answers (S, N), and their figures outside
    the fold. Heads and direction stay: the heads were chosen by whole answers.
    """
    sampled = Search(search.model, search.activations.select(rows), [search.items[i] for i in rows])
    fold = outside.fold[rows]
    adaptive, fixed = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    scores, silent = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    for k in range(FOLDS):
        inside, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if not len(inside) or not len(held):
            continue
        own = search.readings(outside.reads, outside.fits[k].heads)[rows]
        gate, _ = sampled.best_gate(at_strengths[:, inside], own[inside], outside.reads)
        adaptive[held] = at_strengths[nearest(gate.strengths(own[held])), held]
        constant = np.full(len(held), sampled.best_fixed(at_strengths[:, inside]))
        fixed[held] = at_strengths[nearest(constant), held]
        heads, heads_a_layer = outside.fits[k].heads, search.model.num_heads
        scores[held] = sampled.activations.scores(heads, heads_a_layer)[held]
        silent[held] = sampled.activations.silent_scores(heads, heads_a_layer)[held]
    figures = sampled.figures(at_strengths[0], fixed, adaptive, scores, silent)
    readings = search.readings(outside.reads, best.heads)[rows]
    gate, _ = sampled.best_gate(at_strengths, readings, outside.reads)
    gates, fixed_strength = {outside.reads: gate}, sampled.best_fixed(at_strengths)
    return replace(best, gates=gates, fixed_strength=fixed_strength), figures


def _sample(count: int) -> Rows:
    """(N,) rows of at most SAMPLE_ITEMS items, drawn at random, in their order."""
    drawn = np.random.default_rng(4).permutation(count)[:SAMPLE_ITEMS]
    return np.sort(drawn)


def _side_by_side(predicted: Flags, generated: Flags) -> dict[str, float]:
    return {
        "predicted_percent": round(100 * float(predicted.mean()), 2),
        "generated_percent": round(100 * float(generated.mean()), 2),
        "agree_percent": round(100 * float((predicted == generated).mean()), 2),
    }


def _words(confirmation: Confirmation) -> str:
    """The comparison in plain words."""
    record = confirmation.record
    arms = "; ".join(
        f"{arm}: predicted {record[arm]['predicted_percent']:.1f} % right, generated"
        f" {record[arm]['generated_percent']:.1f} %"
        for arm in ("bare", "adaptive")
    )
    if not confirmation.parted:
        return f"{record['items']} items answered in full, outside the fold. {arms}"
    return (
        f"{record['items']} items answered in full, outside the fold. {arms}. They part by more"
        f" than {MAX_DIFFERENCE_POINTS:g} points, so the gate and the figures are from generated"
        f" answers, at strengths 0, {', '.join(f'{strength:g}' for strength in GRID)}"
    )
