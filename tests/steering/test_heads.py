from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from steering.errors import DataError
from steering.heads import (
    VERDICTS,
    Verdicts,
    audio_mass,
    choose,
    correlations,
    inside_events,
    listening_score,
    timeline,
)


def random_mass(items: int, heads: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).random((items, heads)).astype(np.float32)


# ---- the score


def test_the_score_is_the_mean_mass_and_the_sum_of_the_timeline() -> None:
    attention = np.array([[0.1, 0.2, 0.3], [0.0, 0.1, 0.1]], np.float32)
    assert audio_mass(attention) == pytest.approx([0.6, 0.2])
    assert timeline(attention) == pytest.approx([0.05, 0.15, 0.2])
    assert listening_score(attention) == pytest.approx(0.4)
    assert timeline(attention).sum() == pytest.approx(listening_score(attention))


def test_how_much_of_each_token_lies_inside_the_events() -> None:
    inside = inside_events([(0.09, 0.15), (0.11, 0.22), (0.3, 9.0)], 10, 0.04)
    expected = [0, 0, 0.75, 1, 1, 0.5, 0, 0.5, 1, 1]
    assert inside == pytest.approx(expected), "what overlaps counts once, the rest is not heard"
    assert inside_events([], 3, 0.04).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (0.0, "not_listening"),
        (0.1999, "not_listening"),
        (0.2, "partly_listening"),
        (0.4999, "partly_listening"),
        (0.5, "listening"),
        (1.0, "listening"),
    ],
)
def test_a_verdict_begins_at_its_threshold(score: float, verdict: str) -> None:
    assert Verdicts(partly=0.2, listening=0.5).of(score) == verdict
    assert verdict in VERDICTS


def test_equal_thresholds_leave_nothing_between() -> None:
    verdicts = Verdicts(0.3, 0.3)
    assert {verdicts.of(s) for s in (0.0, 0.29, 0.3, 0.9)} == {"not_listening", "listening"}


# ---- which heads


def test_correlations_are_pearsons() -> None:
    mass = random_mass(60, 7)
    right = np.random.default_rng(3).random(60) < 0.4
    expected = [np.corrcoef(column, right)[0, 1] for column in mass.T.astype(np.float64)]
    np.testing.assert_allclose(correlations(mass, right), expected, atol=1e-12)


def test_a_perfect_head_has_one_and_its_opposite_minus_one() -> None:
    right = np.array([True, False, True, False, False])
    mass = np.stack([0.2 + 0.5 * right, 0.7 - 0.5 * right], axis=1).astype(np.float32)
    assert correlations(mass, right) == pytest.approx([1.0, -1.0])


def test_a_head_without_variance_counts_as_none() -> None:
    mass = random_mass(20, 3)
    mass[:, 1] = 0.1
    right = np.arange(20) % 2 == 0
    r = correlations(mass, right)
    assert r[1] == 0
    assert np.isfinite(r).all()


def test_within_strata_only_differences_inside_them_count() -> None:
    # Head 0 only knows the stratum, which explains most of the answers; head 1 knows the answer.
    strata = ["easy"] * 10 + ["hard"] * 10
    right = np.array([True] * 8 + [False] * 2 + [True] * 2 + [False] * 8)
    mass = np.stack([np.array([0.9] * 10 + [0.1] * 10), 0.4 + 0.1 * right], axis=1)
    plain = correlations(mass.astype(np.float32), right)
    inside = correlations(mass.astype(np.float32), right, strata)
    assert plain[0] == pytest.approx(0.6)
    assert inside == pytest.approx([0.0, 1.0], abs=1e-6)


def test_within_strata_by_hand() -> None:
    mass = np.array([[0.1], [0.3], [0.6], [0.9], [0.6]], np.float32)
    right = np.array([False, True, True, False, True])
    # Stratum a: mass -0.1, 0.1; right -1/2, 1/2. Stratum b: -0.1, 0.2, -0.1; 1/3, -2/3, 1/3.
    covariance = 0.05 + 0.05 - 0.1 / 3 - 0.4 / 3 - 0.1 / 3
    spread = np.sqrt((0.02 + 0.06) * (0.5 + 6 / 9))
    head_correlations = correlations(mass, right, ["a", "a", "b", "b", "b"])
    assert head_correlations == pytest.approx([covariance / spread], abs=1e-6)


def test_one_stratum_is_none() -> None:
    mass, right = random_mass(30, 4), np.arange(30) % 3 == 0
    np.testing.assert_array_equal(correlations(mass, right, ["x"] * 30), correlations(mass, right))


def test_the_numbers_given_are_left_alone() -> None:
    mass, right = random_mass(30, 4), np.arange(30) % 3 == 0
    kept = mass.copy()
    correlations(mass, right, ["x", "y"] * 15)
    np.testing.assert_array_equal(mass, kept)


@pytest.mark.parametrize(
    ("right", "strata", "says"),
    [
        ([True] * 6, None, "right"),
        ([False] * 6, None, "wrong"),
        ([True] * 3 + [False] * 3, ["a"] * 3 + ["b"] * 3, "alike"),
        ([True, False], None, "2 items"),
        ([], None, "0 items"),
    ],
)
def test_what_can_not_be_correlated_is_refused(
    right: list[bool], strata: list[str] | None, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        correlations(random_mass(len(right), 4), np.array(right, bool), strata)


def test_the_highest_come_first_and_equals_keep_their_order() -> None:
    r = np.array([0.1, 0.5, -0.9, 0.5, 0.3])
    assert choose(r, 3).tolist() == [1, 3, 4]
    assert choose(r, 9).tolist() == [1, 3, 4, 0, 2]
