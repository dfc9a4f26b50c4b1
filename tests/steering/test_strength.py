from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from steering.strength import Gate

GATE = Gate(max_strength=1.6, threshold=0.4, temperature=0.05)


def test_the_threshold_gets_half() -> None:
    assert GATE.strength(0.4) == pytest.approx(0.8)


def test_one_temperature_away_is_a_sigmoid_of_one() -> None:
    assert GATE.strength(0.35) == pytest.approx(1.6 / (1 + math.exp(-1)))
    assert GATE.strength(0.45) == pytest.approx(1.6 / (1 + math.exp(1)))


def test_the_less_it_listens_the_more_it_is_steered() -> None:
    strengths = [GATE.strength(score / 100) for score in range(101)]
    assert all(a > b for a, b in pairwise(strengths))
    assert all(0 < strength < 1.6 for strength in strengths[20:])
    assert strengths[0] == pytest.approx(1.6, rel=1e-3)
    assert strengths[-1] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("score", [-1e9, -1.0, 2.0, 1e9])
def test_scores_far_off_do_not_overflow(score: float) -> None:
    strength = Gate(2.0, 0.5, 1e-6).strength(score)
    assert strength == pytest.approx(2.0 if score < 0.5 else 0.0)


def test_a_refused_gate_never_steers() -> None:
    assert {Gate(0.0, 0.4, 1.0).strength(score / 10) for score in range(11)} == {0.0}


def test_an_array_of_scores_gives_the_strength_of_each() -> None:
    scores = np.array([0.1, 0.4, 0.9], np.float32)
    each = [GATE.strength(float(score)) for score in scores]
    assert GATE.strengths(scores).tolist() == pytest.approx(each)


def test_a_gate_of_the_effect_reads_bits_by_their_logarithm() -> None:
    gate = Gate(1.6, 0.0, 0.5, "effect")
    assert gate.strength(0.9) == pytest.approx(0.8), "log2(0.9 + 0.1) is the threshold"
    assert gate.strength(1.9) == pytest.approx(1.6 / (1 + math.exp(2)))
    assert gate.strength(0.0) == pytest.approx(1.6 / (1 + math.exp(math.log2(0.1) / 0.5)))
    bits = np.array([0.0, 0.1, 1.0, 99.0])
    assert all(a > b for a, b in pairwise(gate.strengths(bits)))
