"""One request's mailbox: the torch thread and timers write, the request's coroutine reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from server.engine.events import AnswerEvent


class Mailbox:
    """Events of one answer, and its end. Made on the event loop; written from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left_queue = asyncio.Event()
        self._events: asyncio.Queue[AnswerEvent | None] = asyncio.Queue()  # None is the end
        self._ended = False
        self._error: BaseException | None = None  # with which it ended

    # ---- any thread

    def leave_queue(self) -> None:
        """Say that the wait is over."""
        self._call(self._left_queue.set)

    def put(self, event: AnswerEvent) -> None:
        """Add an event; after the end nobody reads it."""
        self._call(lambda: self._events.put_nowait(event))

    def end(self, error: BaseException | None = None) -> None:
        """End the events, with an error or without; only the first end counts."""
        self._call(lambda: self._end(error))

    def _call(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(work)

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
            self._left_queue.set()
            self._events.put_nowait(None)

    # ---- the event loop's side

    async def wait_in_queue(self) -> None:
        """Wait for the end of the wait, or of everything."""
        await self._left_queue.wait()

    async def next_event(self) -> AnswerEvent | None:
        """The next event, None at the end; raises the error with which the events ended."""
        event = await self._events.get()
        if event is None and self._error is not None:
            raise self._error
        return event
