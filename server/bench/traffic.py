"""Real traffic: clips of any length, behind several system prompts, one question after the other.

Between two questions is a pause, in which silences are made ahead as the idle engine makes them;
it is not timed. Each question is answered bare, steered by the ladder of silences, and, for the
first ones only, steered by silence of the clip's own length.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from server.bench import figures
from server.bench.arms import BARE, STEERED, Bench, first_token
from server.engine.messages import Question
from server.engine.runtime import prepare_silence
from steering.prompt import Message
from steering.silence import make_ahead
from steering.silence_cache import Ladder, SilenceCache

SYSTEM_PROMPTS = (
    "",
    "You hear calls to a help desk. Answer in one short sentence, and say so if you are not sure.",
    "You are given recordings from a forest. Name what can be heard, never what may be there.",
)
_SHORTEST_SECONDS = 0.5
# Requests, and those of them that are answered the exact way too, which takes longest.
_REQUESTS = {"demo": (200, 200), "mid": (200, 40), "real": (200, 200), "small": (6, 3)}
_BOUNDS = {"mean": 1.06, "p95": 1.1}  # of a steered first token over a bare one, mid-size
_LEAST_HITS = 0.98


def real_traffic(bench: Bench, model: str, *, scale_down: bool = False) -> dict[str, Any]:
    """Times, hits and memory of the ladder and of the exact way."""
    count, exact_count = _REQUESTS["small" if scale_down else model]
    limit = bench.runtime.silence_cache.limit_bytes
    fresh = SilenceCache(limit, bench.runtime.silence_cache.ladder)
    fresh.longest_ahead = bench.runtime.silence_cache.longest_ahead
    ladder = replace(bench.runtime, silence_cache=fresh)
    exact = replace(bench.runtime, silence_cache=SilenceCache(limit, Ladder(0)))
    start = time.perf_counter()
    prepare_silence(ladder, lambda stage: None)
    prepared = time.perf_counter() - start
    ways = {"bare": (ladder, BARE), "steered": (ladder, STEERED), "exact": (exact, STEERED)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    hits: Counter[str] = Counter()
    for i, question in enumerate(_questions(bench, count)):
        order = list(ways)[i % 3 :] + list(ways)[: i % 3]
        for way in order if i < exact_count else [way for way in order if way != "exact"]:
            runtime, steering = ways[way]
            took, answer = first_token(bench, runtime, replace(question, steering=steering))
            seconds[way].append(took)
            hits[way] += answer.timings.silence_cache == "hit"
        while fresh.ahead:
            make_ahead(bench.subject.model, fresh)
    return {
        "requests": {way: len(times) for way, times in seconds.items()},
        "first_token_seconds": {way: _spread(times) for way, times in seconds.items()},
        "hit_rate": {way: hits[way] / len(seconds[way]) for way in ("steered", "exact")},
        "silence_bytes": {"steered": fresh.held_bytes, "exact": exact.silence_cache.held_bytes},
        "ratio_of_lengths": 2 ** (1 / fresh.ladder.steps),
        "prepared_seconds": prepared,
        "exact_over_bare": float(
            np.mean(seconds["exact"]) / np.mean(seconds["bare"][: len(seconds["exact"])])
        ),
    }


def traffic_ratios(traffic: Mapping[str, Any], model: str | None) -> list[dict[str, Any]]:
    """Steered over bare by mean and 95th percentile, and the share of hits."""
    times, bounded = traffic["first_token_seconds"], model == "mid"
    rows = [
        figures.ratio(
            f"real traffic, steered / bare, {name} first token",
            [times["steered"][name] / times["bare"][name]],
            "<=",
            limit if bounded else None,
        )
        for name, limit in _BOUNDS.items()
    ]
    exact = traffic["exact_over_bare"]
    rows.append(figures.ratio("real traffic, exact / bare, mean first token", [exact], "<=", None))
    hits = traffic["hit_rate"]["steered"]
    least = _LEAST_HITS if bounded else None
    return [*rows, figures.ratio("real traffic, hits of silence", [hits], ">=", least)]


def traffic_table(results: Mapping[str, Any]) -> str:
    """A line for each way of answering."""
    traffic = results["traffic"]
    rows = [["real traffic", "requests", "first token s", "p95", "hits", "silence MB"]]
    for way, times in traffic["first_token_seconds"].items():
        hits, held = traffic["hit_rate"].get(way), traffic["silence_bytes"].get(way)
        cells = [str(traffic["requests"][way]), f"{times['mean']:.4g}", f"{times['p95']:.4g}"]
        cells.append("-" if hits is None else f"{hits:.3f}")
        cells.append("-" if held is None else f"{held / 1e6:.0f}")
        rows.append([way, *cells])
    return figures.table(rows)


def _questions(bench: Bench, count: int) -> list[Question]:
    """Questions about clips of lengths drawn uniformly, each behind one of the system prompts."""
    rng = np.random.default_rng(7)
    lengths = rng.uniform(_SHORTEST_SECONDS, bench.subject.clip_seconds, count)
    questions = []
    for i, length in enumerate(lengths):
        words = SYSTEM_PROMPTS[rng.integers(len(SYSTEM_PROMPTS))]
        system = (Message("system", (words,)),) if words else ()
        question = bench.question(50_000 + i)
        messages = system + bench.subject.messages(50_000 + i, float(length))
        sampling = replace(question.sampling, max_tokens=1)
        questions.append(replace(question, messages=messages, sampling=sampling))
    return questions


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(seconds)), "p95": float(np.quantile(seconds, 0.95))}
