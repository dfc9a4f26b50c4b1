"""The search for a profile: all settings tried on stored activations, judged outside the fold.

Clips are grouped so that none is on both sides of a fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steering.attention.taps import Head
from steering.calibration import nulls
from steering.calibration.activations import Activations, all_heads, head_columns
from steering.calibration.effects.effect_heads import (
    EffectData,
    choose_by_effect,
    effect_against_chance,
)
from steering.calibration.effects.first_effects import first_effects
from steering.calibration.specialists import (
    CORRECTNESS,
    MIN_HEADS,
    HeadData,
    against_chance,
    audibility,
    choose_heads,
)
from steering.calibration.strength_intervals import StrengthIntervals, strength_intervals
from steering.errors import DataError
from steering.heads import choose
from steering.items import Item
from steering.measures import (
    auroc,
    auroc_against_silence,
    auroc_within_strata,
    paired_gain,
    repaired_broken,
)
from steering.model.audio_model import AudioModel
from steering.readout import Intervention
from steering.strength import Gate, Reading, gate_input, sigmoid

STRENGTHS = np.round(np.arange(0.0, 2.01, 0.05), 2)  # (S,) tried on every item; 0 is bare
FOLDS = 5
BY_EFFECT = "the effect of the sound on the tokens of answers"
FINALISTS = 6  # interventions for which gates are tried
GATE_WIDTHS = (0.1, 0.3, 0.5, 1.0)  # temperatures tried, in standard deviations of what is read
BROKEN_WEIGHT = 1.0  # a right answer that steering breaks counts this much more than one it repairs

Flags = NDArray[np.bool_]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FittedSettings:
    """One value of every setting that calibration chooses."""

    heads: tuple[Head, ...]
    r: tuple[float, ...]
    intervention: Intervention
    gates: Mapping[Reading, Gate]
    fixed_strength: float
    reads: Reading = "score"

    @property
    def gate(self) -> Gate:
        """The gate of what is read."""
        return self.gates[self.reads]


@dataclass(frozen=True, slots=True, eq=False)
class OutsideFold:
    """Every item judged by the settings that were fitted without its clip."""

    fold: NDArray[np.int64]  # (I,) of each item
    fits: Sequence[FittedSettings]  # of each fold
    reads: Reading  # what the gates read
    gain_of_effect: Sequence[float]  # in %: gates of the effect over those of the score, interval
    strengths: NDArray[np.float64]  # (I,) that the fold's gate gives
    bare: Flags  # (I,)
    fixed: Flags  # (I,)
    adaptive: Flags  # (I,)
    by_score: Flags  # (I,) adaptive, if the gates read the score
    scores: Scores  # (I,) by the fold's heads
    silent: Scores  # (I,) the same of the silent twins


class Search:
    """All settings tried on stored activations; fits on some rows, judges on others."""

    def __init__(
        self,
        model: AudioModel,
        activations: Activations,
        items: Sequence[Item],
        by_effect: EffectData | None = None,  # where heads are chosen by it
    ) -> None:
        self.model, self.by_effect = model, by_effect
        self.activations = activations
        self.items = items
        self.strata = [item.stratum for item in items]
        self.clips = np.array([str(item.audio) for item in items])  # (I,) path of each item's clip
        self.tried = 0  # settings, so far
        self._outside: OutsideFold | None = None  # once judged
        self._effects: NDArray[np.float64] | None = None  # (I,) once computed
        self._intervals: dict[tuple[tuple[int, ...], str], StrengthIntervals] = {}

    @property
    def goal(self) -> str:
        """The aim of the choice of heads, in words."""
        if self.by_effect:
            return BY_EFFECT
        if any(self.strata):
            return "right against wrong answers within wording and cue, and clip against silence"
        return "right against wrong answers, and clip against silence"

    def interventions(self, heads: Sequence[Head] = ()) -> Iterator[Intervention]:
        """Layer sets x (scaled to the norm of h, raw mean, raw sum) x place.

        The layer sets: the last, the upper half, all, and those of the heads. Scaled to the norm of
        h, mean and sum are the same.
        """
        count = self.model.num_layers
        sets = {(count - 1,), tuple(range(count // 2, count)), tuple(range(count))}
        sets |= {tuple(sorted({layer for layer, _ in heads}))} if heads else set()
        places: tuple[Literal["before_norm", "after_norm"], ...] = ("before_norm", "after_norm")
        for chosen, place in product(sorted(sets), places):
            yield Intervention(chosen, place=place)
            yield Intervention(chosen, place=place, scale="raw")
            if len(chosen) > 1:
                yield Intervention(chosen, place=place, scale="raw", pool="sum")

    @property
    def effects(self) -> NDArray[np.float64]:
        """(I,) bits of the sound on each item's first token."""
        if self._effects is None:
            self._effects = first_effects(self.model, self.activations)
        return self._effects

    def readings(self, reads: Reading, heads: Sequence[Head]) -> NDArray[np.floating]:
        """(I,) what a gate reads of each item."""
        if reads == "effect":
            return self.effects
        return self.activations.scores(heads, self.model.num_heads)

    def correct_at(self, intervention: Intervention) -> Flags:
        """(S, I): whether a right token leads at each strength, full vocabulary."""
        key = (intervention.layers, intervention.place)
        if key not in self._intervals:  # every scale and pooling is a multiple of the raw mean
            rows = np.arange(len(self.items))
            self._intervals[key] = strength_intervals(
                self.model, self.activations, intervention, rows
            )
        return self._intervals[key].correct_at(STRENGTHS[:, None], intervention)

    def fit(self, rows: NDArray[np.int64]) -> FittedSettings:
        """The best settings on some items.

        Every intervention is tried at every constant strength; gates are tried for the FINALISTS
        with the highest net accuracy, and one of the effect for the best of them.
        """
        heads, r = self.specialists(rows)
        scores = self.activations.scores(heads, self.model.num_heads)[rows]
        tried = [
            (intervention, self.correct_at(intervention)[:, rows])
            for intervention in self.interventions(heads)
        ]
        # The sort is stable: of equals the first stays in front.
        tried.sort(key=lambda pair: -max(self.net_by_strength(pair[1])))
        best_rank, best = (-np.inf, 0.0), None
        for intervention, right in tried[:FINALISTS]:
            gate, rank = self.best_gate(right, scores)
            if best is None or rank > best_rank:
                fixed = self.best_fixed(right)
                best = FittedSettings(heads, r, intervention, {"score": gate}, fixed)
                best_rank = rank
        assert best is not None
        right = self.correct_at(best.intervention)[:, rows]
        by_effect, _ = self.best_gate(right, self.effects[rows], "effect")
        return replace(best, gates={**best.gates, "effect": by_effect})

    def specialists(self, rows: NDArray[np.int64]) -> tuple[tuple[Head, ...], tuple[float, ...]]:
        """The heads chosen on some items, and the correlation of each with what it is chosen by."""
        if self.by_effect:
            choice = choose_by_effect(self.by_effect.select(rows))
        else:
            choice = choose_heads(self._head_data(rows))
        self.tried += choice.tried
        names = all_heads(self.model)
        return tuple(names[i] for i in choice.columns), tuple(
            float(choice.r[i]) for i in choice.columns
        )

    def head_choice(self) -> dict[str, Any]:
        """Figures of the choice of heads on all items, beside those of chance."""
        if self.by_effect:
            return effect_against_chance(self.by_effect)
        try:
            return against_chance(self._head_data(np.arange(len(self.items))), len(self.items))
        except DataError as error:
            return {"criterion": CORRECTNESS, "note": str(error)}

    def _head_data(self, rows: NDArray[np.int64]) -> HeadData:
        return HeadData.of(self.activations.select(rows), [self.items[i] for i in rows])

    def without_steering(self) -> FittedSettings:
        """The settings if no answer tells heads apart: those that hear best, no steering."""
        audio_auroc = audibility(self.activations)
        best = choose(audio_auroc, min(MIN_HEADS, len(audio_auroc)))
        heads = tuple(all_heads(self.model)[i] for i in best)
        threshold = float(np.median(self.activations.scores(heads, self.model.num_heads)))
        intervention = Intervention((self.model.num_layers - 1,))
        gates: dict[Reading, Gate] = {"score": Gate(0.0, threshold, 1.0)}
        return FittedSettings(heads, (0.0,) * len(heads), intervention, gates, 0.0)

    def best_fixed(self, right: Flags) -> float:
        """The constant strength of the highest net accuracy, smoothed over its neighbours."""
        return float(STRENGTHS[int(np.argmax(self.net_by_strength(right)))])

    def net_by_strength(self, right: Flags) -> NDArray[np.float64]:
        """(S,) net accuracy of each constant strength, smoothed over its neighbours."""
        self.tried += len(right)
        return smooth(net_accuracy(right, right[0]))

    def best_gate(
        self, right: Flags, readings: NDArray[np.floating], reads: Reading = "score"
    ) -> tuple[Gate, tuple[float, float]]:
        """The gate of the highest net accuracy, of equals the gentlest, and its rank."""
        best_rank, best = (float(right[0].mean()), 0.0), Gate(0.0, 0.5, 1.0, reads)  # bare
        inputs, items = gate_input(readings, reads), np.arange(len(readings))
        spread = float(inputs.std()) or 1.0
        thresholds = np.quantile(inputs, np.linspace(0.1, 1.0, 10))
        slopes = [(float(t), width * spread) for t in thresholds for width in GATE_WIDTHS]
        shares = np.stack([sigmoid((t - inputs) / temperature) for t, temperature in slopes])
        for top in STRENGTHS[4::2]:
            strengths = top * shares  # (G, I)
            net = net_accuracy(right[nearest(strengths), items], right[0])
            self.tried += len(slopes)
            ranks = zip(net.tolist(), (-strengths.mean(-1)).tolist(), strict=True)
            for rank, slope in zip(ranks, slopes, strict=True):
                if rank > best_rank:
                    best_rank, best = rank, Gate(float(top), *slope, reads)
        return best, best_rank

    def held_out(self) -> OutsideFold:
        """Settings fitted on four fifths of the clips and judged on the fifth, five times."""
        if self._outside is None:
            self._outside = self._fit_folds()
        return self._outside

    def _fit_folds(self) -> OutsideFold:
        """The same, not kept. Gates of the effect take the place of those of the score where they
        are right more often by an interval above 0: they need a deeper twin.
        """
        count, heads_a_layer = len(self.items), self.model.num_heads
        fold = folds(self.clips)
        fits: list[FittedSettings] = []
        ways: tuple[Reading, ...] = ("score", "effect")
        strengths = {reads: np.zeros(count) for reads in ways}
        adaptive = {reads: np.zeros(count, bool) for reads in ways}
        fixed = np.zeros(count, bool)
        scores, silent = np.zeros(count, np.float32), np.zeros(count, np.float32)
        for k in range(FOLDS):
            inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            best = self.fit(inside)
            fits.append(best)
            right = self.correct_at(best.intervention)[:, outside]
            scores[outside] = self.activations.scores(best.heads, heads_a_layer)[outside]
            silent[outside] = self.activations.silent_scores(best.heads, heads_a_layer)[outside]
            for reads, gate in best.gates.items():
                tried = nearest(gate.strengths(self.readings(reads, best.heads)[outside]))
                adaptive[reads][outside] = right[tried, np.arange(len(outside))]
                strengths[reads][outside] = STRENGTHS[tried]
            tried = nearest(np.full(len(outside), best.fixed_strength))
            fixed[outside] = right[tried, np.arange(len(outside))]
        bare = self.correct_at(Intervention((self.model.num_layers - 1,)))[0]
        gated = adaptive["effect"], adaptive["score"]
        gain = [_percent(x) for x in paired_gain(*gated, self.clips)]
        best_read: Reading = "effect" if gain[1] > 0 else "score"
        chosen = strengths[best_read], bare, fixed, adaptive[best_read], adaptive["score"]
        return OutsideFold(fold, fits, best_read, gain, *chosen, scores, silent)

    def held_out_figures(self, outside: OutsideFold) -> dict[str, Any]:
        """Figures outside the fold, and those of random choices beside them."""
        figures = self.figures(
            outside.bare, outside.fixed, outside.adaptive, outside.scores, outside.silent
        )
        figures["gain_of_effect_gate"] = list(outside.gain_of_effect)
        return {**figures, "nulls": self._nulls(outside.fold, outside.fits, outside.strengths)}

    def _nulls(
        self,
        fold: NDArray[np.int64],
        fits: Sequence[FittedSettings],
        strengths: NDArray[np.float64],
    ) -> dict[str, Any]:
        """Figures of random heads and random layers in place of each fold's own."""
        activations = self.activations
        columns = [head_columns(fit.heads, self.model.num_heads) for fit in fits]

        def share_right(layer_sets: Sequence[tuple[int, ...]]) -> float:
            right = 0
            for k, (fit, layers) in enumerate(zip(fits, layer_sets, strict=True)):
                rows = np.flatnonzero(fold == k)
                intervention = replace(fit.intervention, layers=layers)
                if len(rows):  # fewer clips than folds leave some empty
                    intervals = strength_intervals(self.model, activations, intervention, rows)
                    right += int(intervals.correct_at(strengths[rows], intervention).sum())
            return right / len(fold)

        return {
            "random_heads": nulls.random_heads(
                activations.mass, activations.right, self.strata, fold, columns
            ),
            "random_layers": nulls.random_layers(
                self.model.num_layers, [fit.intervention.layers for fit in fits], share_right
            ),
            **({} if self.by_effect else {"halves": nulls.stability(self.clips, self._head_data)}),
        }

    def figures(
        self, bare: Flags, fixed: Flags, adaptive: Flags, scores: Scores, silent: Scores
    ) -> dict[str, Any]:
        """Held-out accuracy by wording, gains with intervals, and AUROC of the score."""
        wordings = np.array([item.wording for item in self.items])
        shares = {
            name: {
                "all": _percent(right.mean()),
                **{w: _percent(right[wordings == w].mean()) for w in sorted(set(wordings)) if w},
            }
            for name, right in (("bare", bare), ("fixed", fixed), ("adaptive", adaptive))
        }
        return {
            "accuracy_percent": shares,
            "gain_balanced": [round(100 * x, 2) for x in paired_gain(adaptive, bare, self.clips)],
            "gain_over_fixed": [
                round(100 * x, 2) for x in paired_gain(adaptive, fixed, self.clips)
            ],
            "repaired_broken": list(repaired_broken(adaptive, bare)),
            "auroc_right_wrong": _rounded(auroc(scores, self.activations.right)),
            "auroc_right_wrong_within_wording": _rounded(
                auroc_within_strata(scores, self.activations.right, self.strata)
            ),
            "auroc_clip_silence": _rounded(auroc_against_silence(scores, silent)),
        }


def net_accuracy(right: Flags, bare: Flags) -> NDArray[np.float64]:
    """(...,) share right of (..., I), minus the weighted share that steering broke."""
    broken = np.count_nonzero(bare & ~right, axis=-1) / len(bare)
    return np.asarray(np.count_nonzero(right, axis=-1) / len(bare) - BROKEN_WEIGHT * broken)


def nearest(strengths: NDArray[np.float64]) -> NDArray[np.int64]:
    """(I,) index in STRENGTHS of the tried strength nearest to each."""
    return np.asarray(np.rint(strengths / STRENGTHS[1]).clip(0, len(STRENGTHS) - 1), np.int64)


def smooth(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each share and its neighbours, so that one lucky strength does not win."""
    padded = np.pad(shares, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def folds(clips: NDArray[np.str_]) -> NDArray[np.int64]:
    """(I,) fold of each item; items of one clip share theirs."""
    names, which = np.unique(clips, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[which] % FOLDS


def _rounded(figure: float) -> float | None:
    """To 4 digits; None if it could not be measured: all answers are right, or all wrong."""
    return None if np.isnan(figure) else round(figure, 4)


def _percent(share: float) -> float:
    return round(100 * float(share), 2)
