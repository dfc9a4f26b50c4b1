"""The simulation against queues that have formulae, and against schedules done by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from deploy.capacity.costs import max_answers_per_second
from deploy.capacity.simulation import FleetSettings, SimulationRun, simulate
from deploy.capacity.stage_measurement import deciles
from deploy.capacity.stage_times import Quantiles, StageTimes
from deploy.capacity.traffic import TimedRequest, Traffic, requests, summary

NOTHING = Quantiles({1.0: [0.0]})
ONE_TOKEN = Traffic(0.8, (1.0,), (1, 1))  # no decode step: a queue with one server
ENDLESS = FleetSettings(rows=1, queue_limit=10**9, queue_timeout_seconds=1e9)


def stage_times(service: Quantiles, round_seconds: float = 0.0, entry_bytes: int = 1) -> StageTimes:
    """Stages of which only these take time; a miss takes as long as a hit."""
    return StageTimes(
        open=NOTHING,
        decode=NOTHING,
        prompt=NOTHING,
        bare=service,
        hit=service,
        miss=service,
        cold=service,
        round=Quantiles({1.0: [round_seconds]}),
        entry_bytes=lambda _: entry_bytes,
        feature_bytes=lambda _: 0,
    )


CONSTANT = Quantiles({1.0: [1.0]})
EXPONENTIAL = Quantiles({1.0: list(-np.log(1 - (np.arange(20_000) + 0.5) / 20_000))})


def mean_wait(run: SimulationRun) -> float:
    """Seconds from arrival to the engine, the first tenth left out."""
    answered = run.requests[len(run.requests) // 10 :]
    return float(np.mean([request.done_at - request.sent.at for request in answered])) - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("service, squares", [(CONSTANT, 1.0), (EXPONENTIAL, 2.0)])
@pytest.mark.parametrize("load, seconds", [(0.5, 60_000), (0.7, 100_000)])
def test_mean_wait_is_that_of_pollaczek_and_khinchine(
    service: Quantiles, squares: float, load: float, seconds: float
) -> None:
    """M/D/1 and M/M/1: the mean wait is load * E[S^2] / (2 (1 - load)), with E[S] = 1."""
    sent = requests(replace(ONE_TOKEN, requests_a_second=load), seconds, 1)
    run = simulate(sent, stage_times(service), ENDLESS)
    assert mean_wait(run) == pytest.approx(load * squares / (2 * (1 - load)), rel=0.1)


def test_every_wait_of_one_server_is_that_of_lindley() -> None:
    """A wait is the one before, and its service, less the time between the two arrivals."""
    sent = requests(ONE_TOKEN, 500, 1)
    waits = [0.0]
    for before, request in pairwise(sent):
        waits.append(max(waits[-1] + 1.0 - (request.at - before.at), 0.0))
    run = simulate(sent, stage_times(CONSTANT), ENDLESS)
    measured = [request.done_at - request.sent.at - 1.0 for request in run.requests]
    assert measured == pytest.approx(waits, abs=1e-6)


def test_times_in_the_system_of_m_m_1_are_exponential() -> None:
    sent = requests(replace(ONE_TOKEN, requests_a_second=0.5), 60_000, 2)
    figures = summary(simulate(sent, stage_times(EXPONENTIAL), ENDLESS).outcomes, 60_000)
    assert figures["p50_seconds"] == pytest.approx(np.log(2) / 0.5, rel=0.06)
    assert figures["p99_seconds"] == pytest.approx(np.log(100) / 0.5, rel=0.1)


@pytest.mark.parametrize("load", [0.8, 1.0, 1.5])
def test_the_share_turned_away_is_that_of_m_m_1_k(load: float) -> None:
    """With 4 that may wait, 5 are in the system at most."""
    sent = requests(replace(ONE_TOKEN, requests_a_second=load), 30_000, 3)
    run = simulate(sent, stage_times(EXPONENTIAL), replace(ENDLESS, queue_limit=4))
    chances = load ** np.arange(6)
    figures = summary(run.outcomes, 30_000)
    assert figures["refused_share"] == pytest.approx(chances[5] / chances.sum(), rel=0.1)
    assert figures["answered_a_second"] == pytest.approx(
        load * (1 - chances[5] / chances.sum()), rel=0.02
    )


def test_random_routing_makes_queues_of_their_own_and_the_least_loaded_waits_less() -> None:
    sent = requests(replace(ONE_TOKEN, requests_a_second=8 * 0.5), 6_000, 4)
    fleet = replace(ENDLESS, replicas=8)
    random = mean_wait(simulate(sent, stage_times(EXPONENTIAL), fleet))
    least = mean_wait(
        simulate(sent, stage_times(EXPONENTIAL), replace(fleet, routing="least_loaded"))
    )
    assert random == pytest.approx(0.5 / 0.5, rel=0.1)
    assert least < random / 3


def test_an_engine_fills_its_rows_then_makes_a_step_for_all() -> None:
    """By hand: 3 at once, 1 s to enter, 10 s a round, answers of 1, 2 and 3 tokens, two rows."""
    sent = [TimedRequest(0.0, 1.0, tokens, False, 0) for tokens in (2, 1, 3)]
    run = simulate(sent, stage_times(CONSTANT, round_seconds=10.0), replace(ENDLESS, rows=2))
    first, second, third = run.requests
    assert (first.first_token_at, first.done_at) == (1.0, 13.0)
    assert (second.first_token_at, second.done_at) == (2.0, 2.0)
    assert (third.first_token_at, third.done_at) == (3.0, 23.0)
    assert run.mean_rows == 1.5


def test_four_may_enter_between_two_steps() -> None:
    sent = [TimedRequest(0.0, 1.0, 2, False, 0) for _ in range(6)]
    run = simulate(sent, stage_times(CONSTANT, round_seconds=10.0), replace(ENDLESS, rows=8))
    assert [request.first_token_at for request in run.requests] == [1.0, 2.0, 3.0, 4.0, 15.0, 16.0]
    assert [request.done_at for request in run.requests] == [14.0] * 4 + [26.0] * 2


@pytest.mark.parametrize("beside, firsts", [(False, [3.0, 6.0]), (True, [3.0, 4.0])])
def test_prompts_are_made_in_the_engine_or_beside_it(beside: bool, firsts: list[float]) -> None:
    """By hand: 2 at once, 2 s for a prompt, in the engine or on two cores, 1 s to enter."""
    sent = [TimedRequest(0.0, 1.0, 1, False, 0) for _ in range(2)]
    slow = replace(stage_times(CONSTANT), prompt=Quantiles({1.0: [2.0]}))
    fleet = replace(ENDLESS, workers=2, prompts_by_workers=beside)
    run = simulate(sent, slow, fleet)
    assert [request.first_token_at for request in run.requests] == firsts
    assert run.replicas[0].work_seconds == (2.0 if beside else 6.0)


def test_who_waits_too_long_for_his_prompt_is_not_given_one() -> None:
    """By hand: the first prompt takes until 2, the second until 5; the third waited too long."""
    sent = [TimedRequest(0.0, 1.0, 1, False, 0) for _ in range(3)]
    slow = replace(stage_times(CONSTANT), prompt=Quantiles({1.0: [2.0]}))
    run = simulate(sent, slow, replace(ENDLESS, queue_timeout_seconds=5.5))
    assert [request.status for request in run.requests] == [200, 200, 503]
    assert run.replicas[0].work_seconds == 6.0


def test_rows_are_full_before_the_queue_is_let_in() -> None:
    sent = [TimedRequest(0.0, 1.0, 3, False, 0) for _ in range(3)]
    run = simulate(sent, stage_times(CONSTANT, round_seconds=10.0), replace(ENDLESS, rows=2))
    begins = [request.first_token_at - 1.0 for request in run.requests]
    assert begins == [0.0, 1.0, 22.0]  # the third when the first two have had their two rounds


@pytest.mark.parametrize("rows", [4, 16])
def test_more_than_can_be_answered_is_answered_as_fast_as_the_closed_form_says(rows: int) -> None:
    sent = requests(Traffic(30.0, (1.0,), (16, 48)), 200, 5)
    times = stage_times(Quantiles({1.0: [0.03]}), round_seconds=0.01)
    run = simulate(sent, times, FleetSettings(rows=rows, queue_limit=64))
    answered = summary(run.outcomes, 200)["answered_a_second"]
    assert answered == pytest.approx(max_answers_per_second(rows, 32, 0.03, 0.01), rel=0.06)


def test_who_waits_too_long_gets_503_and_frees_his_place() -> None:
    sent = [TimedRequest(0.1 * i, 1.0, 1, False, 0) for i in range(4)]
    fleet = replace(ENDLESS, queue_timeout_seconds=1.5)
    run = simulate(sent, stage_times(CONSTANT), fleet)
    assert [request.status for request in run.requests] == [200, 200, 503, 503]
    assert run.replicas[0].waiting == run.replicas[0].load == 0


@pytest.mark.parametrize("kept", [2, 5, 10])
def test_hits_of_the_silence_cache_are_its_share_of_the_lengths(kept: int) -> None:
    """Silence kept by length, equally likely, entries of one size: a cache of C of M hits C / M."""
    lengths = tuple(float(i) for i in range(1, 11))
    sent = requests(Traffic(0.5, lengths, (1, 1), steered=1.0), 20_000, 6)
    fleet = replace(ENDLESS, silence_cache_bytes=100 * kept)
    run = simulate(sent, stage_times(CONSTANT, entry_bytes=100), fleet)
    assert summary(run.outcomes, 1.0)["hit_share"] == pytest.approx(kept / 10, abs=0.01)
    assert {request.twin for request in run.requests} == {"hit", "miss", "cold"} - (
        {"miss"} if kept == 10 else set()
    )


def test_a_bare_question_asks_nothing_of_the_cache() -> None:
    run = simulate(requests(ONE_TOKEN, 50, 7), stage_times(CONSTANT), ENDLESS)
    assert {request.twin for request in run.requests} == {""}
    assert not run.replicas[0].silence_cache.held_bytes


def test_a_slowdown_makes_everything_take_as_much_longer() -> None:
    """By hand: twice as slow from the tenth second on."""
    sent = [TimedRequest(at, 1.0, 1, False, 0) for at in (0.0, 20.0)]
    slow = replace(stage_times(CONSTANT), slowdown=lambda at: 2.0 if at >= 10 else 1.0)
    run = simulate(sent, slow, ENDLESS)
    assert [request.done_at for request in run.requests] == [1.0, 22.0]
    assert (run.replicas[0].work_seconds, run.replicas[0].busy_seconds) == (2.0, 3.0)


def test_seconds_are_linear_between_shares_and_sizes_and_the_last_at_the_ends() -> None:
    times = Quantiles({1.0: [2.0, 4.0], 3.0: [4.0, 8.0]})
    assert [times.at(size, 0.0) for size in (0.5, 1.0, 2.0, 3.0, 9.0)] == [2, 2, 3, 4, 4]
    assert [times.at(2.0, share) for share in (0.0, 0.25, 0.5, 1.0)] == [3, 3.75, 4.5, 6]
    assert [Quantiles({1.0: [1.0, 2.0, 9.0]}).at(1.0, share) for share in (0.25, 0.75)] == [
        1.5,
        5.5,
    ]


def test_deciles_are_drawn_as_the_samples_are_spread() -> None:
    samples = np.random.default_rng(0).gamma(4.0, size=24)
    times = Quantiles({1.0: deciles({"stage": {"1": samples.tolist()}})["stage"]["1"]})
    drawn = [times.at(1.0, share) for share in np.random.default_rng(1).random(20_000)]
    assert np.mean(drawn) == pytest.approx(samples.mean(), rel=0.03)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(samples, share), rel=0.02)
    assert samples.min() * 0.999 < min(drawn) and max(drawn) < samples.max() * 1.001


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_requests_come_at_the_rate_that_was_sent_for(burst: float) -> None:
    traffic = Traffic(5.0, (1.0, 2.0), (2, 4), steered=0.25, system_prompts=3, burst=burst)
    sent = requests(traffic, 2_000, 8)
    assert len(sent) == pytest.approx(10_000, rel=0.04)
    times = np.array([request.at for request in sent])
    assert (np.diff(times) >= 0).all() and times[-1] <= 2_000
    counts = np.histogram(times, np.arange(0, 2_001))[0]
    spread = counts.var() / counts.mean()  # 1 for Poisson
    assert spread == pytest.approx(1, abs=0.15) if burst == 1 else spread > 4
    assert np.mean([request.steered for request in sent]) == pytest.approx(0.25, abs=0.03)
    assert {request.answer_tokens for request in sent} == {2, 3, 4}
    assert {request.system_prompt for request in sent} == {0, 1, 2}
    assert requests(traffic, 2_000, 8) == sent


@pytest.mark.slow
def test_no_server_needs_simpy_and_the_simulation_says_where_to_get_it() -> None:
    code = "import sys; sys.modules['simpy'] = None; import server.app, server.cli\n"
    code += "import deploy.capacity.simulation"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "AllEarsError: the simulation needs simpy" in done.stderr
    assert "allears[dev]" in done.stderr
