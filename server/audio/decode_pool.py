"""Audio is decoded beside the server, in processes that may hang or die without harm to it.

A clip acquires a worker, which holds one process. Afterwards the worker is free again, with its
process or with a fresh one where that hung or died. The other side is decode_process.py.
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
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # signals that no file makes a decoder raise


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits of decoding, and of the wait for it."""

    workers: int
    timeout_seconds: float  # of one clip
    waiting_requests: int
    waiting_seconds: float


class DecodePool:
    """Decodes clips in `limits.workers` processes. Belongs to one event loop.

    `count` is called with the result of each clip, a word of RESULTS.
    """

    def __init__(
        self, limits: DecodeLimits, count: Callable[[str], None], program: tuple[str, ...] = PROGRAM
    ) -> None:
        self.limits = limits
        self.waiting = 0  # calls that have no worker yet
        self._count = count
        self._workers = [DecodeWorker(program) for _ in range(limits.workers)]
        self._free: asyncio.Queue[DecodeWorker] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        for worker in self._workers:
            self._free.put_nowait(worker)

    def start(self) -> None:
        """Begin to start the processes; nobody needs to wait for them."""
        for _ in range(self._free.qsize()):
            self._run_in_background(self._restart(self._free.get_nowait()))

    async def close(self) -> None:
        """End all processes and their jobs."""
        self._closed = True
        while self._tasks:  # not cancelled: asyncio hangs if that meets the start of a process
            for worker in self._workers:
                worker.kill()
            await asyncio.wait(self._tasks, timeout=0.05)
        for worker in self._workers:
            await worker.end()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run."""
        processes = [worker.process for worker in self._workers if worker.process is not None]
        return tuple(process.pid for process in processes if process.returncode is None)

    async def decode(self, data: bytes, *, rate_hz: int, limits: AudioLimits) -> Clip:
        """The clip, or the errors, of `steering.audio.decode.decode`.

        Raises AudioError also for bytes over which a decoder hangs, dies or runs out of memory;
        QueueFull and QueueTimeout where too many wait; EngineStopped where no process starts.
        """
        worker = await self._acquire_worker()
        job = DecodeJob(data, rate_hz, limits)
        # A disconnect does not stop the worker: killing it costs more than finishing.
        return await asyncio.shield(self._run_in_background(self._run(worker, job)))

    async def _acquire_worker(self) -> DecodeWorker:
        limits = self.limits
        if self.waiting >= limits.waiting_requests:
            raise QueueFull(f"{self.waiting} requests wait for their audio to be decoded already")
        self.waiting += 1
        try:
            async with asyncio.timeout(limits.waiting_seconds):
                return await self._free.get()
        except TimeoutError:
            raise QueueTimeout(
                f"the audio waited {limits.waiting_seconds:g} s for its turn to be decoded, the"
                " longest wait here; try again later"
            ) from None
        finally:
            self.waiting -= 1

    def _run_in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that goes on although nobody waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _run(self, worker: DecodeWorker, job: DecodeJob) -> Clip:
        """Decode a clip, count the result, and free the worker."""
        result = "failed"
        try:
            clip = await self._decode_with_retry(worker, job)
            result = "heard"
            return clip
        except AudioError as error:
            result = error.result if isinstance(error, DecodeFailed) else "refused"
            raise
        finally:
            self._count(result)
            if worker.process is None and not self._closed:
                self._run_in_background(self._restart(worker))
            else:
                self._free.put_nowait(worker)

    async def _decode_with_retry(self, worker: DecodeWorker, job: DecodeJob) -> Clip:
        """Decode a clip; a second time if somebody else ended the process."""
        size, retried = f"{len(job.data):,} bytes", False
        while True:
            try:
                return await worker.decode(job, self.limits.timeout_seconds)
            except WorkerDied as death:
                log.error("a decoder ended with status %d over %s", death.status, size)
                if retried or self._closed or death.status not in _FROM_OUTSIDE:
                    message = f"the decoder broke down over the audio's {size}; {CHECK}"
                    raise DecodeFailed("crashed", message) from None
                retried = True

    async def _restart(self, worker: DecodeWorker) -> None:
        """Start the worker's process before the next clip needs it, and free the worker."""
        try:
            with suppress(EngineStopped):  # which is in the log, unless it was us
                await worker.start()
        finally:
            self._free.put_nowait(worker)
