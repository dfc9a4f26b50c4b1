"""Soak: many requests of all kinds at once, among clients that hang up, lie, dawdle and flood.

Every honest request must get the answer that it got when it was sent alone.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import numpy as np
from tqdm import tqdm

from tests.stress.hostile_clients import (
    HANG_UPS,
    REFUSED,
    SLOW,
    STUCK,
    answer_fault,
    refusal_fault,
)
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.questions import AnswerContent, HonestRequest, pool
from tests.stress.server_process import KEY, Served, serving

LIMITS = (
    *("--max-audio-bytes", "200000", "--queue-limit-requests", "64"),
    *("--stall-timeout-seconds", "6", "--body-timeout-seconds", "6"),
)
_HOSTILE = {**HANG_UPS, **REFUSED, **SLOW, **STUCK}
_WEIGHTS = [0.1 if kind in STUCK else 1.0 for kind in _HOSTILE]  # they take their time
_HOSTILE_SHARE = 0.3
_POOL = 48
_SHOWN = 20  # failures
_SETTLE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Sample:
    """State of the server at one time, seen from outside."""

    done: float  # share of the requests
    rss_bytes: int
    open_files: int
    queue_depth: float
    batch_rows: float


@dataclass(slots=True, eq=False)
class Tally:
    """Results so far."""

    sent: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of honest answers
    busy: int = 0  # 429 or 503 with Retry-After: told to come back
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class SoakRun:
    """State that the clients of a run share."""

    http: httpx.AsyncClient
    served: Served
    honest: Sequence[HonestRequest]
    alone: Sequence[AnswerContent]  # the answer to each of them when sent alone
    jobs: Iterator[tuple[str, int, int]]
    deadline: float
    bar: tqdm[None]
    tally: Tally = field(default_factory=Tally)


def run(requests: int, seed: int, *, concurrent: int = 32, max_seconds: float = 1800) -> Outcome:
    """So many requests to a fresh server of the embedded model."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), *LIMITS) as served:
        return asyncio.run(_soak(served, requests, seed, concurrent, max_seconds))


async def _soak(
    served: Served, requests: int, seed: int, concurrent: int, max_seconds: float
) -> Outcome:
    honest, started = pool(seed, _POOL), time.monotonic()
    limits = httpx.Limits(max_connections=concurrent)
    async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=120) as http:
        alone = [await _answer_alone(http, request) for request in honest]
        idle = await _settled(served)
        with tqdm(total=requests, desc="soak", smoothing=0.02) as bar:
            jobs = _jobs(Random(seed), len(honest), requests)
            deadline = time.monotonic() + max_seconds
            run = SoakRun(http, served, honest, alone, jobs, deadline, bar)
            begun = time.monotonic()
            watching = asyncio.create_task(_watch(run, requests))
            await asyncio.gather(*(_client(run) for _ in range(concurrent)))
            seconds = time.monotonic() - begun
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for request, content in zip(honest, alone, strict=True):
            if difference := (await _answer_alone(http, request)).differs(content):
                run.tally.wrong.append(f"{request.name} alone, after and before: {difference}")
    checks = _checks(run, idle, await _settled(served), requests, seconds)
    failures = (*run.tally.lost, *run.tally.wrong, *served.faults())
    shown = tuple(f"{failure} (seed {seed})" for failure in failures[:_SHOWN])
    return Outcome("soak", time.monotonic() - started, seed, tuple(checks), shown)


async def _answer_alone(http: httpx.AsyncClient, request: HonestRequest) -> AnswerContent:
    """The answer to one request of an idle server."""
    response = await request.send(http, KEY)
    assert response.status_code == 200, f"{request.name}: {response.status_code} {response.text}"
    return request.read(response)


def _jobs(random: Random, pool_size: int, requests: int) -> Iterator[tuple[str, int, int]]:
    """Kind of client, which request, and a seed of its own, for each request of the run."""
    for _ in range(requests):
        hostile = random.random() < _HOSTILE_SHARE
        kind = random.choices(list(_HOSTILE), _WEIGHTS)[0] if hostile else "honest"
        yield kind, random.randrange(pool_size), random.randrange(2**31)


async def _client(run: SoakRun) -> None:
    """One client: the next request as soon as the last one is over."""
    for kind, index, seed in run.jobs:
        if time.monotonic() > run.deadline:
            return
        request, content = run.honest[index], run.alone[index]
        run.tally.sent[kind] += 1
        if kind == "honest":
            await _send_honest(run, request, content)
        else:
            await _misbehave(run, kind, request, content, seed)
        run.bar.update()


async def _send_honest(run: SoakRun, request: HonestRequest, content: AnswerContent) -> None:
    """Send a request, and hold its answer against the one given alone."""
    tally, started = run.tally, time.perf_counter()
    try:
        response = await request.send(run.http, KEY)
    except httpx.HTTPError as error:
        tally.lost.append(f"{request.name}: no answer, {error!r}")
        return
    if response.status_code in (429, 503):
        tally.busy += 1
        why = refusal_fault(response.status_code, response.content, (429, 503))
        if why or "retry-after" not in response.headers:
            tally.lost.append(f"{request.name}: {why or 'no Retry-After'}")
    elif response.status_code != 200:
        tally.lost.append(f"{request.name}: {response.status_code} {response.text[:300]}")
    else:
        tally.seconds.append(time.perf_counter() - started)
        if difference := answer_fault(request, content, 200, response.content):
            tally.wrong.append(f"{request.name} among others: {difference}")


async def _misbehave(
    run: SoakRun, kind: str, request: HonestRequest, content: AnswerContent, seed: int
) -> None:
    try:
        fault = await _HOSTILE[kind](run.served.port, request, content, Random(seed))
    except OSError as error:
        fault = f"the connection failed: {error!r}"
    if fault:
        run.tally.lost.append(f"{kind}, {request.name}, client's seed {seed}: {fault}")


async def _watch(run: SoakRun, requests: int) -> None:
    """A sample each second, until it is cancelled."""
    while True:
        metrics = await asyncio.to_thread(run.served.metrics)
        done = sum(run.tally.sent.values()) / requests
        run.tally.samples.append(_sample(run.served, metrics, done))
        await asyncio.sleep(1)


def _sample(served: Served, metrics: dict[str, float], done: float) -> Sample:
    return Sample(
        done=done,
        rss_bytes=served.rss_bytes(),
        open_files=served.open_files(),
        queue_depth=metrics["allears_queue_depth"],
        batch_rows=metrics["allears_batch_rows"],
    )


async def _settled(served: Served) -> Sample:
    """The server after the last request: as soon as it is idle, else after a while."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        sample = _sample(served, await asyncio.to_thread(served.metrics), 1.0)
        if time.monotonic() > deadline or not (sample.batch_rows or sample.queue_depth):
            return sample
        await asyncio.sleep(0.2)


def _checks(run: SoakRun, idle: Sample, end: Sample, requests: int, seconds: float) -> list[Check]:
    tally = run.tally
    sent = sum(tally.sent.values())
    hung_up = sum(tally.sent[kind] for kind in HANG_UPS)
    p50, p99 = np.percentile(tally.seconds or [float("nan")], [50, 99]).tolist()
    crashes = _status_5xx(run.served.metrics())
    return [
        at_least("requests", sent, requests),
        figure("of them honest", tally.sent["honest"]),
        figure("of them hung up by the client", hung_up),
        figure("of them to be refused, slow or stuck", sent - hung_up - tally.sent["honest"]),
        none_of("lost: not answered as the contract says", len(tally.lost)),
        none_of("wrong rows: not the answer given alone", len(tally.wrong)),
        none_of("answers of status 5xx but 503", crashes),
        none_of("tracebacks and errors in the server's log", len(run.served.faults())),
        figure("told to come back (429, 503)", tally.busy),
        at_most("longest queue", max(s.queue_depth for s in tally.samples), 64, " requests"),
        figure("p50 of an answer", p50, " s"),
        figure("p99 of an answer", p99, " s"),
        figure("requests a second", sent / seconds, " /s"),
        at_most("memory at the end over memory at 20 %", _growth(tally.samples), 1.05, "x"),
        figure("memory at the end", end.rss_bytes / 1e6, " MB"),
        at_most("open files at the end over before", end.open_files - idle.open_files, 4),
        at_most("rows at the end", end.batch_rows + end.queue_depth, 0),
    ]


def _growth(samples: Sequence[Sample]) -> float:
    """Median memory of the last tenth over that around the 20 % mark."""
    early = [s.rss_bytes for s in samples if 0.15 <= s.done <= 0.25] or [samples[0].rss_bytes]
    late = [s.rss_bytes for s in samples if s.done >= 0.9] or [samples[-1].rss_bytes]
    return statistics.median(late) / statistics.median(early)


def _status_5xx(metrics: dict[str, float]) -> int:
    """The number of answers of status 5xx but 503."""
    failed = 0.0
    for name, value in metrics.items():
        if name.startswith("allears_requests_total") and 'status="5' in name:
            failed += 0 if 'status="503"' in name else value
    return round(failed)
