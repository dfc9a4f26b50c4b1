"""The engine: one torch thread, a bounded queue before it, asyncio on the other side.

What it does not know: HTTP, JSON, audio files. Questions go in one at a time; their pieces of
text and their Answer come out as an async iterator, which may be closed at any time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from server.listen import Answer, Heeded, Listener, Question, listen, with_queue_time


class Busy(Exception):
    """The engine can't take the question now; `retry_after_seconds` says when to try again."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Busy):
    """As many questions wait as are allowed to."""


class QueueTimeout(Busy):
    """The question waited longer than allowed."""


class Engine:
    """Answers questions one after another in its own thread."""

    def __init__(
        self, listener: Listener, *, queue_limit_requests: int, queue_timeout_seconds: float
    ) -> None:
        self.listener = listener
        self.queue_limit_requests = queue_limit_requests
        self.queue_timeout_seconds = queue_timeout_seconds
        self.waiting = 0  # questions admitted that have not begun
        self.running = 0
        self._turn = asyncio.Lock()  # asyncio wakes those who wait in the order they came
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch")

    async def run(self, question: Question) -> AsyncGenerator[Heeded | str | Answer, None]:
        """Heeded, pieces of the answer's text, then the Answer.

        Raises QueueFull at once, QueueTimeout after the longest wait, and what `listen` raises.
        Closing the iterator stops the work before its next token.
        """
        if self.waiting >= self.queue_limit_requests:
            raise QueueFull(
                f"{self.waiting} requests wait already, as many as this server lets wait"
            )
        asked = time.perf_counter()
        self.waiting += 1
        try:
            async with asyncio.timeout(self.queue_timeout_seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise QueueTimeout(
                f"the request waited {self.queue_timeout_seconds:g} s for its turn"
            ) from None
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            waited = time.perf_counter() - asked
            async with aclosing(self._events(question)) as events:
                async for event in events:
                    yield with_queue_time(event, waited) if isinstance(event, Answer) else event
        finally:
            self.running -= 1
            self._turn.release()

    async def answer(self, question: Question) -> Answer:
        """The whole Answer; raises what `run` raises."""
        async with aclosing(self.run(question)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise AssertionError("a question ended without its Answer")

    async def _events(self, question: Question) -> AsyncGenerator[Heeded | str | Answer, None]:
        """What `listen` yields in the torch thread, handed over to the event loop."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Heeded | str | Answer | None] = asyncio.Queue()
        stop = threading.Event()

        def work() -> None:
            try:
                for event in listen(self.listener, question):
                    loop.call_soon_threadsafe(events.put_nowait, event)
                    if stop.is_set():
                        return
            finally:
                loop.call_soon_threadsafe(events.put_nowait, None)

        done = loop.run_in_executor(self._thread, work)
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            stop.set()
            await asyncio.shield(done)  # raises what `listen` raised

    def close(self) -> None:
        """Wait for the torch thread to end."""
        self._thread.shutdown(wait=True)
