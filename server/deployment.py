"""One deployment's life: loading, ready, draining; and what its requests share.

Nobody else writes its attributes: methods say what happens.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from server.audio.decode_pool import DecodePool
from server.audio.policy import AudioPolicy
from server.engine.engine import Engine
from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime, steering_refusal
from server.errors import Draining, EngineStopped, Loading, LoadingCancelled
from server.listening_log.records import ListeningLog
from server.loading import Progress, start_engine
from server.settings import Settings
from server.telemetry import metrics as counters
from server.telemetry import served_model
from server.telemetry.answer_record import make_record
from server.telemetry.merged_metrics import Samples
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import RequestTracer
from server.threads import run_in_daemon_thread
from steering.audio.limits import AudioLimits
from steering.errors import AllEarsError

log = logging.getLogger("allears")

_ENDING_SECONDS = 5.0  # for the torch thread's last step
_TRACES_SECONDS = 3.0  # longest delay by a trace collector that is away
_WRITING_SECONDS = 2.0  # for the last answers to be written


@dataclass(frozen=True, slots=True)
class ReplicaAccess:
    """What a router's deployment needs of the replicas behind it."""

    samples: Callable[[], Awaitable[list[Samples]]]  # their metrics
    stop_all: Callable[[], Awaitable[None]]  # ends all answers that run there


@dataclass(slots=True, eq=False)
class Deployment:
    """The state that requests share. Only the event loop's thread touches it."""

    settings: Settings
    metrics: Metrics
    records: ListeningLog
    decode_pool: DecodePool
    tracer: RequestTracer | None = None
    progress: Progress = field(default_factory=Progress)
    crowded: Callable[[], bool] = lambda: False  # whether too many connections are open
    replicas: ReplicaAccess | None = None  # of a router
    state: Literal["loading", "ready", "draining"] = field(default="loading", init=False)
    engine: Engine | None = field(default=None, init=False)  # None: still loading, or a router
    loaded_at: int = field(default=0, init=False)  # seconds since 1970; 0: never was ready
    in_flight: int = field(default=0, init=False)  # HTTP requests, those to probes left out
    failure: Exception | None = field(default=None, init=False)  # why it answers nothing
    failed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    # ---- requests

    def ready(self) -> Engine:
        """The engine; raises Loading, Draining or EngineStopped, which say when to come back."""
        if self.state == "draining":
            raise Draining("the server is shutting down; ask another one, or later", 5)
        if self.engine is not None and not self.engine.alive:
            raise EngineStopped("the model does not run any more; the server is about to end", 5)
        if self.failure is not None:
            raise Loading("the model could not be loaded; the server's log says why", 60)
        if self.engine is None or self.state == "loading":
            stage = self.progress.stage
            raise Loading(f"{stage}; GET /readyz says when it is done", 2)
        return self.engine

    def admit(self) -> Engine:
        """The engine, if another question may come in; raises QueueFull before any is read."""
        engine = self.ready()
        engine.check_room()
        return engine

    @contextmanager
    def request_in_flight(self, *, counted: bool) -> Iterator[None]:
        """A request that a drain waits for, if it is counted."""
        self.in_flight += counted
        try:
            yield
        finally:
            self.in_flight -= counted

    def audio_policy(self, engine: Engine) -> AudioPolicy:
        """Audio that this deployment accepts."""
        runtime, settings = engine.runtime, self.settings
        seconds = settings.max_audio_seconds
        return AudioPolicy(
            rate_hz=runtime.model.sample_rate_hz,
            limits=AudioLimits(
                max_bytes=settings.max_audio_bytes,
                max_seconds=math.inf if seconds is None else seconds,
            ),
            max_clips=settings.max_audio_clips,
            window_seconds=runtime.window_seconds,
            max_long_seconds=settings.max_long_audio_seconds,
            long_audio=settings.long_audio,
        )

    def record_answer(self, question: Question, answer: Answer, created: int) -> None:
        """Record and count an answered question."""
        assert self.engine is not None, "answered by nobody"
        record = make_record(question, answer, created, self.engine.runtime)
        self.records.add(record)
        counters.count_answer(self.metrics, answer, record)

    # ---- from loading to ready, or to failed

    async def load_and_watch(self, runtime: Runtime | None) -> None:
        """Become ready, then fail if the torch thread ends unasked; return when it ended."""
        self.decode_pool.start()
        await self._load(runtime)
        await self._watch_engine()

    async def _load(self, runtime: Runtime | None) -> None:
        """Become ready, or fail."""
        try:
            self.engine = engine = await start_engine(self.settings, self.progress, runtime)
        except LoadingCancelled:
            return
        except Exception as error:
            self.loading_failed(error)
            return
        self.loaded_at = int(time.time())
        runtime = engine.runtime
        counters.add_engine_gauges(self.metrics, engine, served_model.model_info(runtime))
        counters.add_listening_gauges(self.metrics, engine, self.records)
        if self.state == "loading":
            self.state = "ready"
            name, memory = (
                served_model.model_name(runtime),
                served_model.describe_kv_memory(runtime),
            )
            log.info("ready: %s; %s", name, memory)
            refusal = steering_refusal(runtime)
            if refusal is not None:
                log.warning("answers stay bare: %s", refusal)
            if runtime.profile is not None and runtime.profile.warning is not None:
                log.warning("listening scores say little: %s", runtime.profile.warning)

    def loading_failed(self, error: Exception) -> None:
        """Log why loading failed, and answer nothing from now on."""
        bug = None if isinstance(error, AllEarsError) else error
        log.error("loading failed: %s", error, exc_info=bug)
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.failed.set()

    async def _watch_engine(self) -> None:
        """Wait for the torch thread's end, and fail if nobody asked for it."""
        engine = self.engine
        if engine is None:
            return
        await run_in_daemon_thread(engine.join, "watching the torch thread")
        if engine.dead:
            self._fail(EngineStopped("the thread that runs the model has ended"))

    # ---- replicas

    def replicas_are(self, ready: int, wanted: int) -> None:
        """Be ready while one of the router's replicas is, and loading while none is."""
        stage = f"{ready} of {wanted} replicas are ready"
        if stage != self.progress.stage and wanted:
            log.info("%s", stage)
        self.progress.stage = stage
        counters.set_replicas(self.metrics, ready, wanted)
        if self.state != "draining":
            self.state = "ready" if ready else "loading"
            self.loaded_at = self.loaded_at or int(time.time()) * bool(ready)

    def report_loaded_at(self, seconds: int) -> None:
        """Report the router's time of loading: all replicas answer with the same."""
        self.loaded_at = seconds

    async def replica_samples(self) -> list[Samples]:
        """Metrics of the router's replicas, once one was ready."""
        if self.replicas is None or not self.loaded_at:
            return []
        return await self.replicas.samples()

    # ---- the end

    async def drain(self, seconds: float) -> bool:
        """Admit no more questions; True if all requests ended within `seconds`."""
        self.state = "draining"
        self.progress.stopping = True
        return await self._empty(seconds)

    async def abort_running(self) -> None:
        """End running answers with EngineStopped, and give them time to be written."""
        if self.engine is not None:
            self.engine.stop()
        if self.replicas is not None:
            await self.replicas.stop_all()
        await self._empty(_WRITING_SECONDS)

    async def _empty(self, seconds: float) -> bool:
        """Wait for the last request to end; False if one is left after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return self.in_flight == 0

    async def close(self) -> None:
        """Let all threads and processes end, and the log write its last records, for a while."""
        self.state = "draining"
        self.progress.stopping = True
        await self.decode_pool.close()
        if self.engine is not None:
            ended = run_in_daemon_thread(self.engine.close, "waiting for the torch thread")
            with suppress(TimeoutError):
                await asyncio.wait_for(ended, _ENDING_SECONDS)
        await asyncio.to_thread(self.records.close)
        if self.tracer is not None:
            sent = run_in_daemon_thread(self.tracer.close, "sending the last traces")
            try:
                await asyncio.wait_for(sent, _TRACES_SECONDS)
            except TimeoutError:
                log.warning("the last traces were not sent within %g s", _TRACES_SECONDS)
