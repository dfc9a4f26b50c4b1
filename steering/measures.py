"""Figures with their uncertainty: AUROC, Wilson interval, paired bootstrap, McNemar."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

Flags = NDArray[np.bool_]


def auroc(scores: NDArray[np.floating], positive: Flags) -> float:
    """Chance that a positive has a higher score than a negative, ties half; NaN without both."""
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    interval = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_gain(
    after: Flags, before: Flags, *, seed: int = 0, draws: int = 4000
) -> tuple[float, float, float]:
    """Mean gain in share right, and its 95 % bootstrap interval over items."""
    difference = after.astype(np.float64) - before.astype(np.float64)
    values, counts = np.unique(difference, return_counts=True)  # -1, 0, 1: redraw the counts
    redrawn = np.random.default_rng(seed).multinomial(
        len(difference), counts / len(difference), size=draws
    )
    gains = redrawn @ values / len(difference)
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def repaired_broken(after: Flags, before: Flags) -> tuple[int, int]:
    """Items that were wrong and are right, and items that were right and are wrong."""
    return int((after & ~before).sum()), int((before & ~after).sum())


def mcnemar(after: Flags, before: Flags) -> float:
    """Exact two-sided p of as lopsided a split of the changed items by chance."""
    repaired, broken = repaired_broken(after, before)
    if repaired + broken == 0:
        return 1.0
    return float(binomtest(repaired, repaired + broken).pvalue)
