"""Requests as they come: when, how long the clip, how long the answer, steered or not.

The simulation and the load on a real server take the same list, so they differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

_BURST_SECONDS = 2.0  # mean length of a burst


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests to one server, or to many; all lengths are equally likely."""

    requests_a_second: float  # mean over all time
    clip_seconds: tuple[float, ...]
    answer_tokens: tuple[int, int]  # fewest and most, each number between as likely
    steered: float = 0.0  # share with a live direction
    system_prompts: int = 1  # different texts before the audio
    burst: float = 1.0  # in bursts so many times the mean rate, between them nothing; 1: Poisson


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request, and when it comes."""

    at: float  # seconds from the start
    clip_seconds: float
    answer_tokens: int
    steered: bool
    system_prompt: int  # its number


def requests(traffic: Traffic, seconds: float, seed: int) -> list[TimedRequest]:
    """All requests of so many seconds, in their order; the same seed makes the same."""
    draws = np.random.default_rng(seed)
    times = _times(traffic, seconds, draws)
    fewest, most = traffic.answer_tokens
    clips = draws.choice(traffic.clip_seconds, len(times))
    tokens = draws.integers(fewest, most + 1, len(times))
    steered = draws.random(len(times)) < traffic.steered
    prompts = draws.integers(0, traffic.system_prompts, len(times))
    return [
        TimedRequest(at, float(clip), int(count), bool(live), int(prompt))
        for at, clip, count, live, prompt in zip(
            times, clips, tokens, steered, prompts, strict=True
        )
    ]


def _times(traffic: Traffic, seconds: float, draws: Generator) -> list[float]:
    """Poisson arrivals; in bursts, those of a clock that only runs while there is one."""
    rate = traffic.requests_a_second * traffic.burst
    length = seconds if traffic.burst == 1 else seconds / traffic.burst
    inside = np.sort(draws.uniform(0, length, draws.poisson(rate * length)))
    if traffic.burst == 1:
        return [float(at) for at in inside]
    pauses = max(round(length / _BURST_SECONDS), 1)
    starts = np.sort(draws.uniform(0, length, pauses))  # a burst ends at each
    waits = draws.exponential(size=pauses)
    waits *= (seconds - length) / waits.sum()
    shift = np.concatenate([[0.0], np.cumsum(waits)])[np.searchsorted(starts, inside)]
    return [float(at) for at in inside + shift]


# ---- outcomes


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The outcome of one request, simulated or of a real server."""

    at: float  # when it was sent; seconds from the start
    status: int
    seconds: float  # until the whole answer was there
    first_token_seconds: float = 0.0  # from entering the queue to the first token
    twin: str = ""  # hit or miss; empty for none
    passes_seconds: float = 0.0  # by the wall, of prefill and twin; a real server's only


def summary(outcomes: Sequence[RequestOutcome], seconds: float) -> dict[str, float]:
    """Answers a second within the time that requests came, latencies, shares."""
    answered = [each for each in outcomes if each.status == 200]
    waits = [each.seconds for each in answered] or [float("nan")]
    firsts = [each.first_token_seconds for each in answered] or [float("nan")]
    twins = [each.twin for each in answered if each.twin]
    figures = {
        "requests_a_second": len(outcomes) / seconds,
        "answered_a_second": sum(each.at + each.seconds <= seconds for each in answered) / seconds,
        "p50_seconds": float(np.quantile(waits, 0.5)),
        "p99_seconds": float(np.quantile(waits, 0.99)),
        "p50_first_token_seconds": float(np.quantile(firsts, 0.5)),
        "p99_first_token_seconds": float(np.quantile(firsts, 0.99)),
        "refused_share": sum(each.status == 429 for each in outcomes) / max(len(outcomes), 1),
        "late_share": sum(each.status == 503 for each in outcomes) / max(len(outcomes), 1),
        "hit_share": twins.count("hit") / len(twins) if twins else float("nan"),
    }
    return {name: float(f"{value:.4g}") for name, value in figures.items()}
