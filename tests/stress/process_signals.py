"""SIGTERM and SIGKILL under load: who was let in is answered, and what is on disk stays whole."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx
from safetensors import SafetensorError, safe_open

from tests.stress.hostile_clients import refused
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.server_process import Served, bearer, serving, untrained
from tests.stress.signals_made import sound

_DRAIN_SECONDS = 30.0
_LOAD_SECONDS = 3.0  # before the signal
_TOKENS = (4, 200)  # of an answer
_CLIP = base64.b64encode(sound(0)).decode()


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one request."""

    begun: float
    ended: float
    status: int  # 0: the connection broke or was refused
    why: str  # what is wrong about it; empty if nothing is


def run(clients: int, kills: int, seed: int) -> Outcome:
    """One server that is told to end under load, one that is killed so many times and restarted."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = untrained(folder / "untrained")
        term, term_failures = _terminated(folder / "term", model, clients, seed)
        kill, kill_failures = _killed(folder / "kill", model, clients, kills, seed)
    failures = tuple(f"{one} (seed {seed})" for one in (*term_failures, *kill_failures))
    return Outcome("signals", time.monotonic() - started, seed, (*term, *kill), failures)


# ---- SIGTERM


def _terminated(
    folder: Path, model: Sequence[str], clients: int, seed: int
) -> tuple[list[Check], list[str]]:
    options = (*model, "--drain-seconds", f"{_DRAIN_SECONDS:g}")
    with serving(folder, *options) as served:
        fates, signalled, exited, code = asyncio.run(_term_under_load(served, clients, seed))
    checks, wrong = _of_fates(fates, signalled, exited)
    checks += [
        at_most("SIGTERM: from the signal to the exit", exited - signalled, _DRAIN_SECONDS, " s"),
        Check("SIGTERM: exit code", str(code), "0", code == 0),
        none_of("SIGTERM: tracebacks and errors in the log", len(served.faults())),
    ]
    return checks, wrong + served.faults()


def _of_fates(
    fates: Sequence[Fate], signalled: float, exited: float
) -> tuple[list[Check], list[str]]:
    """Each request was answered, or told that the server drains, or met a closed port at the end.

    One that was on its way when the signal came may have been told so too. A connection that the
    system had taken and the server had not is reset when the port closes.
    """
    answered = [one for one in fates if one.status == 200 and not one.why]
    turned_away = [one for one in fates if one.status == 503 and not one.why]
    refusals = [one for one in fates if one.status == 0 and "ConnectError" in one.why]
    resets = [one for one in fates if one.status == 0 and one.begun > signalled]
    resets = [one for one in resets if one not in refusals]  # not accepted when the port closed
    fine = {id(one) for one in (*answered, *turned_away, *refusals, *resets)}
    wrong = [
        f"SIGTERM: a request begun {one.begun - signalled:+.2f} s and ended"
        f" {one.ended - signalled:+.2f} s from the signal: {one.status} {one.why}"
        for one in fates
        if id(one) not in fine
    ]
    closed = min((one.ended for one in (*refusals, *resets)), default=exited)
    under_way = [one for one in answered if one.begun < signalled < one.ended]
    return [
        at_least("SIGTERM: under way at the signal, and answered", len(under_way), 1),
        none_of("SIGTERM: admitted and not answered", len(wrong)),
        at_least("SIGTERM: begun after it, refused with 503", len(turned_away), 1),
        figure("SIGTERM: refused or reset after the port closed", len(refusals + resets)),
        at_most("SIGTERM: from the closed port to the exit", exited - closed, 10, " s"),
    ], wrong


async def _term_under_load(
    served: Served, clients: int, seed: int
) -> tuple[list[Fate], float, float, int]:
    """What became of every request, when the signal was sent, when the process ended, its code."""
    assert served.process is not None
    async with _load(served, clients, Random(seed)) as fates:
        await asyncio.sleep(_LOAD_SECONDS)
        signalled = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        code, exited = await asyncio.to_thread(_end, served.process)
    return fates, signalled, exited, code


def _end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit code, and when it ended."""
    return process.wait(_DRAIN_SECONDS + 30), time.monotonic()


@asynccontextmanager
async def _load(served: Served, clients: int, random: Random) -> AsyncIterator[list[Fate]]:
    """So many clients ask, each time over a fresh connection, while the context lasts."""
    fates: list[Fate] = []
    ended = asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)

    async def client(random: Random) -> None:
        while not ended.is_set():
            fates.append(await _asked(http, random.choice(_TOKENS), random.random() < 0.5))
            await asyncio.sleep(0.1 if fates[-1].status else 0.3)

    async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=120) as http:
        asking = [asyncio.create_task(client(Random(random.random()))) for _ in range(clients)]
        try:
            yield fates
        finally:
            ended.set()
            await asyncio.gather(*asking)


async def _asked(http: httpx.AsyncClient, tokens: int, stream: bool) -> Fate:
    body = {"audio": {"data": _CLIP}, "question": "What is this?", "max_tokens": tokens}
    begun = time.monotonic()
    try:
        response = await http.post(
            "/v1/audio-chat", json={**body, "stream": stream}, headers=bearer()
        )
    except httpx.TransportError as error:
        return Fate(begun, time.monotonic(), 0, repr(error))
    return Fate(begun, time.monotonic(), response.status_code, _fault(response, stream))


def _fault(response: httpx.Response, stream: bool) -> str:
    """What is wrong about an answer or a refusal; empty if nothing is."""
    if response.status_code == 503:
        if '"code":"draining"' not in response.text:
            return response.text[:300]
        missing = "" if "retry-after" in response.headers else "no Retry-After"
        return refused(503, response.content, (503,)) or missing
    if response.status_code != 200:
        return response.text[:300]
    if stream:
        ends = response.text.rstrip().endswith("data: [DONE]") and '"error"' not in response.text
        return "" if ends else f"a stream that ends with {response.text[-300:]}"
    return "" if "answer" in response.json() else response.text[:300]


# ---- SIGKILL


def _killed(
    folder: Path, model: Sequence[str], clients: int, kills: int, seed: int
) -> tuple[list[Check], list[str]]:
    failures: list[str] = []
    restarts: list[float] = []
    databases = 0
    random = Random(seed)
    with serving(folder, *model) as served:
        for _ in range(kills):
            asyncio.run(_kill_under_load(served, clients, random))
            failures += [f"after SIGKILL: {fault}" for fault in half_written(folder)]
            databases += len(list(folder.rglob("*.sqlite")))
            started = time.monotonic()
            served.start()
            restarts.append(time.monotonic() - started)
            if why := asyncio.run(_answers(served)):
                failures.append(f"after SIGKILL and restart: {why}")
    checks = [
        at_least("SIGKILL: times killed under load and restarted", len(restarts), kills),
        at_least("SIGKILL: listening logs checked for their integrity", databases, kills),
        none_of("SIGKILL: half-written files, damaged databases, no answer", len(failures)),
        figure("SIGKILL: longest restart until ready", max(restarts), " s"),
    ]
    return checks, failures


async def _kill_under_load(served: Served, clients: int, random: Random) -> None:
    """Load until something was answered and for a while more, then SIGKILL."""
    assert served.process is not None
    deadline = time.monotonic() + 60
    async with _load(served, clients, random) as fates:
        while time.monotonic() < deadline and not any(one.status == 200 for one in fates):
            await asyncio.sleep(0.05)
        await asyncio.sleep(random.uniform(0, _LOAD_SECONDS))
        served.process.kill()
        await asyncio.to_thread(served.process.wait)
    assert any(one.status == 200 for one in fates), fates[:3]


async def _answers(served: Served) -> str:
    """What is wrong about the answer to one request; empty if nothing is."""
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
        fate = await _asked(http, 4, False)
    return "" if fate.status == 200 and not fate.why else f"{fate.status} {fate.why}"


def half_written(folder: Path) -> list[str]:
    """Files that a server left incomplete: each with what is wrong about it."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "log" and (fault := _damage(path)):
            found.append(f"{path.relative_to(folder)}: {fault}")
    return found


def _damage(path: Path) -> str:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, "numpy") as tensors:
                list(tensors.keys())
        elif path.suffix in (".sqlite", ".sqlite3", ".db"):
            return _integrity(path)
    except (OSError, ValueError, SafetensorError, sqlite3.Error) as error:
        return repr(error)
    return "a temporary file is left" if path.suffix in (".tmp", ".part") else ""


def _integrity(path: Path) -> str:
    with sqlite3.connect(path) as database:
        (found,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    return "" if found == "ok" else str(found)
