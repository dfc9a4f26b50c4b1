"""The log as GET /listening-score reads it: off the event loop, and for a bounded time only.

While the database is unavailable, the records of this process are read instead, and labelled so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from server.errors import LogUnavailable, UnknownRecord
from server.listening_log.records import ListeningLog, Record, newest_with_id
from server.threads import run_in_daemon_thread

Result = TypeVar("Result")

READ_SECONDS = 3.0
_THREAD = "listening log, read"


async def recent(records: ListeningLog, model: str, profile: str) -> tuple[Sequence[Record], str]:
    """The last records of a model with a profile, and their source: memory, database or away."""
    with suppress(LogUnavailable):
        return await _read(lambda: records.recent(model, profile)), records.kind
    return records.of_this_process(), "away"


async def find(records: ListeningLog, request_id: str) -> Record:
    """The record of that id; UnknownRecord, or LogUnavailable if another replica may have it."""
    with suppress(LogUnavailable):
        return await _read(lambda: records.find(request_id))
    try:
        return newest_with_id(records.of_this_process(), request_id)
    except UnknownRecord:
        raise LogUnavailable(
            "the listening log's database is away, and this process knows no such request"
        ) from None


async def _read(work: Callable[[], Result]) -> Result:
    """The result of the work; LogUnavailable if it takes too long, and then it ends by itself."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await run_in_daemon_thread(work, _THREAD)
    except TimeoutError:
        raise LogUnavailable from None
