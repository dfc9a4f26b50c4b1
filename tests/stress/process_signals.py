"""SIGTERM and SIGKILL under load: admitted requests are answered, files on disk stay whole."""

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

from tests.stress.hostile_clients import refusal_fault
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.server_process import Served, bearer, serving, untrained
from tests.stress.signals_made import sound

_DRAIN_SECONDS = 30.0
_LOAD_SECONDS = 3.0  # before the signal
_TOKENS = (4, 200)  # of an answer
_CLIP = base64.b64encode(sound(0)).decode()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request, and how it ended."""

    begun: float
    ended: float
    status: int  # 0: the connection broke or was refused
    fault: str  # empty if there is none


def run(clients: int, kills: int, seed: int) -> Outcome:
    """One server that is told to end under load, one that is killed so many times and restarted."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = untrained(folder / "untrained")
        term, term_failures = _terminate(folder / "term", model, clients, seed)
        kill, kill_failures = _kill(folder / "kill", model, clients, kills, seed)
    failures = tuple(f"{failure} (seed {seed})" for failure in (*term_failures, *kill_failures))
    return Outcome("signals", time.monotonic() - started, seed, (*term, *kill), failures)


# ---- SIGTERM


def _terminate(
    folder: Path, model: Sequence[str], clients: int, seed: int
) -> tuple[list[Check], list[str]]:
    options = (*model, "--drain-seconds", f"{_DRAIN_SECONDS:g}")
    with serving(folder, *options) as served:
        attempts, signalled, exited, code = asyncio.run(_term_under_load(served, clients, seed))
    checks, wrong = _check_attempts(attempts, signalled, exited)
    checks += [
        at_most("SIGTERM: from the signal to the exit", exited - signalled, _DRAIN_SECONDS, " s"),
        Check("SIGTERM: exit code", str(code), "0", code == 0),
        none_of("SIGTERM: tracebacks and errors in the log", len(served.faults())),
    ]
    return checks, wrong + served.faults()


def _check_attempts(
    attempts: Sequence[Attempt], signalled: float, exited: float
) -> tuple[list[Check], list[str]]:
    """Each request was answered, or told that the server drains, or met a closed port at the end.

    One that was on its way when the signal came may have been told so too. A connection that the
    system had taken and the server had not is reset when the port closes.
    """
    answered = [attempt for attempt in attempts if attempt.status == 200 and not attempt.fault]
    turned_away = [attempt for attempt in attempts if attempt.status == 503 and not attempt.fault]
    refusals = [
        attempt for attempt in attempts if attempt.status == 0 and "ConnectError" in attempt.fault
    ]
    resets = [attempt for attempt in attempts if attempt.status == 0 and attempt.begun > signalled]
    resets = [
        attempt for attempt in resets if attempt not in refusals
    ]  # not accepted when the port closed
    expected = {id(attempt) for attempt in (*answered, *turned_away, *refusals, *resets)}
    wrong = [
        f"SIGTERM: a request begun {attempt.begun - signalled:+.2f} s and ended"
        f" {attempt.ended - signalled:+.2f} s from the signal: {attempt.status} {attempt.fault}"
        for attempt in attempts
        if id(attempt) not in expected
    ]
    closed = min((attempt.ended for attempt in (*refusals, *resets)), default=exited)
    under_way = [attempt for attempt in answered if attempt.begun < signalled < attempt.ended]
    return [
        at_least("SIGTERM: under way at the signal, and answered", len(under_way), 1),
        none_of("SIGTERM: admitted and not answered", len(wrong)),
        at_least("SIGTERM: begun after it, refused with 503", len(turned_away), 1),
        figure("SIGTERM: refused or reset after the port closed", len(refusals + resets)),
        at_most("SIGTERM: from the closed port to the exit", exited - closed, 10, " s"),
    ], wrong


async def _term_under_load(
    served: Served, clients: int, seed: int
) -> tuple[list[Attempt], float, float, int]:
    """Every request; the times of the signal and of the process's end; its exit code."""
    assert served.process is not None
    async with _load(served, clients, Random(seed)) as attempts:
        await asyncio.sleep(_LOAD_SECONDS)
        signalled = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        code, exited = await asyncio.to_thread(_end, served.process)
    return attempts, signalled, exited, code


def _end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit code and time of the end."""
    return process.wait(_DRAIN_SECONDS + 30), time.monotonic()


@asynccontextmanager
async def _load(served: Served, clients: int, random: Random) -> AsyncIterator[list[Attempt]]:
    """So many clients ask, each time over a fresh connection, while the context lasts."""
    attempts: list[Attempt] = []
    ended = asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)

    async def client(random: Random) -> None:
        while not ended.is_set():
            attempts.append(await _send(http, random.choice(_TOKENS), random.random() < 0.5))
            await asyncio.sleep(0.1 if attempts[-1].status else 0.3)

    async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=120) as http:
        tasks = [asyncio.create_task(client(Random(random.random()))) for _ in range(clients)]
        try:
            yield attempts
        finally:
            ended.set()
            await asyncio.gather(*tasks)


async def _send(http: httpx.AsyncClient, tokens: int, stream: bool) -> Attempt:
    body = {"audio": {"data": _CLIP}, "question": "What is this?", "max_tokens": tokens}
    begun = time.monotonic()
    try:
        response = await http.post(
            "/v1/audio-chat", json={**body, "stream": stream}, headers=bearer()
        )
    except httpx.TransportError as error:
        return Attempt(begun, time.monotonic(), 0, repr(error))
    return Attempt(begun, time.monotonic(), response.status_code, _fault(response, stream))


def _fault(response: httpx.Response, stream: bool) -> str:
    """The fault of an answer or a refusal; empty if there is none."""
    if response.status_code == 503:
        if '"code":"draining"' not in response.text:
            return response.text[:300]
        missing = "" if "retry-after" in response.headers else "no Retry-After"
        return refusal_fault(503, response.content, (503,)) or missing
    if response.status_code != 200:
        return response.text[:300]
    if stream:
        ends = response.text.rstrip().endswith("data: [DONE]") and '"error"' not in response.text
        return "" if ends else f"a stream that ends with {response.text[-300:]}"
    return "" if "answer" in response.json() else response.text[:300]


# ---- SIGKILL


def _kill(
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
            if fault := asyncio.run(_fault_after_restart(served)):
                failures.append(f"after SIGKILL and restart: {fault}")
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
    async with _load(served, clients, random) as attempts:
        while time.monotonic() < deadline and not any(
            attempt.status == 200 for attempt in attempts
        ):
            await asyncio.sleep(0.05)
        await asyncio.sleep(random.uniform(0, _LOAD_SECONDS))
        served.process.kill()
        await asyncio.to_thread(served.process.wait)
    assert any(attempt.status == 200 for attempt in attempts), attempts[:3]


async def _fault_after_restart(served: Served) -> str:
    """The fault of the answer to one request; empty if there is none."""
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as http:
        attempt = await _send(http, 4, False)
    return (
        "" if attempt.status == 200 and not attempt.fault else f"{attempt.status} {attempt.fault}"
    )


def half_written(folder: Path) -> list[str]:
    """Files that a server left incomplete, each with its damage."""
    damaged = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "log" and (damage := _damage(path)):
            damaged.append(f"{path.relative_to(folder)}: {damage}")
    return damaged


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
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    return "" if integrity == "ok" else str(integrity)
