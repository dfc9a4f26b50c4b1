"""Mutated and made audio files sent to a real server: each is answered, or refused as documented.
`run` gives what was found; `Found.table` words it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from tests.stress.mutations import files

_QUESTION = "What is it?"
_ALLOWED = {200: None, 400: "invalid_audio", 413: "audio_too_large", 422: "invalid_request"}
_KEYS = {"message", "type", "param", "code"}
_INSIDE = re.compile(
    r"0x[0-9a-f]{4,}|libsndfile|mpg123|soundfile|BytesIO|object at|Error in|Traceback|\.py\b|/usr/"
)
_WARM_UP_FILES = 1_000  # before memory is looked at: what is loaded and cached once
_KEPT_FAILURES = 50


@dataclass(slots=True)
class Found:
    """What came back of all files."""

    seed: int
    sent: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)  # by format and status
    failures: list[str] = field(default_factory=list)  # the name and number of a file, and why
    slowest_seconds: float = 0.0
    slowest: str = ""
    rss_bytes: list[int] = field(default_factory=list)  # after the warm-up, then now and then
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Of the server's memory from the warm-up to the end, as a share; 0 if not looked at."""
        return self.rss_bytes[-1] / self.rss_bytes[0] - 1 if self.rss_bytes else 0.0

    def fail(self, what: str) -> None:
        """Keep a failure, up to as many as anybody reads."""
        if len(self.failures) < _KEPT_FAILURES:
            self.failures.append(what)

    def table(self) -> str:
        """Markdown: how often each format got which status."""
        statuses = sorted({status for _, status in self.answers})
        formats = sorted({name for name, _ in self.answers})
        lines = ["| format | " + " | ".join(map(str, statuses)) + " |"]
        lines += ["|---|" + "---:|" * len(statuses)]
        for name in [*formats, "all"]:
            found = [self._count(name, status) for status in statuses]
            lines.append(f"| {name} | " + " | ".join(f"{one:,}" for one in found) + " |")
        memory = [f"{one / 1e6:.0f}" for one in (self.rss_bytes[:1] + self.rss_bytes[-1:])]
        lines += [
            "",
            f"{self.sent:,} files (seed {self.seed}) in {self.seconds:.0f} s,"
            f" {len(self.failures)} failures; slowest {self.slowest_seconds:.2f} s"
            f" ({self.slowest}); memory {' -> '.join(memory)} MB ({self.growth:+.1%})",
        ]
        return "\n".join(lines)

    def _count(self, name: str, status: int) -> int:
        if name == "all":
            return sum(n for (_, found), n in self.answers.items() if found == status)
        return self.answers[name, status]


async def run(
    url: str,
    count: int,
    seed: int,
    *,
    concurrent: int = 8,
    key: str | None = None,
    pid: int | None = None,
    limit_seconds: float = 15.0,
) -> Found:
    """What `count` files got from the server at `url`, as forms and as JSON by turns.

    `pid` is the server's process, whose memory is looked at together with its children's.
    """
    found, started = Found(seed), time.perf_counter()
    todo = enumerate(files(seed, count))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=limit_seconds) as http:
        warm_up = min(_WARM_UP_FILES, count // 2)
        senders = [_send(http, todo, found, pid, warm_up, limit_seconds) for _ in range(concurrent)]
        await asyncio.gather(*senders)
    if pid is not None:
        found.rss_bytes.append(_rss_bytes(pid))
    found.seconds = time.perf_counter() - started
    return found


async def _send(
    http: httpx.AsyncClient,
    todo: Iterator[tuple[int, tuple[str, bytes]]],
    found: Found,
    pid: int | None,
    warm_up: int,
    limit_seconds: float,
) -> None:
    """Send files until none is left."""
    for number, (name, data) in todo:
        named, begun = f"{name} (file {number})", time.perf_counter()
        try:
            response = await http.post("/v1/listening-score", **_body(number, data))
        except httpx.HTTPError as error:
            found.fail(f"{named}: no answer: {error!r}")
            continue
        finally:
            found.sent += 1
            if pid is not None and found.sent >= warm_up and found.sent % 500 == warm_up % 500:
                found.rss_bytes.append(_rss_bytes(pid))
        seconds = time.perf_counter() - begun
        if seconds > found.slowest_seconds:
            found.slowest_seconds, found.slowest = seconds, named
        found.answers["/".join(name.split("/")[:2]), response.status_code] += 1
        wrong = fault(response)
        if seconds > limit_seconds:
            wrong = f"took {seconds:.1f} s of {limit_seconds:g}"
        if wrong:
            found.fail(f"{named}: {wrong}")


def _body(number: int, data: bytes) -> dict[str, Any]:
    if number % 2:
        return {
            "files": {"audio": ("sound.wav", data, "audio/wav")},
            "data": {"question": _QUESTION},
        }
    audio = {"data": base64.b64encode(data).decode(), "format": ("wav", "mp3")[number // 2 % 2]}
    return {"json": {"audio": audio, "question": _QUESTION}}


def fault(response: httpx.Response) -> str:
    """What is wrong with an answer; empty if nothing is."""
    status, text = response.status_code, response.text[:300]
    if status not in _ALLOWED:
        return f"status {status}: {text}"
    try:
        body = response.json()
        if status == 200:
            return "" if body["audio"] and "warnings" in body else f"not a report: {text}"
        error = body["error"]
        if set(body) != {"error"} or set(error) != _KEYS or error["code"] != _ALLOWED[status]:
            return f"not the contract's error for {status}: {text}"
    except (ValueError, KeyError, TypeError):
        return f"not the contract's body for {status}: {text}"
    inside = _INSIDE.search(error["message"])
    return f"says {inside[0]!r} of its inside: {text}" if inside else ""


def _rss_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    own = psutil.Process(pid)
    return sum(one.memory_info().rss for one in [own, *own.children(recursive=True)])
