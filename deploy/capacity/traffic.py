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
    """What is asked of a server, or of many; lengths are equally likely each."""

    requests_a_second: float  # mean over all time
    clip_seconds: tuple[float, ...]
    answer_tokens: tuple[int, int]  # fewest and most, each number between as likely
    steered: float = 0.0  # share with a live direction
    words: int = 1  # different texts before the audio
    burst: float = 1.0  # in bursts so many times the mean rate, between them nothing; 1: Poisson


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request."""

    at: float  # seconds from the start
    clip_seconds: float
    answer_tokens: int
    steered: bool
    words: int


def requests(traffic: Traffic, seconds: float, seed: int) -> list[SimulatedRequest]:
    """All requests of so many seconds, in their order; the same seed makes the same."""
    draws = np.random.default_rng(seed)
    times = _times(traffic, seconds, draws)
    fewest, most = traffic.answer_tokens
    clips = draws.choice(traffic.clip_seconds, len(times))
    tokens = draws.integers(fewest, most + 1, len(times))
    steered = draws.random(len(times)) < traffic.steered
    words = draws.integers(0, traffic.words, len(times))
    return [
        SimulatedRequest(at, float(clip), int(count), bool(live), int(word))
        for at, clip, count, live, word in zip(times, clips, tokens, steered, words, strict=True)
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


# ---- what came of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request, in a simulation or of a real server."""

    at: float  # when it was sent; seconds from the start
    status: int
    seconds: float  # until the whole answer was there
    first_token_seconds: float = 0.0  # from the engine's door to the first token
    twin: str = ""  # hit or miss; empty for none
    passes_seconds: float = 0.0  # by the wall, of prefill and twin; a real server's only


def figures(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """Answers a second within the time that requests came, latencies, shares."""
    answered = [one for one in outcomes if one.status == 200]
    waits = [one.seconds for one in answered] or [float("nan")]
    firsts = [one.first_token_seconds for one in answered] or [float("nan")]
    twins = [one.twin for one in answered if one.twin]
    found = {
        "asked_a_second": len(outcomes) / seconds,
        "answered_a_second": sum(one.at + one.seconds <= seconds for one in answered) / seconds,
        "p50_seconds": float(np.quantile(waits, 0.5)),
        "p99_seconds": float(np.quantile(waits, 0.99)),
        "p50_first_token_seconds": float(np.quantile(firsts, 0.5)),
        "p99_first_token_seconds": float(np.quantile(firsts, 0.99)),
        "refused_share": sum(one.status == 429 for one in outcomes) / max(len(outcomes), 1),
        "late_share": sum(one.status == 503 for one in outcomes) / max(len(outcomes), 1),
        "hit_share": twins.count("hit") / len(twins) if twins else float("nan"),
    }
    return {name: float(f"{value:.4g}") for name, value in found.items()}
