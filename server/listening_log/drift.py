"""Listening drift: whether recent listening scores are spread as those of the calibration set.

The statistic is the population stability index: sum over bins of (a - e) ln(a / e), where e is the
share of the calibration set in a bin and a the share of the recent scores. The bins are the tenths
of the calibration set, so e is 0.1 where no scores tie. Usual reading: under 0.1 no drift, from
0.25 on a large one. Of n scores that did not drift it is 9 / n on average, hence `MIN_SCORES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.listening_log.records import Record
from steering.profile import Profile

MIN_SCORES = 100  # without drift, the index of so many is about 0.09


def drift(profile: Profile | None, records: Sequence[Record]) -> float:
    """The index of the scores of some records; NaN without a profile or with too few scores."""
    scores = [record.score for record in records if record.score is not None]
    if profile is None or len(scores) < MIN_SCORES:
        return float("nan")
    return stability_index(np.asarray(scores, np.float64), profile.quantiles)


def stability_index(scores: NDArray[np.float64], quantiles: NDArray[np.float32]) -> float:
    """At least 0, 0 where the shares are equal; from scores (N,) and quantiles (101,), 0 to 100 %.

    A bin without scores counts as half a score, so that the index stays finite.
    """
    edges = np.unique(quantiles[10:-1:10])  # (E,): of bins that tie, one is left
    edges = edges[edges > quantiles[0]]
    hundredths = (quantiles[:-1] + quantiles[1:]) / 2  # (100,): each stands for 1 % of the set
    expected = _shares(hundredths, edges)
    actual = np.maximum(_shares(scores, edges), 0.5 / len(scores))
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def _shares(values: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.float64]:
    """(E + 1,): share of the values below the first edge, from there to the second, and so on."""
    places = np.searchsorted(edges, values, side="right")
    return np.bincount(places, minlength=len(edges) + 1) / len(values)


def expected_not_listening(profile: Profile | None) -> float:
    """Share of the calibration set whose verdict is not_listening; NaN without a profile."""
    return float("nan") if profile is None else profile.percentile(profile.verdicts.partly)
