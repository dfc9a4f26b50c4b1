"""A logistic regression on the meters, and a gate that it feeds in the place of the score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.meters.waveform import METERS
from steering.strength import Gate

_RIDGE = 1.0  # on the weights of the standardised meters: separable data stay finite
_MAX_STEPS, _TOLERANCE = 50, 1e-9
_FARTHEST = 30.0  # log odds beyond which a probability is 0 or 1


@dataclass(frozen=True, slots=True)
class MeterRegression:
    """Log odds of a right answer, from the standardised meters and nothing else."""

    means: tuple[float, ...]  # (6,) of the meters on the calibration items
    spreads: tuple[float, ...]  # (6,) their standard deviations; 1 where a meter never varies
    weights: tuple[float, ...]  # (6,)
    intercept: float

    def log_odds(self, meters: NDArray[np.float32]) -> NDArray[np.float64]:
        """(I,) of meters (I, 6): the higher, the likelier is a right answer."""
        standard = (meters - np.array(self.means)) / np.array(self.spreads)
        return np.asarray(standard @ np.array(self.weights) + self.intercept)


@dataclass(frozen=True, slots=True)
class MeterGate:
    """The strength of steering by the meters alone, to hold the listening score against."""

    regression: MeterRegression
    gate: Gate  # of the log odds

    def strengths(self, meters: NDArray[np.float32]) -> NDArray[np.float64]:
        """(I,) strengths for meters (I, 6)."""
        return self.gate.strengths(self.regression.log_odds(meters))

    def record(self) -> dict[str, Any]:
        """Its numbers as a profile keeps them, with the names of the meters."""
        return {"meters": list(METERS), **asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> MeterGate:
        """The gate of a record; ValueError if it is of other meters."""
        if record["meters"] != list(METERS):
            raise ValueError(f"meters are {record['meters']}, not {list(METERS)}")
        regression = dict(record["regression"])
        rows = {name: tuple(regression[name]) for name in ("means", "spreads", "weights")}
        if {len(row) for row in rows.values()} != {len(METERS)}:
            raise ValueError(f"a regression on {len(METERS)} meters has as many of {list(rows)}")
        return cls(MeterRegression(**{**regression, **rows}), Gate(**record["gate"]))


def fit_regression(meters: NDArray[np.float32], right: NDArray[np.bool_]) -> MeterRegression | None:
    """Fit the log odds of a right answer to the meters, by Newton's method with a ridge of 1.

    Args:
        meters: (I, 6).
        right: (I,) whether each answer is right.

    Returns:
        The regression; None where all answers are right or all wrong.
    """
    if right.all() or not right.any():
        return None
    means, spreads = meters.mean(0, dtype=np.float64), meters.std(0, dtype=np.float64)
    spreads = np.where(spreads > 1e-6 * (1 + np.abs(means)), spreads, 1.0)
    inputs = np.column_stack([(meters - means) / spreads, np.ones(len(right))])  # (I, M + 1)
    ridge = np.diag([*[_RIDGE] * len(means), 0.0])
    solution = np.zeros(inputs.shape[1])
    for _ in range(_MAX_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(inputs @ solution, -_FARTHEST, _FARTHEST)))
        slope = inputs.T @ (right - chance) - ridge @ solution
        curvature = (inputs.T * (chance * (1 - chance))) @ inputs + ridge
        step = np.linalg.lstsq(curvature, slope)[0]
        solution += step
        if np.abs(step).max() < _TOLERANCE:
            break
    *weights, intercept = solution.tolist()
    return MeterRegression(
        tuple(means.tolist()), tuple(spreads.tolist()), tuple(weights), intercept
    )
