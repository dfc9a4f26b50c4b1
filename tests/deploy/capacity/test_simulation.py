"""The simulation against queues that have formulae, and against schedules done by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from deploy.capacity.forecast import most_a_second
from deploy.capacity.seconds import Seconds, Stages
from deploy.capacity.simulation import SimulatedReplicas, SimulationRun, simulate
from deploy.capacity.traffic import SimulatedRequest, Traffic, figures, requests
from server.engine import engine

NOTHING = Seconds({1.0: [0.0]})
ONE_TOKEN = Traffic(0.8, (1.0,), (1, 1))  # no decode step: a queue with one server
ENDLESS = SimulatedReplicas(rows=1, queue_limit=10**9, queue_timeout_seconds=1e9)


def stages(service: Seconds, round_seconds: float = 0.0, entry_bytes: int = 1) -> Stages:
    """Stages of which only these take time; a miss takes as long as a hit."""
    return Stages(
        open=NOTHING,
        decode=NOTHING,
        prepare=NOTHING,
        bare=service,
        hit=service,
        words=service,
        cold=service,
        round=Seconds({1.0: [round_seconds]}),
        entry_bytes=lambda _: entry_bytes,
        feature_bytes=lambda _: 0,
    )


CONSTANT = Seconds({1.0: [1.0]})
EXPONENTIAL = Seconds({1.0: list(-np.log(1 - (np.arange(20_000) + 0.5) / 20_000))})


def mean_wait(course: SimulationRun) -> float:
    """Seconds from arrival to the engine, the first tenth left out."""
    visits = course.visits[len(course.visits) // 10 :]
    return float(np.mean([one.done_at - one.asked.at for one in visits])) - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("service, squares", [(CONSTANT, 1.0), (EXPONENTIAL, 2.0)])
@pytest.mark.parametrize("load, seconds", [(0.5, 60_000), (0.7, 100_000)])
def test_mean_wait_is_that_of_pollaczek_and_khinchine(
    service: Seconds, squares: float, load: float, seconds: float
) -> None:
    """M/D/1 and M/M/1: the mean wait is load * E[S^2] / (2 (1 - load)), with E[S] = 1."""
    asked = requests(replace(ONE_TOKEN, requests_a_second=load), seconds, 1)
    course = simulate(asked, stages(service), ENDLESS)
    assert mean_wait(course) == pytest.approx(load * squares / (2 * (1 - load)), rel=0.1)


def test_every_wait_of_one_server_is_that_of_lindley() -> None:
    """A wait is the one before, and its service, less the time between the two arrivals."""
    asked = requests(ONE_TOKEN, 500, 1)
    waits = [0.0]
    for before, one in pairwise(asked):
        waits.append(max(waits[-1] + 1.0 - (one.at - before.at), 0.0))
    course = simulate(asked, stages(CONSTANT), ENDLESS)
    found = [one.done_at - one.asked.at - 1.0 for one in course.visits]
    assert found == pytest.approx(waits, abs=1e-6)


def test_times_in_the_system_of_m_m_1_are_exponential() -> None:
    asked = requests(replace(ONE_TOKEN, requests_a_second=0.5), 60_000, 2)
    found = figures(simulate(asked, stages(EXPONENTIAL), ENDLESS).outcomes, 60_000)
    assert found["p50_seconds"] == pytest.approx(np.log(2) / 0.5, rel=0.06)
    assert found["p99_seconds"] == pytest.approx(np.log(100) / 0.5, rel=0.1)


@pytest.mark.parametrize("load", [0.8, 1.0, 1.5])
def test_the_share_turned_away_is_that_of_m_m_1_k(load: float) -> None:
    """With 4 that may wait, 5 are in the system at most."""
    asked = requests(replace(ONE_TOKEN, requests_a_second=load), 30_000, 3)
    course = simulate(asked, stages(EXPONENTIAL), replace(ENDLESS, queue_limit=4))
    chances = load ** np.arange(6)
    found = figures(course.outcomes, 30_000)
    assert found["refused_share"] == pytest.approx(chances[5] / chances.sum(), rel=0.1)
    assert found["answered_a_second"] == pytest.approx(
        load * (1 - chances[5] / chances.sum()), rel=0.02
    )


def test_random_routing_makes_queues_of_their_own_and_the_least_loaded_waits_less() -> None:
    asked = requests(replace(ONE_TOKEN, requests_a_second=8 * 0.5), 6_000, 4)
    fleet = replace(ENDLESS, replicas=8)
    random = mean_wait(simulate(asked, stages(EXPONENTIAL), fleet))
    least = mean_wait(simulate(asked, stages(EXPONENTIAL), replace(fleet, routing="least_loaded")))
    assert random == pytest.approx(0.5 / 0.5, rel=0.1)
    assert least < random / 3


def test_an_engine_fills_its_rows_then_makes_a_step_for_all() -> None:
    """By hand: 3 at once, 1 s to enter, 10 s a round, answers of 1, 2 and 3 tokens, two rows."""
    asked = [SimulatedRequest(0.0, 1.0, tokens, False, 0) for tokens in (2, 1, 3)]
    course = simulate(asked, stages(CONSTANT, round_seconds=10.0), replace(ENDLESS, rows=2))
    first, second, third = course.visits
    assert (first.first_token_at, first.done_at) == (1.0, 13.0)
    assert (second.first_token_at, second.done_at) == (2.0, 2.0)
    assert (third.first_token_at, third.done_at) == (3.0, 23.0)
    assert course.mean_rows == 1.5


def test_four_may_enter_between_two_steps() -> None:
    asked = [SimulatedRequest(0.0, 1.0, 2, False, 0) for _ in range(6)]
    course = simulate(asked, stages(CONSTANT, round_seconds=10.0), replace(ENDLESS, rows=8))
    assert [one.first_token_at for one in course.visits] == [1.0, 2.0, 3.0, 4.0, 15.0, 16.0]
    assert [one.done_at for one in course.visits] == [14.0] * 4 + [26.0] * 2
    assert SimulatedReplicas().enter_between_steps == engine._ENTER_BETWEEN_STEPS


@pytest.mark.parametrize("beside, firsts", [(False, [3.0, 6.0]), (True, [3.0, 4.0])])
def test_prompts_are_made_in_the_engine_or_beside_it(beside: bool, firsts: list[float]) -> None:
    """By hand: 2 at once, 2 s for a prompt, in the engine or on two cores, 1 s to enter."""
    asked = [SimulatedRequest(0.0, 1.0, 1, False, 0) for _ in range(2)]
    slow = replace(stages(CONSTANT), prepare=Seconds({1.0: [2.0]}))
    fleet = replace(ENDLESS, front_workers=2, prepares_beside=beside)
    course = simulate(asked, slow, fleet)
    assert [one.first_token_at for one in course.visits] == firsts
    assert course.replicas[0].work_seconds == (2.0 if beside else 6.0)


def test_who_waits_too_long_for_his_prompt_is_not_given_one() -> None:
    """By hand: the first prompt takes until 2, the second until 5; the third waited too long."""
    asked = [SimulatedRequest(0.0, 1.0, 1, False, 0) for _ in range(3)]
    slow = replace(stages(CONSTANT), prepare=Seconds({1.0: [2.0]}))
    course = simulate(asked, slow, replace(ENDLESS, queue_timeout_seconds=5.5))
    assert [one.status for one in course.visits] == [200, 200, 503]
    assert course.replicas[0].work_seconds == 6.0


def test_rows_are_full_before_the_queue_is_let_in() -> None:
    asked = [SimulatedRequest(0.0, 1.0, 3, False, 0) for _ in range(3)]
    course = simulate(asked, stages(CONSTANT, round_seconds=10.0), replace(ENDLESS, rows=2))
    begins = [one.first_token_at - 1.0 for one in course.visits]
    assert begins == [0.0, 1.0, 22.0]  # the third when the first two have had their two rounds


@pytest.mark.parametrize("rows", [4, 16])
def test_more_than_can_be_answered_is_answered_as_fast_as_the_closed_form_says(rows: int) -> None:
    asked = requests(Traffic(30.0, (1.0,), (16, 48)), 200, 5)
    found = stages(Seconds({1.0: [0.03]}), round_seconds=0.01)
    course = simulate(asked, found, SimulatedReplicas(rows=rows, queue_limit=64))
    answered = figures(course.outcomes, 200)["answered_a_second"]
    assert answered == pytest.approx(most_a_second(rows, 32, 0.03, 0.01), rel=0.06)


def test_who_waits_too_long_gets_503_and_frees_his_place() -> None:
    asked = [SimulatedRequest(0.1 * i, 1.0, 1, False, 0) for i in range(4)]
    fleet = replace(ENDLESS, queue_timeout_seconds=1.5)
    course = simulate(asked, stages(CONSTANT), fleet)
    assert [one.status for one in course.visits] == [200, 200, 503, 503]
    assert course.replicas[0].waiting == course.replicas[0].load == 0


@pytest.mark.parametrize("kept", [2, 5, 10])
def test_hits_of_the_silence_cache_are_its_share_of_the_lengths(kept: int) -> None:
    """Lengths equally likely, entries of one size: an LRU cache of C of M hits C / M."""
    lengths = tuple(float(i) for i in range(1, 11))
    asked = requests(Traffic(0.5, lengths, (1, 1), steered=1.0), 20_000, 6)
    fleet = replace(ENDLESS, silence_cache_bytes=100 * kept)
    course = simulate(asked, stages(CONSTANT, entry_bytes=100), fleet)
    assert figures(course.outcomes, 1.0)["hit_share"] == pytest.approx(kept / 10, abs=0.01)
    assert {one.twin for one in course.visits} == {"hit", "words", "cold"} - (
        {"words"} if kept == 10 else set()
    )


def test_a_bare_question_asks_nothing_of_the_cache() -> None:
    course = simulate(requests(ONE_TOKEN, 50, 7), stages(CONSTANT), ENDLESS)
    assert {one.twin for one in course.visits} == {""}
    assert not course.replicas[0].prefixes.held_bytes


def test_what_is_stretched_takes_as_much_longer() -> None:
    """By hand: twice as slow from the tenth second on."""
    asked = [SimulatedRequest(at, 1.0, 1, False, 0) for at in (0.0, 20.0)]
    slow = replace(stages(CONSTANT), stretch=lambda at: 2.0 if at >= 10 else 1.0)
    course = simulate(asked, slow, ENDLESS)
    assert [one.done_at for one in course.visits] == [1.0, 22.0]
    assert (course.replicas[0].work_seconds, course.replicas[0].busy_seconds) == (2.0, 3.0)


def test_seconds_are_drawn_between_sizes_and_kept_at_the_ends() -> None:
    found = Seconds({1.0: [2.0, 4.0], 3.0: [4.0, 8.0]})
    assert [found.draw(size, 0.0) for size in (0.5, 1.0, 2.0, 3.0, 9.0)] == [2, 2, 3, 4, 4]
    assert [found.draw(2.0, draw) for draw in (0.0, 0.49, 0.5, 0.99)] == [3, 3, 6, 6]


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_requests_come_at_the_rate_that_was_asked_for(burst: float) -> None:
    traffic = Traffic(5.0, (1.0, 2.0), (2, 4), steered=0.25, words=3, burst=burst)
    asked = requests(traffic, 2_000, 8)
    assert len(asked) == pytest.approx(10_000, rel=0.04)
    times = np.array([one.at for one in asked])
    assert (np.diff(times) >= 0).all() and times[-1] <= 2_000
    counts = np.histogram(times, np.arange(0, 2_001))[0]
    spread = counts.var() / counts.mean()  # 1 for Poisson
    assert spread == pytest.approx(1, abs=0.15) if burst == 1 else spread > 4
    assert np.mean([one.steered for one in asked]) == pytest.approx(0.25, abs=0.03)
    assert {one.answer_tokens for one in asked} == {2, 3, 4}
    assert {one.words for one in asked} == {0, 1, 2}
    assert requests(traffic, 2_000, 8) == asked


@pytest.mark.slow
def test_no_server_needs_simpy_and_the_simulation_says_where_to_get_it() -> None:
    code = "import sys; sys.modules['simpy'] = None; import server.app, server.cli\n"
    code += "import deploy.capacity.simulation"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "AllEarsError: the simulation needs simpy" in done.stderr
    assert "allears[dev]" in done.stderr
