"""Calibration: which heads listen, in which direction to steer, how far. A profile comes out.

The search runs on stored vectors, with clips grouped so that none is on both sides of a fold; what
is reported is measured outside the fold.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from steering.errors import DataError
from steering.evidence import Evidence, all_heads, gather
from steering.heads import Verdicts, choose, correlations
from steering.items import DataSet, Item, read
from steering.measures import auroc, paired_gain, repaired_broken
from steering.model import AudioModel
from steering.profile import Profile, save
from steering.readout import Intervention, logits, pool
from steering.strength import Gate
from steering.taps import Head

STRENGTHS = np.round(np.arange(0.0, 2.01, 0.05), 2)  # (S,) tried on every item; 0 is bare
HEAD_COUNTS = (4, 8, 12, 16)
MIN_AUDIBILITY = 0.85  # of a specialist: AUROC of its mass on a clip against its silence
FOLDS = 5
BROKEN_WEIGHT = 1.0  # a right answer that steering breaks counts this much more than one it repairs
MIN_ITEMS = 40

SYNTHETIC: Literal["synthetic"] = "synthetic"
USER_DATA: Literal["user data"] = "user data"

Progress = Callable[[int, int], None]
Flags = NDArray[np.bool_]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fit:
    """One setting of everything that calibration chooses."""

    heads: tuple[Head, ...]
    r: tuple[float, ...]
    how: Intervention
    gate: Gate
    fixed_strength: float


def calibrate(
    model: AudioModel,
    data: Path,
    audio_root: Path,
    out: Path,
    *,
    calibrated_on: Literal["user data", "synthetic"] = USER_DATA,
    progress: Progress | None = None,
) -> Profile:
    """The profile of a model from a data set, saved in `out` as well.

    `progress` is called with the items done and all items; what it raises ends the calibration.
    Raises DataError for faults in the data, for too few items, and where all answers are right or
    all wrong.
    """
    dataset = read(data, audio_root)
    if len(dataset.items) < MIN_ITEMS:
        raise DataError(
            f"{data}: {len(dataset.items)} items; calibration needs at least {MIN_ITEMS}"
        )
    evidence = gather(model, dataset.items, progress)
    profile = fit_profile(model, dataset, evidence, calibrated_on=calibrated_on)
    save(profile, out)
    return profile


def fit_profile(
    model: AudioModel,
    dataset: DataSet,
    evidence: Evidence,
    *,
    calibrated_on: Literal["user data", "synthetic"] = USER_DATA,
) -> Profile:
    """The profile that the evidence of a data set supports."""
    search = Search(model, evidence, dataset.items)
    held_out = search.held_out()
    best = search.fit(np.arange(len(dataset.items)))
    _, low, _ = held_out["gain_balanced"]
    if low <= 0:  # outside the fold, steering is not above nothing: refuse it, and say so
        best = Fit(best.heads, best.r, best.how, Gate(0.0, best.gate.threshold, 1.0), 0.0)
    scores = evidence.scores(best.heads, model.heads)
    directions = pool(torch.from_numpy(evidence.differences[:, list(best.how.layers)]), best.how)
    columns = evidence.mass[:, [layer * model.heads + head for layer, head in best.heads]]
    return Profile(
        name=f"{model.name}-{dataset.sha256[:8]}",
        model=model.name,
        revision=model.revision,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=best.heads,
        correlations=best.r,
        how=best.how,
        gate=best.gate,
        fixed_strength=best.fixed_strength,
        verdicts=verdicts(scores, evidence.right),
        calibration={
            "data": dataset.name,
            "sha256": dataset.sha256,
            "items": len(dataset.items),
            "calibrated_on": calibrated_on,
            "folds": FOLDS,
            "settings_tried": search.tried,
        },
        held_out=held_out,
        versions=versions(),
        direction=directions.mean(0),
        quantiles=np.quantile(scores, np.linspace(0, 1, 101)).astype(np.float32),
        head_mean=columns.mean(0).astype(np.float32),
        head_std=columns.std(0).astype(np.float32),
    )


def versions() -> dict[str, str]:
    """Of Python and the packages that figures depend on; allears is 0 where it is not installed."""
    found = {"allears": "0", "python": platform.python_version()}
    for package in ("allears", "torch", "transformers", "numpy"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def verdicts(scores: Scores, right: Flags) -> Verdicts:
    """Two thresholds: where right and wrong answers are told apart best, and half-way below.

    `listening` has the largest sum of sensitivity and specificity for a right answer; `partly` is
    the median score of the wrong answers under it.
    """
    candidates = np.quantile(scores, np.linspace(0.02, 0.98, 97))
    balance = [(scores[right] >= c).mean() + (scores[~right] < c).mean() for c in candidates]
    listening = float(candidates[int(np.argmax(balance))])
    below = scores[~right & (scores < listening)]
    return Verdicts(float(np.median(below)) if len(below) else listening, listening)


class Search:
    """All settings tried on stored evidence; fits on some rows, judges on others."""

    def __init__(self, model: AudioModel, evidence: Evidence, items: Sequence[Item]) -> None:
        self.model = model
        self.evidence = evidence
        self.items = items
        self.strata = [item.stratum for item in items]
        self.clips = np.array([str(item.audio) for item in items])
        self.tried = 0
        self._right: dict[Intervention, Flags] = {}

    def interventions(self) -> Iterator[Intervention]:
        """Layer sets x scale x place x pooling."""
        layers = self.model.layers
        sets = {(layers - 1,), tuple(range(layers // 2, layers)), tuple(range(layers))}
        places: tuple[Literal["before_norm", "after_norm"], ...] = ("before_norm", "after_norm")
        scales: tuple[Literal["norm", "raw"], ...] = ("norm", "raw")
        for chosen, scale, place in product(sorted(sets), scales, places):
            yield Intervention(layers=chosen, scale=scale, place=place)

    def right_at(self, how: Intervention) -> Flags:
        """(S, I): whether the first answer token is right at each strength, full vocabulary."""
        if how not in self._right:
            evidence, model = self.evidence, self.model
            final = torch.from_numpy(evidence.final).to(model.device, model.dtype)
            kept = torch.from_numpy(evidence.differences[:, list(how.layers)])
            direction = pool(kept, how).to(model.device)
            rows = []
            with torch.inference_mode():
                for strength in STRENGTHS:
                    each = torch.full((len(final),), float(strength), device=model.device)
                    tokens = logits(model, final, direction, each, how).argmax(-1).cpu().numpy()
                    rows.append(tokens == evidence.first_token)
            self._right[how] = np.stack(rows)
        return self._right[how]

    def fit(self, rows: NDArray[np.int64]) -> Fit:
        """The best setting on some items."""
        heads, r = self.specialists(rows)
        scores = self.evidence.scores(heads, self.model.heads)[rows]
        best, chosen = (-np.inf, 0.0), None
        for how in self.interventions():
            right = self.right_at(how)[:, rows]
            gate, worth = self.best_gate(right, scores)
            if chosen is None or worth > best:
                best, chosen = worth, Fit(heads, r, how, gate, self.best_fixed(right))
        assert chosen is not None
        return chosen

    def specialists(self, rows: NDArray[np.int64]) -> tuple[tuple[Head, ...], tuple[float, ...]]:
        """The heads that show best whether the sound decided, and the correlation of each.

        Candidates tell a clip from its silence on their own. Of those the highest correlations
        with a right answer count, within strata and, where the data names wordings, on items whose
        text and sound disagree: only there does the answer show which of the two was followed. As
        many are taken as separate right from wrong and clip from silence best.
        """
        names = all_heads(self.model)
        audible = _audibility(self.evidence.of(rows))
        floor = min(MIN_AUDIBILITY, float(np.sort(audible)[-min(HEAD_COUNTS[0], len(audible))]))
        telling = np.array([self.items[i].wording in ("", "conflict") for i in rows])
        rows = rows[telling] if telling.any() else rows
        evidence, strata = self.evidence.of(rows), [self.strata[i] for i in rows]
        r = correlations(evidence.mass, evidence.right, strata)
        ranked = choose(np.where(audible >= floor, r, -2.0), int((audible >= floor).sum()))
        sets = [ranked[:count] for count in HEAD_COUNTS if count <= len(ranked)]
        self.tried += len(sets)
        quality = []
        for chosen in sets:
            score, silent = (m[:, chosen].mean(1) for m in (evidence.mass, evidence.silent_mass))
            quality.append(within(score, evidence.right, strata) + against(score, silent))
        best = sets[int(np.argmax(quality))]
        return tuple(names[i] for i in best), tuple(float(r[i]) for i in best)

    def best_fixed(self, right: Flags) -> float:
        """The constant strength that is worth most, judged with its neighbours."""
        worth = smooth(np.array([worth_of(flags, right[0]) for flags in right]))
        self.tried += len(worth)
        return float(STRENGTHS[int(np.argmax(worth))])

    def best_gate(self, right: Flags, scores: Scores) -> tuple[Gate, tuple[float, float]]:
        """The gate that is worth most, of equals the one that steers least; and how good it is."""
        best, chosen = (float(right[0].mean()), 0.0), Gate(0.0, 0.5, 1.0)  # bare
        spread = float(scores.std()) or 1.0
        thresholds = np.quantile(scores, np.linspace(0.1, 1.0, 10))
        for top, threshold, width in product(STRENGTHS[4::2], thresholds, (0.1, 0.3, 1.0)):
            gate = Gate(float(top), float(threshold), width * spread)
            strengths = gate.strengths(scores)
            worth = worth_of(right[nearest(strengths), np.arange(len(scores))], right[0])
            self.tried += 1
            if (worth, -float(strengths.mean())) > best:
                best, chosen = (worth, -float(strengths.mean())), gate
        return chosen, best

    def held_out(self) -> dict[str, Any]:
        """Figures of settings fitted on four fifths of the clips and judged on the fifth."""
        count = len(self.items)
        fold = folds(self.clips)
        adaptive, fixed = np.zeros(count, bool), np.zeros(count, bool)
        scores, silent = np.zeros(count, np.float32), np.zeros(count, np.float32)
        for k in range(FOLDS):
            inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            best = self.fit(inside)
            right = self.right_at(best.how)[:, outside]
            scores[outside] = self.evidence.scores(best.heads, self.model.heads)[outside]
            silent[outside] = self.evidence.silent_scores(best.heads, self.model.heads)[outside]
            at = nearest(best.gate.strengths(scores[outside]))
            adaptive[outside] = right[at, np.arange(len(outside))]
            at = nearest(np.full(len(outside), best.fixed_strength))
            fixed[outside] = right[at, np.arange(len(outside))]
        bare = self.right_at(next(self.interventions()))[0]
        return self._figures(bare, fixed, adaptive, scores, silent)

    def _figures(
        self, bare: Flags, fixed: Flags, adaptive: Flags, scores: Scores, silent: Scores
    ) -> dict[str, Any]:
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
            "gain_balanced": [round(100 * x, 2) for x in paired_gain(adaptive, bare)],
            "gain_over_fixed": [round(100 * x, 2) for x in paired_gain(adaptive, fixed)],
            "repaired_broken": list(repaired_broken(adaptive, bare)),
            "auroc_right_wrong": round(auroc(scores, self.evidence.right), 4),
            "auroc_right_wrong_within_wording": round(
                within(scores, self.evidence.right, self.strata), 4
            ),
            "auroc_clip_silence": round(against(scores, silent), 4),
        }


def against(scores: Scores, silent: Scores) -> float:
    """AUROC of scores of clips against those of their silent twins."""
    return auroc(np.concatenate([scores, silent]), np.arange(2 * len(scores)) < len(scores))


def _audibility(evidence: Evidence) -> NDArray[np.float64]:
    """(L * H,) AUROC clip against silence of each head alone."""
    pairs = zip(evidence.mass.T, evidence.silent_mass.T, strict=True)
    return np.array([against(heard, silent) for heard, silent in pairs])


def within(scores: Scores, right: Flags, strata: Sequence[str]) -> float:
    """AUROC right against wrong inside each stratum, averaged by the stratum's pairs of the two."""
    labels = np.array(strata)
    total, pairs = 0.0, 0
    for label in np.unique(labels):
        rows = labels == label
        weight = int(right[rows].sum()) * int((~right[rows]).sum())
        if weight:
            total += weight * auroc(scores[rows], right[rows])
            pairs += weight
    return total / pairs if pairs else float("nan")


def worth_of(right: Flags, bare: Flags) -> float:
    """Share right, less the share that was right bare and is not any more, weighted."""
    return float(right.mean() - BROKEN_WEIGHT * (bare & ~right).mean())


def nearest(strengths: NDArray[np.float64]) -> NDArray[np.int64]:
    """(I,) index in STRENGTHS of the tried strength nearest to each."""
    return np.asarray(np.rint(strengths / STRENGTHS[1]).clip(0, len(STRENGTHS) - 1), np.int64)


def smooth(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each share and its neighbours, so that a lucky strength is not taken for the best."""
    padded = np.pad(shares, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def folds(clips: NDArray[np.str_]) -> NDArray[np.int64]:
    """(I,) fold of each item; items of one clip share theirs."""
    names, which = np.unique(clips, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[which] % FOLDS


def _percent(share: float) -> float:
    return round(100 * float(share), 2)
