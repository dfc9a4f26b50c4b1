"""Hostile audio: mutated and made files of all formats, each answered or refused as documented."""

from __future__ import annotations

import asyncio
import base64
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.stress.mutations import files
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.server_process import KEY, serving

_QUESTION = "What is it?"
_ALLOWED = {
    200: None,
    400: "invalid_audio",
    413: "audio_too_large",
    415: "unsupported_audio",
    422: "invalid_request",
}
_ERROR_KEYS = {"message", "type", "param", "code"}
_INTERNALS = re.compile(
    r"0x[0-9a-f]{4,}|libsndfile|mpg123|libav|soundfile|BytesIO|object at|Error in|Traceback|\.py\b"
    r"|/usr/"
)
_WARM_UP_FILES = 1_000  # load and fill the caches, before memory is measured
_KEPT_FAILURES = 50
_LIMIT_SECONDS = 15.0  # of one file, on a machine that does nothing else
_OPTIONS = ("--max-audio-bytes", "10000000")


@dataclass(slots=True)
class AudioResults:
    """The answers to all files."""

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
        """Growth of the server's memory after the warm-up, as a share; 0 if not measured."""
        return self.rss_bytes[-1] / self.rss_bytes[0] - 1 if self.rss_bytes else 0.0

    def fail(self, failure: str) -> None:
        """Keep a failure, up to as many as anybody reads."""
        if len(self.failures) < _KEPT_FAILURES:
            self.failures.append(failure)

    def table(self) -> str:
        """Markdown: how often each format got which status."""
        statuses = sorted({status for _, status in self.answers})
        formats = sorted({name for name, _ in self.answers})
        lines = ["| format | " + " | ".join(map(str, statuses)) + " |"]
        lines += ["|---|" + "---:|" * len(statuses)]
        for name in [*formats, "all"]:
            counts = [self._count(name, status) for status in statuses]
            lines.append(f"| {name} | " + " | ".join(f"{count:,}" for count in counts) + " |")
        memory = [f"{size / 1e6:.0f}" for size in (self.rss_bytes[:1] + self.rss_bytes[-1:])]
        lines += [
            "",
            f"{self.sent:,} files (seed {self.seed}) in {self.seconds:.0f} s,"
            f" {len(self.failures)} failures; slowest {self.slowest_seconds:.2f} s"
            f" ({self.slowest}); memory {' -> '.join(memory)} MB ({self.growth:+.1%})",
        ]
        return "\n".join(lines)

    def _count(self, name: str, status: int) -> int:
        if name == "all":
            return sum(n for (_, answered), n in self.answers.items() if answered == status)
        return self.answers[name, status]


def run(files: int, seed: int) -> Outcome:
    """So many files to a fresh server of the embedded model."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, serving(Path(name), *_OPTIONS) as served:
        assert served.process is not None
        pid = served.process.pid
        sending = send_files(
            served.url, files, seed, key=KEY, pid=pid, limit_seconds=_LIMIT_SECONDS
        )
        results = asyncio.run(sending)
        faults, alive = served.faults(), served.process.poll() is None
    by_status: Counter[int] = Counter()
    for (_, status), count in results.answers.items():
        by_status[status] += count
    checks = [
        at_least("files sent", results.sent, files),
        *(figure(f"answered with {status}", by_status[status]) for status in sorted(by_status)),
        none_of("5xx, no answer, undocumented status, another shape", len(results.failures)),
        at_most("slowest answer", results.slowest_seconds, _LIMIT_SECONDS, " s"),
        at_most("memory at the end over memory after 1,000 files", 1 + results.growth, 1.05, "x"),
        Check("the server's process", "alive" if alive else "ended", "alive", alive),
        none_of("tracebacks and errors in the server's log", len(faults)),
    ]
    failures = tuple(f"{failure} (seed {seed})" for failure in results.failures)
    return Outcome("audio", time.monotonic() - started, seed, tuple(checks), (*failures, *faults))


async def send_files(
    url: str,
    count: int,
    seed: int,
    *,
    concurrent: int = 8,
    key: str | None = None,
    pid: int | None = None,
    limit_seconds: float = 15.0,
) -> AudioResults:
    """The answers of the server at `url` to `count` files, as forms and as JSON by turns.

    `pid` is the server's process, whose memory is measured together with its children's.
    """
    results, started = AudioResults(seed), time.perf_counter()
    remaining = enumerate(files(seed, count))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=limit_seconds) as http:
        warm_up = min(_WARM_UP_FILES, count // 2)
        senders = [
            _send(http, remaining, results, pid, warm_up, limit_seconds) for _ in range(concurrent)
        ]
        await asyncio.gather(*senders)
    if pid is not None:
        results.rss_bytes.append(_rss_bytes(pid))
    results.seconds = time.perf_counter() - started
    return results


async def _send(
    http: httpx.AsyncClient,
    remaining: Iterator[tuple[int, tuple[str, bytes]]],
    results: AudioResults,
    pid: int | None,
    warm_up: int,
    limit_seconds: float,
) -> None:
    """Send files until none is left."""
    for number, (name, data) in remaining:
        named, begun = f"{name} (file {number})", time.perf_counter()
        try:
            response = await http.post("/v1/listening-score", **_body(number, data))
        except httpx.HTTPError as error:
            results.fail(f"{named}: no answer: {error!r}")
            continue
        finally:
            results.sent += 1
            if pid is not None and results.sent >= warm_up and results.sent % 500 == warm_up % 500:
                results.rss_bytes.append(_rss_bytes(pid))
        seconds = time.perf_counter() - begun
        if seconds > results.slowest_seconds:
            results.slowest_seconds, results.slowest = seconds, named
        results.answers["/".join(name.split("/")[:2]), response.status_code] += 1
        problem = fault(response)
        if seconds > limit_seconds:
            problem = f"took {seconds:.1f} s of {limit_seconds:g}"
        if problem:
            results.fail(f"{named}: {problem}")


def _body(number: int, data: bytes) -> dict[str, Any]:
    fields = {"question": _QUESTION, "long_audio": ("cut", "refuse")[number // 4 % 2]}
    if number % 2:
        return {"files": {"audio": ("sound.wav", data, "audio/wav")}, "data": fields}
    audio = {"data": base64.b64encode(data).decode(), "format": ("wav", "mp3")[number // 2 % 2]}
    return {"json": {"audio": audio, **fields}}


def fault(response: httpx.Response) -> str:
    """The fault of an answer; empty if there is none."""
    status, text = response.status_code, response.text[:300]
    if status not in _ALLOWED:
        return f"status {status}: {text}"
    try:
        body = response.json()
        if status == 200:
            return "" if body["audio"] and "warnings" in body else f"not a report: {text}"
        error = body["error"]
        if set(body) != {"error"} or set(error) != _ERROR_KEYS or error["code"] != _ALLOWED[status]:
            return f"not the contract's error for {status}: {text}"
    except (ValueError, KeyError, TypeError):
        return f"not the contract's body for {status}: {text}"
    internals = _INTERNALS.search(error["message"])
    return f"says {internals[0]!r} of its inside: {text}" if internals else ""


def _rss_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    own = psutil.Process(pid)
    return sum(process.memory_info().rss for process in [own, *own.children(recursive=True)])
