"""Whether a meter of the waveform tells right from wrong answers as well as the heads do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.measures import ClusterBootstrap, Flags, aurocs_within_groups, groups_of
from steering.meters.regression import fit_regression
from steering.meters.waveform import METERS

REGRESSION = "regression"  # on all meters


def against_heads(
    meters: NDArray[np.float32],
    scores: NDArray[np.float32],
    right: Flags,
    strata: Sequence[str],
    fold: NDArray[np.int64],
    clips: Sequence[str],
) -> dict[str, Any]:
    """The heads' score beside every meter and a regression on all, outside the fold.

    Compared are items of one stratum and one fold. On the other folds is decided whether more of a
    meter speaks for a right answer or less, and which single one is best, and the regression is
    fitted.

    Args:
        meters: (I, 6) of the items that tell.
        scores: (I,) listening scores by heads chosen without the item's fold.
        right: (I,) whether each answer is right.
        strata: (I,) labels of wording and cue.
        fold: (I,) of each item.
        clips: (I,) clip of each item, which is drawn as a whole.

    Returns:
        AUROCs, the difference between the heads and the better of best meter and regression with
        its 95 % interval, and a warning in plain words where that is above chance and not shown to
        be worse than the heads.
    """
    groups = groups_of([f"{stratum}/{k}" for stratum, k in zip(strata, fold, strict=True)])
    held_out = _held_out(meters, right, strata, fold)
    rivals = {held_out.single: held_out.best, REGRESSION: held_out.odds}
    columns = np.column_stack([scores, held_out.turned, *rivals.values()])
    values = [round(x, 4) for x in aurocs_within_groups(columns, right, groups).tolist()]
    if np.isnan(values).any():
        return {"note": "no fold has right and wrong answers of one stratum: not known"}
    heads, *by_meter, single, regression = values
    best = held_out.single if single >= regression else REGRESSION
    bootstrap = ClusterBootstrap.of(clips)
    lead = bootstrap.auroc_difference((scores, rivals[best]), right, groups)
    chance = np.zeros(len(right))
    _, above_chance, _ = bootstrap.auroc_difference((rivals[best], chance), right, groups)
    figures: dict[str, Any] = {
        "telling_items": len(right),
        "heads": heads,
        "by_meter": dict(zip(METERS, by_meter, strict=True)),
        "best_meter": [held_out.single, single],
        REGRESSION: regression,
        "heads_over_better": [round(x, 4) for x in lead],
    }
    if lead[1] > 0 or not above_chance > 0:
        return figures
    return {**figures, "warning": _warning(best, (max(single, regression), heads), lead)}


@dataclass(frozen=True, slots=True, eq=False)
class _HeldOut:
    """What was decided on the other folds, applied to each fold's own items."""

    turned: NDArray[np.float64]  # (I, 6) each meter, so that more of it speaks for right
    best: NDArray[np.float64]  # (I,) the meter that is best on the other folds
    single: str  # which that mostly is
    odds: NDArray[np.float64]  # (I,) of the regression


def _held_out(
    meters: NDArray[np.float32], right: Flags, strata: Sequence[str], fold: NDArray[np.int64]
) -> _HeldOut:
    turned, best, odds = np.zeros(meters.shape), np.zeros(len(meters)), np.zeros(len(meters))
    labels, chosen = np.array(strata), np.zeros(meters.shape[1], np.int64)
    for k in np.unique(fold):
        inside, outside = fold != k, fold == k
        groups = groups_of(labels[inside].tolist())
        auroc = np.nan_to_num(aurocs_within_groups(meters[inside], right[inside], groups), nan=0.5)
        turned[outside] = np.where(auroc < 0.5, -1.0, 1.0) * meters[outside]
        column = int(np.abs(auroc - 0.5).argmax())
        best[outside] = turned[outside, column]
        chosen[column] += 1
        regression = fit_regression(meters[inside], right[inside])
        if regression is not None:
            odds[outside] = regression.log_odds(meters[outside])
    return _HeldOut(turned, best, list(METERS)[int(chosen.argmax())], odds)


def _warning(best: str, aurocs: tuple[float, float], lead: Sequence[float]) -> str:
    """What is said where the better of meter and regression is as good as the heads."""
    what = f"the clip's {METERS[best]}" if best in METERS else "a regression on the clip's meters"
    figures = f"AUROC {aurocs[0]:.2f} against {aurocs[1]:.2f}"
    finding = (
        f"{what} tells right from wrong answers as well as the heads do ({figures})"
        if lead[0] <= 0
        else f"{what} is not shown to tell right from wrong answers worse than the heads do"
        f" ({figures}, 95 % interval of the difference {lead[1]:+.2f} to {lead[2]:+.2f})"
    )
    return (
        f"{finding}: what the heads know may be read off the waveform. Only items in which it says"
        " nothing about the answer can show more"
    )
