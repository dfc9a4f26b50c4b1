"""What GET /listening-score reads: the log, off the event loop and for a bounded time only.

Where the log is away, what this process knows is read instead, and said to be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from server.errors import LogUnavailable, UnknownRecord
from server.listening_log.records import ListeningLog, Record, newest
from server.threads import run_in_daemon_thread

Found = TypeVar("Found")

READ_SECONDS = 3.0
_THREAD = "listening log, read"


async def recent(records: ListeningLog, model: str, profile: str) -> tuple[Sequence[Record], str]:
    """The last records of a model with a profile, and where from: memory, database or away."""
    with suppress(LogUnavailable):
        return await _read(lambda: records.recent(model, profile)), records.kind
    return records.own(), "away"


async def find(records: ListeningLog, request_id: str) -> Record:
    """The record of that id. Raises UnknownRecord, or LogAway where another replica may have it."""
    with suppress(LogUnavailable):
        return await _read(lambda: records.find(request_id))
    try:
        return newest(records.own(), request_id)
    except UnknownRecord:
        raise LogUnavailable(
            "the listening log's database is away, and this process knows no such request"
        ) from None


async def _read(work: Callable[[], Found]) -> Found:
    """What the work gives. Raises LogAway when it takes too long; then it ends by itself."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await run_in_daemon_thread(work, _THREAD)
    except TimeoutError:
        raise LogUnavailable from None
