"""Whether a meter of the waveform tells right from wrong answers as well as the heads do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    Compared are items of one stratum and one fold. Inside each fold is decided whether more of a
    meter speaks for a right answer or less, and the regression is fitted.

    Args:
        meters: (I, M) of the items that tell.
        scores: (I,) listening scores by heads chosen without the item's fold.
        right: (I,) whether each answer is right.
        strata: (I,) labels of wording and cue.
        fold: (I,) of each item.
        clips: (I,) clip of each item, which is drawn as a whole.

    Returns:
        AUROCs, the difference between the heads and the best meter with its 95 % interval, and a
        warning in plain words where that meter is above chance and not shown to be worse.
    """
    groups = groups_of([f"{stratum}/{k}" for stratum, k in zip(strata, fold, strict=True)])
    signals = {"heads": scores.astype(np.float64), **_held_out(meters, right, strata, fold)}
    values = aurocs_within_groups(np.column_stack(list(signals.values())), right, groups)
    if np.isnan(values).any():
        return {"note": "no fold has right and wrong answers of one stratum: not known"}
    auroc = dict(zip(signals, values.tolist(), strict=True))
    best = max((name for name in signals if name != "heads"), key=lambda name: auroc[name])
    bootstrap = ClusterBootstrap.of(clips)
    lead = bootstrap.auroc_difference((signals["heads"], signals[best]), right, groups)
    chance = np.zeros(len(right))
    _, above_chance, _ = bootstrap.auroc_difference((signals[best], chance), right, groups)
    figures = {
        "telling_items": len(right),
        "auroc": {name: round(value, 4) for name, value in auroc.items()},
        "best_meter": best,
        "heads_over_best_meter": [round(x, 4) for x in lead],
    }
    if lead[1] > 0 or not above_chance > 0:
        return figures
    return {**figures, "warning": _warning(auroc, best, lead)}


def _held_out(
    meters: NDArray[np.float32], right: Flags, strata: Sequence[str], fold: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """(I,) of each meter, turned so that more speaks for right, and of the regression."""
    turned, odds = np.zeros(meters.shape), np.zeros(len(meters))
    labels = np.array(strata)
    for k in np.unique(fold):
        inside, outside = fold != k, fold == k
        groups = groups_of(labels[inside].tolist())
        less = aurocs_within_groups(meters[inside], right[inside], groups) < 0.5
        turned[outside] = np.where(less, -1.0, 1.0) * meters[outside]
        regression = fit_regression(meters[inside], right[inside])
        if regression is not None:
            odds[outside] = regression.log_odds(meters[outside])
    return {**dict(zip(METERS, turned.T, strict=True)), REGRESSION: odds}


def _warning(auroc: Mapping[str, float], best: str, lead: Sequence[float]) -> str:
    what = f"the clip's {METERS[best]}" if best in METERS else "a regression on the clip's meters"
    figures = f"AUROC {auroc[best]:.2f} against {auroc['heads']:.2f}"
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
