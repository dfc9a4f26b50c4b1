"""Audio-specialist heads: which heads show whether the model listens, and the score they give.

Source: arXiv 2603.06854, audio-specialist heads and listening score. Heads are chosen by the
Pearson correlation between their audio attention and whether the answer was right. Plain, it also
finds heads that read how forceful the *words* are; the correlation within each wording does not,
and is the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steering.errors import DataError

VERDICTS = ("not_listening", "partly_listening", "listening")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Two scores: below `partly` the model does not listen, from `listening` on it does."""

    partly: float
    listening: float

    def of(self, score: float) -> str:
        """One of VERDICTS."""
        return VERDICTS[int(score >= self.partly) + int(score >= self.listening)]


def audio_mass(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) in [0, 1]: the attention of each head on all audio tokens; from (N, F)."""
    return np.asarray(attention.sum(axis=-1), dtype=np.float32)


def listening_score(attention: NDArray[np.float32]) -> float:
    """Mean audio mass over the specialist heads, in [0, 1]; from (N, F)."""
    return float(audio_mass(attention).mean())


def timeline(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """(F,): mean attention of the specialist heads on each audio token; sums to the score."""
    return np.asarray(attention.mean(axis=0), dtype=np.float32)


def inside_events(
    events: Sequence[tuple[float, float]], count: int, hop_seconds: float
) -> NDArray[np.float32]:
    """(F,) in [0, 1]: how much of each audio token lies inside the events, in seconds each."""
    edges = np.arange(count + 1) * hop_seconds
    overlaps = [
        np.minimum(edges[1:], end) - np.maximum(edges[:-1], start) for start, end in _merged(events)
    ]
    total = sum((overlap.clip(0) for overlap in overlaps), np.zeros(count))
    return np.asarray(total / hop_seconds, dtype=np.float32)


def _merged(events: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same bounds, those that overlap as one."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(events):
        first, last = merged.pop() if merged and start <= merged[-1][1] else (start, end)
        merged.append((first, max(last, end)))
    return merged


def correlations(
    mass: NDArray[np.float32], right: NDArray[np.bool_], strata: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """(N,) Pearson r over items between mass (I, N) and right (I,); 0 for a head without variance.

    With `strata` (a label for each item) the means of each stratum are taken out first, so only
    differences between items of one stratum count. Raises DataError where nothing can be
    correlated: fewer than 3 items, or all items of every stratum right or all wrong.
    """
    if len(right) < 3:
        raise DataError(f"{len(right)} items are too few to correlate heads; at least 3 are needed")
    x, y = mass.astype(np.float64), right.astype(np.float64)
    labels = np.array(strata if strata is not None else [""] * len(y))
    x, y = x.copy(), y.copy()
    for label in np.unique(labels):
        rows = labels == label
        x[rows] -= x[rows].mean(axis=0)
        y[rows] -= y[rows].mean()
    if not y.any():
        raise DataError(
            f"every item is {'right' if right.all() else 'wrong' if not right.any() else 'alike'}"
            f" within its stratum ({len(right)} items): no head can be told from another. Use"
            " harder or easier items, or more of them"
        )
    norms = np.sqrt((x**2).sum(axis=0))
    varies = norms > 1e-9 * np.sqrt(len(y))
    r = np.zeros(x.shape[1])
    r[varies] = (x[:, varies] * y[:, None]).sum(axis=0) / (norms[varies] * np.sqrt((y**2).sum()))
    return r


def choose(r: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the `count` highest correlations, highest first."""
    return np.argsort(-r, kind="stable")[:count]
