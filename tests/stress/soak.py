"""Soak: many requests of all kinds at once, among clients that hang up, lie, dawdle and flood.

Every honest request must be answered as it was when it was asked alone.
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

from tests.stress.hostile_clients import HANG_UPS, REFUSED, SLOW, STUCK, answered, refused
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.questions import Ask, Row, pool
from tests.stress.server_process import KEY, Served, serving

LIMITS = (
    *("--max-audio-bytes", "200000", "--queue-limit-requests", "64"),
    *("--stall-timeout-seconds", "6", "--body-timeout-seconds", "6"),
)
_NASTY = {**HANG_UPS, **REFUSED, **SLOW, **STUCK}
_WEIGHTS = [0.1 if kind in STUCK else 1.0 for kind in _NASTY]  # they take their time
_NASTY_SHARE = 0.3
_POOL = 48
_SHOWN = 20  # failures
_SETTLE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of the server at one time."""

    done: float  # share of the requests
    rss_bytes: int
    open_files: int
    queue_depth: float
    batch_rows: float


@dataclass(slots=True, eq=False)
class Tally:
    """What happened so far."""

    sent: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of honest answers
    busy: int = 0  # 429 or 503 with Retry-After: told to come back
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What the clients of a run share."""

    http: httpx.AsyncClient
    served: Served
    asks: Sequence[Ask]
    rows: Sequence[Row]  # of each request, when asked alone
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
    asks, started = pool(seed, _POOL), time.monotonic()
    limits = httpx.Limits(max_connections=concurrent)
    async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=120) as http:
        rows = [await _alone(http, ask) for ask in asks]
        idle = await _settled(served)
        with tqdm(total=requests, desc="soak", smoothing=0.02) as bar:
            jobs = _jobs(Random(seed), len(asks), requests)
            deadline = time.monotonic() + max_seconds
            course = Course(http, served, asks, rows, jobs, deadline, bar)
            begun = time.monotonic()
            watching = asyncio.create_task(_watch(course, requests))
            await asyncio.gather(*(_client(course) for _ in range(concurrent)))
            seconds = time.monotonic() - begun
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for ask, row in zip(asks, rows, strict=True):
            if found := (await _alone(http, ask)).differs(row):
                course.tally.wrong.append(f"{ask.name} alone, after and before: {found}")
    checks = _checks(course, idle, await _settled(served), requests, seconds)
    failures = (*course.tally.lost, *course.tally.wrong, *served.faults())
    told = tuple(f"{one} (seed {seed})" for one in failures[:_SHOWN])
    return Outcome("soak", time.monotonic() - started, seed, tuple(checks), told)


async def _alone(http: httpx.AsyncClient, ask: Ask) -> Row:
    """The answer to one request of an idle server."""
    response = await ask.answered(http, KEY)
    assert response.status_code == 200, f"{ask.name}: {response.status_code} {response.text[:500]}"
    return ask.row(response)


def _jobs(random: Random, asks: int, requests: int) -> Iterator[tuple[str, int, int]]:
    """Kind of client, which request, and a seed of its own, for each request of the run."""
    for _ in range(requests):
        nasty = random.random() < _NASTY_SHARE
        kind = random.choices(list(_NASTY), _WEIGHTS)[0] if nasty else "honest"
        yield kind, random.randrange(asks), random.randrange(2**31)


async def _client(course: Course) -> None:
    """One of those that ask at once: the next request as soon as the last one is over."""
    for kind, index, seed in course.jobs:
        if time.monotonic() > course.deadline:
            return
        ask, row = course.asks[index], course.rows[index]
        course.tally.sent[kind] += 1
        if kind == "honest":
            await _honest(course, ask, row)
        else:
            await _misbehave(course, kind, ask, row, seed)
        course.bar.update()


async def _honest(course: Course, ask: Ask, row: Row) -> None:
    """Ask, and hold the answer against what was answered alone."""
    tally, started = course.tally, time.perf_counter()
    try:
        response = await ask.answered(course.http, KEY)
    except httpx.HTTPError as error:
        tally.lost.append(f"{ask.name}: no answer, {error!r}")
        return
    if response.status_code in (429, 503):
        tally.busy += 1
        why = refused(response.status_code, response.content, (429, 503))
        if why or "retry-after" not in response.headers:
            tally.lost.append(f"{ask.name}: {why or 'no Retry-After'}")
    elif response.status_code != 200:
        tally.lost.append(f"{ask.name}: {response.status_code} {response.text[:300]}")
    else:
        tally.seconds.append(time.perf_counter() - started)
        if found := answered(ask, row, 200, response.content):
            tally.wrong.append(f"{ask.name} among others: {found}")


async def _misbehave(course: Course, kind: str, ask: Ask, row: Row, seed: int) -> None:
    try:
        found = await _NASTY[kind](course.served.port, ask, row, Random(seed))
    except OSError as error:
        found = f"the connection failed: {error!r}"
    if found:
        course.tally.lost.append(f"{kind}, {ask.name}, client's seed {seed}: {found}")


async def _watch(course: Course, requests: int) -> None:
    """A sample each second, for as long as it is let."""
    while True:
        metrics = await asyncio.to_thread(course.served.metrics)
        done = sum(course.tally.sent.values()) / requests
        course.tally.samples.append(_sample(course.served, metrics, done))
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
    """The server when nobody asks any more: as soon as it is idle, or after a while as it is."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        found = _sample(served, await asyncio.to_thread(served.metrics), 1.0)
        if time.monotonic() > deadline or not (found.batch_rows or found.queue_depth):
            return found
        await asyncio.sleep(0.2)


def _checks(
    course: Course, idle: Sample, end: Sample, requests: int, seconds: float
) -> list[Check]:
    tally = course.tally
    sent = sum(tally.sent.values())
    hung_up = sum(tally.sent[kind] for kind in HANG_UPS)
    p50, p99 = np.percentile(tally.seconds or [float("nan")], [50, 99]).tolist()
    crashes = _status_5xx(course.served.metrics())
    return [
        at_least("requests", sent, requests),
        figure("of them honest", tally.sent["honest"]),
        figure("of them hung up by the client", hung_up),
        figure("of them to be refused, slow or stuck", sent - hung_up - tally.sent["honest"]),
        none_of("lost: not answered as the contract says", len(tally.lost)),
        none_of("wrong rows: not the answer given alone", len(tally.wrong)),
        none_of("answers of status 5xx but 503", crashes),
        none_of("tracebacks and errors in the server's log", len(course.served.faults())),
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
    """Answers that say that the server failed."""
    found = 0.0
    for name, value in metrics.items():
        if name.startswith("allears_requests_total") and 'status="5' in name:
            found += 0 if 'status="503"' in name else value
    return round(found)
