"""Null hypotheses: what a random choice would have reached, beside what calibration chose.

Random heads for the score, random layers for the direction, and whether two halves of the data
choose the same heads. All are judged outside the fold, like what they stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from steering.calibration.specialists import HeadData, auroc_of, choose_heads, half_of_clips
from steering.errors import DataError
from steering.measures import auroc_within_strata

RANDOM_SETS = 60
RANDOM_LAYERS = 20
SPLITS = 4

Flags = NDArray[np.bool_]
Scores = NDArray[np.float32]


def random_heads(
    mass: NDArray[np.float32],
    right: Flags,
    strata: Sequence[str],
    fold: NDArray[np.int64],
    chosen: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """AUROC of the specialists' score beside RANDOM_SETS random sets of heads.

    mass (I, L * H); `chosen` holds the columns of each fold's specialists. Both they and the random
    sets, of as many heads, are judged on the held-out items, by stratum and in all.
    """
    rng = np.random.default_rng(1)
    orders = [rng.permutation(mass.shape[1]) for _ in range(RANDOM_SETS)]  # one for all folds
    sets: list[list[Any]] = [[list(own) for own in chosen]]
    sets += [[order[: len(own)] for own in chosen] for order in orders]
    scores = [_held_out_scores(mass, fold, heads) for heads in sets]
    figures = {}
    for name in ["all", *(s for s in sorted(set(strata)) if s)]:
        rows = np.array([name in ("all", stratum) for stratum in strata])
        labels = [f"{stratum}/{k}" for stratum, k in zip(strata, fold, strict=True)]
        row_labels = [label for label, wanted in zip(labels, rows, strict=True) if wanted]
        own, *others = (
            auroc_within_strata(score[rows], right[rows], row_labels) for score in scores
        )
        if np.isfinite(own):
            figures[name] = {
                "auroc": _rounded(own),
                "random_mean": _rounded(float(np.mean(others))),
                "random_best": _rounded(float(np.max(others))),
                "share_beaten": _rounded(float(np.mean([own > other for other in others]))),
            }
    return {"sets": RANDOM_SETS, "strata": figures}


def _held_out_scores(
    mass: NDArray[np.float32], fold: NDArray[np.int64], sets: Sequence[Any]
) -> NDArray[np.float32]:
    """(I,) score of each item by the heads of its own fold."""
    scores = np.zeros(len(mass), np.float32)
    for k, columns in enumerate(sets):
        scores[fold == k] = mass[fold == k][:, columns].mean(axis=1)
    return scores


def random_layers(
    layers: int,
    chosen: Sequence[Sequence[int]],
    share_right: Callable[[Sequence[tuple[int, ...]]], float],
) -> dict[str, Any]:
    """Accuracy along the chosen layers beside RANDOM_LAYERS draws of as many.

    `chosen` holds each fold's layers; `share_right` maps layers for each fold to the share of
    held-out items that are right, with all other settings as chosen.
    """
    rng = np.random.default_rng(2)
    accuracy = share_right([tuple(layer_set) for layer_set in chosen])
    if all(len(layer_set) == layers for layer_set in chosen):
        return {"accuracy_percent": _percent(accuracy), "note": "all layers were chosen: no null"}
    orders = [rng.permutation(layers) for _ in range(RANDOM_LAYERS)]  # one for all folds
    shares = [
        share_right([tuple(sorted(order[: len(layer_set)])) for layer_set in chosen])
        for order in orders
    ]
    return {
        "accuracy_percent": _percent(accuracy),
        "random_mean_percent": _percent(float(np.mean(shares))),
        "random_sd_percent": _percent(float(np.std(shares, ddof=1))),
        "share_beaten": _rounded(float(np.mean([accuracy > share for share in shares]))),
        "seeds": RANDOM_LAYERS,
    }


def stability(
    clips: NDArray[np.str_], head_data: Callable[[NDArray[np.int64]], HeadData]
) -> dict[str, Any]:
    """Whether two halves of the clips find the same heads: means over SPLITS random halvings.

    Rank correlation between the halves' correlations of all heads, and by Spearman and Brown the
    reliability that the whole has by it; the number of specialists of a half, and how many both
    have; AUROC within strata of the heads of one half on the other half.
    """
    rng = np.random.default_rng(3)
    figures = []
    with suppress(DataError):
        for _ in range(SPLITS):
            first = half_of_clips(clips, rng)
            halves = [head_data(np.flatnonzero(rows)) for rows in (first, ~first)]
            choices = [choose_heads(half) for half in halves]
            ranks = [scipy.stats.rankdata(choice.r) for choice in choices]
            sets = [set(choice.columns) for choice in choices]
            across = [auroc_of(c, half) for c, half in zip(choices[::-1], halves, strict=True)]
            figures.append(
                (
                    float(np.corrcoef(*ranks)[0, 1]),
                    float(np.mean([len(columns) for columns in sets])),
                    float(len(sets[0] & sets[1])),
                    float(np.mean(across)),
                )
            )
    if len(figures) < SPLITS:
        return {"note": "one half of the data has right or wrong answers only: not known"}
    correlation, size, shared, across_auroc = np.mean(figures, axis=0).tolist()
    return {
        "splits": SPLITS,
        "rank_correlation": _rounded(correlation),
        "reliability": _rounded(2 * max(correlation, 0.0) / (1 + max(correlation, 0.0))),
        "specialists": round(size, 1),
        "shared": round(shared, 1),
        "auroc_across": _rounded(across_auroc),
    }


def _rounded(value: float) -> float:
    return round(value, 4)


def _percent(share: float) -> float:
    return round(100 * share, 2)
