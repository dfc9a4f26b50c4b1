"""PostgreSQL stopped and started again in mid-traffic: answers go on, records catch up."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import psycopg

from tests.conftest import Postgres
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.questions import HonestRequest, pool
from tests.stress.server_process import KEY, Served, serving

_CATCH_UP_SECONDS = 60.0
_CONCURRENT = 8
_POOL = 16


def run(requests: int, outages: int, seed: int) -> Outcome:
    """So many requests, while the database goes away so many times, and comes back."""
    started = time.monotonic()
    with _cluster() as cluster, tempfile.TemporaryDirectory() as name:
        url = cluster.new_database()
        with serving(Path(name), "--listening-log-url", url) as served:
            checks, failures = asyncio.run(_outages(served, cluster, url, requests, outages, seed))
            failures += served.faults()
    reported = tuple(f"{failure} (seed {seed})" for failure in failures)
    return Outcome("database", time.monotonic() - started, seed, tuple(checks), reported)


def programs() -> list[Path]:
    """Folders of PostgreSQL's programs where Debian puts them, the newest last."""
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextmanager
def _cluster() -> Iterator[Postgres]:
    """A running PostgreSQL of its own; FileNotFoundError where Debian's package is missing."""
    folders = programs()
    if not folders:
        raise FileNotFoundError("PostgreSQL is missing: apt install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="allears-stress-"))
    cluster = Postgres(folders[-1], folder, "postgres" if os.getuid() == 0 else None)
    try:
        cluster.start()
        yield cluster
        cluster.stop("immediate")
    finally:
        shutil.rmtree(folder)


@dataclass(slots=True, eq=False)
class OutageTraffic:
    """State that the clients share, and their results."""

    http: httpx.AsyncClient
    jobs: Iterator[HonestRequest]
    failures: list[str] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    done: int = 0

    async def client(self) -> None:
        """Send one request after the other, until none is left."""
        for request in self.jobs:
            if fault := await _fault(self.http, request):
                self.failures.append(f"{request.name}: {fault}")
            else:
                self.answered_at.append(time.monotonic())
            self.done += 1

    async def until(self, done: float) -> None:
        """Wait until so many requests are over; they end, since each has a time limit."""
        while self.done < done:
            await asyncio.sleep(0.05)


async def _outages(
    served: Served, cluster: Postgres, url: str, requests: int, outages: int, seed: int
) -> tuple[list[Check], list[str]]:
    random, honest = Random(seed), pool(seed, _POOL)
    away: list[tuple[float, float]] = []
    waited = 0.0
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
        traffic = OutageTraffic(http, iter([random.choice(honest) for _ in range(requests)]))
        clients = [asyncio.create_task(traffic.client()) for _ in range(_CONCURRENT)]
        each = requests / outages
        for i in range(outages):
            await traffic.until((i + 0.3) * each)
            begun = time.monotonic()
            await asyncio.to_thread(cluster.stop, ("fast", "immediate")[i % 2])
            await traffic.until((i + 0.7) * each)
            waited = max(waited, served.metrics()["allears_listening_log_waiting"])
            away.append((begun, time.monotonic()))
            await asyncio.to_thread(cluster.start)
        await asyncio.gather(*clients)
    answered = len(traffic.answered_at)
    during = sum(any(a < at < b for a, b in away) for at in traffic.answered_at)
    seconds, recorded = _caught_up(url, answered)
    lost = round(served.metrics()["allears_listening_log_lost_total"])
    return [
        at_least("requests", traffic.done, requests),
        at_least("times PostgreSQL was stopped and started again", len(away), outages),
        none_of("not answered", requests - answered),
        at_least("answered while it was away", during, outages),
        figure("most records that waited for it", waited),
        none_of("records lost, by the server's own count", lost),
        Check("records in the database", f"{recorded:,}", f"{answered:,}", recorded == answered),
        at_most("from the last answer until all were there", seconds, _CATCH_UP_SECONDS, " s"),
    ], traffic.failures


def _caught_up(url: str, wanted: int) -> tuple[float, int]:
    """Seconds until the database had so many records, or the longest wait; and how many it has."""
    started = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            (count,) = connection.execute("SELECT count(*) FROM listening_log").fetchone() or (0,)
            seconds = time.monotonic() - started
            if count >= wanted or seconds > _CATCH_UP_SECONDS:
                return seconds, int(count)
            time.sleep(0.1)


async def _fault(http: httpx.AsyncClient, request: HonestRequest) -> str:
    """The fault of the answer to a request; empty if there is none."""
    try:
        response = await request.send(http, KEY)
        if response.status_code == 200:
            request.read(response)
            return ""
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        return repr(error)
    return f"{response.status_code} {response.text[:300]}"
