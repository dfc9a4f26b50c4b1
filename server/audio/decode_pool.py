"""Audio is decoded beside the server, in processes that may hang or die without harm to it.

A slot is a place for one process. Who decodes takes a slot, and it comes back with the process as
it was, or with a fresh one where that hung or died. The other side is decode_process.py.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.audio.decode_worker import CHECK, DecodeJob, DecodeWorker
from server.errors import DecodeFailed, EngineStopped, QueueFull, QueueTimeout, WorkerDied
from steering.audio.clip import Clip
from steering.audio.limits import AudioLimits
from steering.errors import AudioError

log = logging.getLogger("allears")

RESULTS = ("heard", "refused", "timeout", "memory", "crashed", "failed")
PROGRAM = (sys.executable, "-P", "-m", "server.audio.decode_process")
_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # not what a file does to a decoder


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What decoding may take, and how many may wait for it."""

    workers: int
    timeout_seconds: float  # of one clip
    waiting_requests: int
    waiting_seconds: float


class DecodePool:
    """Decodes clips in `bounds.workers` processes. Belongs to one event loop.

    `count` hears how each clip ended, in a word of RESULTS.
    """

    def __init__(
        self, bounds: DecodeLimits, count: Callable[[str], None], program: tuple[str, ...] = PROGRAM
    ) -> None:
        self.bounds = bounds
        self.waiting = 0  # calls that have no slot yet
        self._count = count
        self._slots = [DecodeWorker(program) for _ in range(bounds.workers)]
        self._free: asyncio.Queue[DecodeWorker] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        for slot in self._slots:
            self._free.put_nowait(slot)

    def start(self) -> None:
        """Have the processes started; nobody needs to wait for it."""
        for _ in range(self._free.qsize()):
            self._begin(self._refilled(self._free.get_nowait()))

    async def close(self) -> None:
        """End all processes, and what they are at."""
        self._closed = True
        while self._tasks:  # not cancelled: asyncio hangs if that meets the start of a process
            for slot in self._slots:
                slot.kill()
            await asyncio.wait(self._tasks, timeout=0.05)
        for slot in self._slots:
            await slot.end()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run."""
        found = [slot.process for slot in self._slots]
        return tuple(one.pid for one in found if one is not None and one.returncode is None)

    async def decode(self, data: bytes, *, rate_hz: int, limits: AudioLimits) -> Clip:
        """What `steering.audio.decode.decode` gives and raises.

        AudioError also for bytes that a decoder hangs, dies or runs out of memory over; QueueFull
        and QueueTimeout where too many wait; Stopped where no process can be started.
        """
        slot = await self._taken()
        # Who hangs up leaves it at work: to end it would cost more than to let it go on.
        return await asyncio.shield(self._begin(self._work(slot, DecodeJob(data, rate_hz, limits))))

    async def _taken(self) -> DecodeWorker:
        bounds = self.bounds
        if self.waiting >= bounds.waiting_requests:
            raise QueueFull(f"{self.waiting} requests wait for their audio to be decoded already")
        self.waiting += 1
        try:
            async with asyncio.timeout(bounds.waiting_seconds):
                return await self._free.get()
        except TimeoutError:
            raise QueueTimeout(
                f"the audio waited {bounds.waiting_seconds:g} s for its turn to be decoded, the"
                " longest wait here; try again later"
            ) from None
        finally:
            self.waiting -= 1

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that goes on although nobody waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _work(self, slot: DecodeWorker, job: DecodeJob) -> Clip:
        """The clip, or its error; counted. The slot is free again in the end."""
        result = "failed"
        try:
            clip = await self._answered(slot, job)
            result = "heard"
            return clip
        except AudioError as error:
            result = error.result if isinstance(error, DecodeFailed) else "refused"
            raise
        finally:
            self._count(result)
            if slot.process is None and not self._closed:
                self._begin(self._refilled(slot))
            else:
                self._free.put_nowait(slot)

    async def _answered(self, slot: DecodeWorker, job: DecodeJob) -> Clip:
        """The clip; asked for a second time if somebody else ended the process."""
        size, last = f"{len(job.data):,} bytes", False
        while True:
            try:
                return await slot.ask(job, self.bounds.timeout_seconds)
            except WorkerDied as death:
                log.error("a decoder ended with status %d over %s", death.status, size)
                if last or self._closed or death.status not in _OUTSIDE:
                    message = f"the decoder broke down over the audio's {size}; {CHECK}"
                    raise DecodeFailed("crashed", message) from None
                last = True

    async def _refilled(self, slot: DecodeWorker) -> None:
        """Start the slot's process before the next clip needs it, and let it be taken."""
        try:
            with suppress(EngineStopped):  # which is in the log, unless it was us
                await slot.start()
        finally:
            self._free.put_nowait(slot)
