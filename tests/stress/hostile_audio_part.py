"""Hostile audio: mutated and made files of all formats, each answered or refused as documented."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from tests.stress import hostile_audio
from tests.stress.outcome import Check, Outcome, at_least, at_most, figure, none_of
from tests.stress.server_process import KEY, serving

_LIMIT_SECONDS = 15.0  # of one file, on a machine that does nothing else
_OPTIONS = ("--max-audio-bytes", "10000000")


def run(files: int, seed: int) -> Outcome:
    """So many files to a fresh server of the embedded model."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, serving(Path(name), *_OPTIONS) as served:
        assert served.process is not None
        pid = served.process.pid
        work = hostile_audio.run(
            served.url, files, seed, key=KEY, pid=pid, limit_seconds=_LIMIT_SECONDS
        )
        found = asyncio.run(work)
        faults, alive = served.faults(), served.process.poll() is None
    by_status: dict[int, int] = {}
    for (_, status), count in found.answers.items():
        by_status[status] = by_status.get(status, 0) + count
    checks = [
        at_least("files sent", found.sent, files),
        *(figure(f"answered with {status}", by_status[status]) for status in sorted(by_status)),
        none_of("5xx, no answer, undocumented status, another shape", len(found.failures)),
        at_most("slowest answer", found.slowest_seconds, _LIMIT_SECONDS, " s"),
        at_most("memory at the end over memory after 1,000 files", 1 + found.growth, 1.05, "x"),
        Check("the server's process", "alive" if alive else "ended", "alive", alive),
        none_of("tracebacks and errors in the server's log", len(faults)),
    ]
    failures = tuple(f"{one} (seed {seed})" for one in found.failures)
    return Outcome("audio", time.monotonic() - started, seed, tuple(checks), (*failures, *faults))
