"""Figures with their uncertainty: AUROC, Wilson interval, paired bootstrap, McNemar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its modules load when first used: no server needs stats
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
_DRAW_BLOCKS = 16  # of bootstrap draws: one after the other, so that 5,000 items fit in memory


def aurocs(scores: NDArray[np.floating], positive: Flags) -> NDArray[np.float64]:
    """(N,) AUROC of each column of scores (I, N); ties count half, NaN without both kinds."""
    ups, downs = int(positive.sum()), int((~positive).sum())
    if not ups or not downs:
        return np.full(scores.shape[1], np.nan)
    ranks = scipy.stats.rankdata(scores, axis=0)
    return np.asarray((ranks[positive].sum(0) - ups * (ups + 1) / 2) / (ups * downs))


def auroc(scores: NDArray[np.floating], positive: Flags) -> float:
    """Probability that a positive scores higher than a negative, ties half; NaN without both."""
    return float(aurocs(scores[:, None], positive)[0])


def auroc_against_silence(scores: NDArray[np.floating], silent: NDArray[np.floating]) -> float:
    """AUROC of scores of clips against those of their silent twins."""
    return auroc(np.concatenate([scores, silent]), np.arange(2 * len(scores)) < len(scores))


def groups_of(strata: Sequence[str]) -> list[NDArray[np.int64]]:
    """The rows of each stratum."""
    labels = np.array(strata)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def aurocs_within_groups(
    scores: NDArray[np.floating], right: Flags, groups: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """(N,) AUROC of each column (I, N) within groups, averaged by their number of pairs."""
    total, pairs = np.zeros(scores.shape[1]), 0
    for rows in groups:
        weight = int(right[rows].sum()) * int((~right[rows]).sum())
        if weight:
            total += weight * aurocs(scores[rows], right[rows])
            pairs += weight
    return total / pairs if pairs else np.full(scores.shape[1], np.nan)


def auroc_within_strata(scores: NDArray[np.floating], right: Flags, strata: Sequence[str]) -> float:
    """AUROC of right against wrong within strata, averaged by their number of pairs."""
    return float(aurocs_within_groups(scores[:, None], right, groups_of(strata))[0])


def rank_correlation_within_strata(
    scores: NDArray[np.floating], values: NDArray[np.floating], strata: Sequence[str]
) -> float:
    """Spearman's rank correlation within strata, averaged by their number of items; NaN where none
    varies.
    """
    total, count = 0.0, 0
    for rows in groups_of(strata):
        ranks = np.stack([scipy.stats.rankdata(each[rows]) for each in (scores, values)])
        if (ranks.std(axis=1) > 0).all():
            total += len(rows) * float(np.corrcoef(ranks)[0, 1])
            count += len(rows)
    return total / count if count else float("nan")


def concordance(
    scores: NDArray[np.floating], positive: Flags, weights: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R,) weight of the pairs in which the positive scores higher, ties half, and of all pairs.

    weights (R, I): their ratio is the AUROC of each row's weighted items.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    ups = np.where(positive, weights, 0.0)[:, order]  # (R, I), as the next two
    downs = np.where(positive, 0.0, weights)[:, order]
    below = np.pad(downs.cumsum(1), ((0, 0), (1, 0)))
    ends = (np.searchsorted(ranked, ranked, side) for side in ("left", "right"))
    lower = sum(below[:, end] for end in ends) / 2
    return np.asarray((ups * lower).sum(1)), np.asarray(ups.sum(1) * downs.sum(1))


def wilson(right: float, count: float) -> tuple[float, float]:
    """95 % Wilson interval of a share; of a weighted one if `count` is its `effective_count`."""
    z, share = float(scipy.stats.norm.ppf(0.975)), right / count
    shrink = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / shrink
    half = z / shrink * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def effective_count(weights: NDArray[np.float64]) -> float:
    """Number of equally weighted items with the same precision (Kish)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


@dataclass(frozen=True, slots=True, eq=False)
class ClusterBootstrap:
    """R bootstrap draws of whole clips: the items of a clip are drawn together."""

    which: NDArray[np.int64]  # (I,) clip of each item
    counts: NDArray[np.float32]  # (R, C) how often each clip was drawn

    @classmethod
    def of(cls, clips: Sequence[str], *, seed: int = 0, draws: int = 2000) -> ClusterBootstrap:
        """Draws for items about these clips; the same seed gives the same."""
        names, which = np.unique(np.array(clips), return_inverse=True)
        even = np.full(len(names), 1 / len(names))
        counts = np.random.default_rng(seed).multinomial(len(names), even, size=draws)
        return cls(which.astype(np.int64), counts.astype(np.float32))

    def gain(
        self, after: Flags, before: Flags, weights: NDArray[np.float64]
    ) -> tuple[float, float, float]:
        """Mean gain in weighted share right, and its paired 95 % interval; NaN without weight."""
        difference = weights * (after.astype(np.float64) - before)
        clips = self.counts.shape[1]
        gains = np.bincount(self.which, difference, clips)
        totals = np.bincount(self.which, weights, clips)
        drawn = self.counts @ totals
        if not totals.any() or not drawn.any():
            return float("nan"), float("nan"), float("nan")
        redrawn = (self.counts @ gains)[drawn > 0] / drawn[drawn > 0]
        low, high = np.quantile(redrawn, [0.025, 0.975])
        return float(difference.sum() / weights.sum()), float(low), float(high)

    def auroc_difference(
        self,
        signals: tuple[NDArray[np.floating], NDArray[np.floating]],
        right: Flags,
        groups: Sequence[NDArray[np.int64]],
    ) -> tuple[float, float, float]:
        """AUROC within groups of the first signal (I,) minus that of the second, and its paired
        95 % interval; NaN without right and wrong answers in one group.
        """
        once = np.ones_like(self.counts[:1])
        own = float(self._differences(signals, right, groups, once)[0])
        blocks = np.array_split(self.counts, _DRAW_BLOCKS)
        drawn = np.concatenate([self._differences(signals, right, groups, b) for b in blocks])
        drawn = drawn[np.isfinite(drawn)]
        if np.isnan(own) or not len(drawn):
            return float("nan"), float("nan"), float("nan")
        low, high = np.quantile(drawn, [0.025, 0.975])
        return own, float(low), float(high)

    def _differences(
        self,
        signals: tuple[NDArray[np.floating], NDArray[np.floating]],
        right: Flags,
        groups: Sequence[NDArray[np.int64]],
        drawn: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """(R,) differences of the two AUROCs with the clips drawn (R, C) times."""
        above, pairs = np.zeros(len(drawn)), np.zeros(len(drawn))
        for rows in groups:
            weights = drawn[:, self.which[rows]].astype(np.float64)
            first, counted = concordance(signals[0][rows], right[rows], weights)
            second, _ = concordance(signals[1][rows], right[rows], weights)
            above, pairs = above + first - second, pairs + counted
        with np.errstate(invalid="ignore"):
            return np.asarray(above / pairs)


def paired_gain(
    after: Flags,
    before: Flags,
    clips: NDArray[np.str_] | None = None,
    *,
    seed: int = 0,
    draws: int = 4000,
) -> tuple[float, float, float]:
    """Mean gain in share right, and its 95 % bootstrap interval over items; where the clip of each
    is given, over clips.
    """
    if clips is not None:
        drawn = ClusterBootstrap.of(clips.tolist(), seed=seed, draws=draws)
        return drawn.gain(after, before, np.ones(len(after)))
    difference = after.astype(np.float64) - before.astype(np.float64)
    values, counts = np.unique(difference, return_counts=True)  # -1, 0, 1: redraw the counts
    redrawn = np.random.default_rng(seed).multinomial(
        len(difference), counts / len(difference), size=draws
    )
    gains = redrawn @ values / len(difference)
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def repaired_broken(after: Flags, before: Flags) -> tuple[int, int]:
    """Number of items turned from wrong to right, and from right to wrong."""
    return int((after & ~before).sum()), int((before & ~after).sum())


def mcnemar(after: Flags, before: Flags) -> float:
    """Exact two-sided p of McNemar's test on the changed items."""
    repaired, broken = repaired_broken(after, before)
    if repaired + broken == 0:
        return 1.0
    return float(scipy.stats.binomtest(repaired, repaired + broken).pvalue)
