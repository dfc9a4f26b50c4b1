from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from steering.meters.regression import MeterGate, fit_regression
from steering.meters.waveform import METERS
from steering.strength import Gate

ITEMS = 200


def meters() -> NDArray[np.float32]:
    """(I, M) in the units of the meters; the third never varies."""
    drawn = np.random.default_rng(1).standard_normal((ITEMS, len(METERS)))
    drawn[:, 2] = 0
    return (drawn * [10, 10, 1, 1000, 8, 2000] + [-20, -30, 3, 1500, 20, 3000]).astype(np.float32)


def right(inputs: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The louder and the narrower, the likelier."""
    odds = (inputs[:, 0] + 20) / 5 - (inputs[:, 5] - 3000) / 2000 + 0.5
    return np.random.default_rng(2).random(len(odds)) < 1 / (1 + np.exp(-odds))


def test_the_regression_is_the_minimum_of_its_loss() -> None:
    inputs, flags = meters(), right(meters())
    regression = fit_regression(inputs, flags)
    assert regression is not None
    standard = (inputs - np.array(regression.means)) / np.array(regression.spreads)

    def loss(solution: NDArray[np.float64]) -> float:
        odds = standard @ solution[:-1] + solution[-1]
        misses = np.logaddexp(0, np.where(flags, -odds, odds))
        return float(misses.sum() + (solution[:-1] ** 2).sum() / 2)

    expected = minimize(loss, np.zeros(len(METERS) + 1), tol=1e-10).x
    assert [*regression.weights, regression.intercept] == pytest.approx(expected, abs=1e-3)
    assert regression.weights[0] > 1 > 0 > regression.weights[5]
    assert regression.weights[2] == pytest.approx(0, abs=1e-9), "it never varies"
    odds = regression.log_odds(inputs)
    assert odds[flags].mean() > odds[~flags].mean() + 1


def test_what_one_meter_separates_stays_finite() -> None:
    inputs = meters()
    regression = fit_regression(inputs, inputs[:, 0] > -20)
    assert regression is not None
    assert 2 < regression.weights[0] < 50
    assert ((regression.log_odds(inputs) > 0) == (inputs[:, 0] > -20)).mean() > 0.97


@pytest.mark.parametrize("alike", [True, False])
def test_without_right_and_wrong_answers_there_is_none(alike: bool) -> None:
    assert fit_regression(meters(), np.full(ITEMS, alike)) is None


def gate() -> MeterGate:
    regression = fit_regression(meters(), right(meters()))
    assert regression is not None
    return MeterGate(regression, Gate(1.5, 0.2, 0.7))


def test_the_gate_steers_where_the_meters_promise_little() -> None:
    strengths = gate().strengths(meters())
    odds = gate().regression.log_odds(meters())
    assert strengths[odds.argmin()] > 1 > 0.1 > strengths[odds.argmax()]


def test_a_record_gives_the_same_gate_and_one_of_other_meters_is_refused() -> None:
    record = gate().record()
    assert MeterGate.of(record) == gate()
    with pytest.raises(ValueError, match="loudness"):
        MeterGate.of({**record, "meters": ["loudness"]})
    with pytest.raises(ValueError, match="as many"):
        MeterGate.of({**record, "regression": {**record["regression"], "weights": [1.0]}})
