"""Listening drift against a sum written out by hand, and the gauges of a server."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from server.listening_log.drift import MIN_SCORES, drift, expected_not_listening, stability_index
from server.listening_log.records import Record
from steering.profile import Profile

UNIFORM = np.linspace(0, 1, 101, dtype=np.float32)


def records(scores: list[float | None]) -> list[Record]:
    return [
        Record("id", 0, True, score, None, "listening", None, False, None, 0.0, 1.0)
        for score in scores
    ]


def test_scores_spread_as_the_calibration_set_do_not_drift() -> None:
    assert stability_index(np.arange(0.005, 1, 0.01), UNIFORM) == pytest.approx(0, abs=1e-9)


def test_the_index_is_the_sum_over_bins() -> None:
    scores = np.array([0.05] * 40 + [0.55] * 60)
    bins = [0.4, *[0.005] * 4, 0.6, *[0.005] * 4]  # an empty bin counts as half a score
    by_hand = sum((a - 0.1) * math.log(a / 0.1) for a in bins)
    assert stability_index(scores, UNIFORM) == pytest.approx(by_hand)


def test_more_scores_without_drift_have_a_lower_index() -> None:
    draws = np.random.default_rng(0)
    few = np.mean([stability_index(draws.random(100), UNIFORM) for _ in range(50)])
    many = np.mean([stability_index(draws.random(1000), UNIFORM) for _ in range(50)])
    assert few == pytest.approx(9 / 100, rel=0.25)
    assert many == pytest.approx(9 / 1000, rel=0.25)


def test_ties_of_the_calibration_set_are_one_bin() -> None:
    quantiles = np.maximum(UNIFORM, np.float32(0.35))  # more than a third of the set ties
    assert stability_index(np.maximum(np.arange(0.005, 1, 0.01), 0.35), quantiles) < 0.02
    assert stability_index(np.full(100, 0.9), quantiles) > 1


def test_a_set_of_one_value_still_gives_a_number() -> None:
    assert stability_index(np.full(100, 0.5), np.full(101, 0.5, np.float32)) == 0


def test_nothing_is_said_of_too_few_scores_or_without_a_profile(tiny_profile: Profile) -> None:
    scores: list[float | None] = [*np.linspace(0, 1, MIN_SCORES).tolist()]
    assert drift(tiny_profile, records(scores)) < 0.02
    assert math.isnan(drift(tiny_profile, records(scores[1:])))
    assert math.isnan(drift(tiny_profile, records([*scores[1:], None])))
    assert math.isnan(drift(None, records(scores)))


def test_the_calibrated_share_is_that_below_the_verdict(tiny_profile: Profile) -> None:
    assert expected_not_listening(tiny_profile) == pytest.approx(0.2)
    assert math.isnan(expected_not_listening(None))


def test_a_server_exports_them(start: Any) -> None:
    with start(queue_limit_requests=7) as server:
        for record in records([0.01] * MIN_SCORES):
            server.deployment.records.add(record)
        assert server.metric("allears_listening_drift_psi") > 1
        assert server.metric("allears_not_listening_calibrated_fraction") == pytest.approx(0.2)
        assert server.metric("allears_queue_limit_requests") == 7
        used = server.metric("allears_device_memory_bytes", kind="used")
        assert 1e7 < used < server.metric("allears_device_memory_bytes", kind="total")
