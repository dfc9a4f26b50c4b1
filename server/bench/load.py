"""Many questions at once, through the engine; beside it transformers, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

from server.bench.arms import ARMS, Bench
from server.engine.engine import Engine
from steering.decision import SteeringRequest

Result = TypeVar("Result")
_PATIENCE_SECONDS = 3600.0


def in_own_thread(work: Callable[[], Result]) -> Result:
    """The result of some work in a thread that ends with it.

    A thread that has computed keeps its OpenMP threads until it ends, and two threads that have
    some slow each other down. So each way of serving is measured while no other has any.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def one_at_a_time(bench: Bench, requests: int, seed: int) -> float:
    """Requests a second of transformers' generate."""
    _, generate = ARMS["hf"]
    start = time.perf_counter()
    for i in range(requests):
        generate(bench, seed + i)
    return requests / (time.perf_counter() - start)


def through_engine(
    bench: Bench, concurrency: int, requests: int, seed: int, *, steer: bool
) -> float:
    """Requests a second of `concurrency` clients that ask again as soon as they are answered."""
    engine = Engine(
        bench.runtime,
        queue_limit_requests=requests,
        queue_timeout_seconds=_PATIENCE_SECONDS,
    )
    try:
        return requests / asyncio.run(_load(engine, bench, concurrency, requests, seed, steer))
    finally:
        engine.close()


async def _load(
    engine: Engine, bench: Bench, concurrency: int, requests: int, seed: int, steer: bool
) -> float:
    """Seconds until all requests are answered."""
    seeds = count(seed)
    questions = [bench.question(next(seeds), SteeringRequest(steer)) for _ in range(requests)]

    async def client() -> None:
        while questions:
            await engine.answer(questions.pop())

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return time.perf_counter() - start
