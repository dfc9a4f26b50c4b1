"""One deployment's life: loading, ready, draining; and what its requests share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from server.audio.decode_pool import DecodeLimits, DecodePool
from server.audio.policy import AudioPolicy
from server.engine.engine import Engine
from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime, steering_refusal
from server.errors import Draining, EngineStopped, Loading, LoadingCancelled
from server.listening_log.records import ListeningLog, MemoryLog, Record
from server.listening_log.writer import DatabaseLog
from server.loading import LOADING_THREAD, Progress, _first_question, load_runtime
from server.settings import Settings
from server.telemetry import metrics as counters
from server.telemetry.merged_metrics import Samples
from server.telemetry.metrics import Metrics, make_metrics
from server.telemetry.tracing import RequestTracer
from server.threads import run_in_daemon_thread
from steering.audio.limits import AudioLimits
from steering.errors import AllEarsError
from steering.kv_slots import KVSlots

log = logging.getLogger("allears")

_ENDING_SECONDS = 5.0  # for the torch thread's last step
_TRACES_SECONDS = 3.0  # what a collector that is away may delay the end by
_WRITING_SECONDS = 2.0  # for the last answers to be written


@dataclass(slots=True, eq=False)
class Deployment:
    """What requests share. Only the event loop's thread touches it."""

    settings: Settings
    metrics: Metrics = field(default_factory=make_metrics)
    records: ListeningLog = field(default_factory=MemoryLog)
    tracer: RequestTracer | None = None
    state: Literal["loading", "ready", "draining"] = "loading"
    engine: Engine | None = None
    loaded_at: int = 0  # seconds since 1970
    in_flight: int = 0  # HTTP requests, those to probes left out
    progress: Progress = field(default_factory=Progress)
    crowded: Callable[[], bool] = lambda: False  # whether too many connections are open
    failure: Exception | None = None  # why loading failed, or why it answers nothing any more
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    replicas: Callable[[], Awaitable[list[Samples]]] | None = None  # of a front: their metrics
    stop_replicas: Callable[[], Awaitable[None]] | None = None  # of a front: end what they run
    decode_pool: DecodePool = field(init=False)

    def __post_init__(self) -> None:
        settings, decodes = self.settings, self.metrics.decodes
        bounds = DecodeLimits(
            workers=settings.decode_workers,
            timeout_seconds=settings.decode_timeout_seconds,
            waiting_requests=settings.queue_limit_requests + settings.max_batch_rows,
            waiting_seconds=settings.queue_timeout_seconds,
        )
        self.decode_pool = DecodePool(bounds, lambda result: decodes.labels(result).inc())

    @property
    def limits(self) -> AudioLimits:
        """How much audio one clip may hold here."""
        return AudioLimits(
            max_bytes=self.settings.max_audio_bytes, max_seconds=self.settings.max_audio_seconds
        )

    def audio_policy(self, engine: Engine) -> AudioPolicy:
        """What this deployment hears."""
        model, settings = engine.runtime.model, self.settings
        return AudioPolicy(
            rate_hz=model.rate_hz,
            limits=self.limits,
            max_clips=settings.max_audio_clips,
            window_seconds=model.max_clip_seconds,
            max_long_seconds=settings.max_long_audio_seconds,
            long_audio=settings.long_audio,
        )

    def ready(self) -> Engine:
        """The engine; raises Loading, Draining or Stopped, which say when to come back."""
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

    def record_answer(self, question: Question, answer: Answer, created: int) -> None:
        """Record and count an answered question."""
        assert self.engine is not None, "answered by nobody"
        record = _record(question, answer, created, *model_and_profile_names(self.engine.runtime))
        self.records.add(record)
        counters.count_answer(self.metrics, answer, record)

    async def load(self, runtime: Runtime | None) -> None:
        """Ready when this returns, unless it failed, which `failure` and `failed` then say."""
        try:
            self.engine = await self._engine(runtime)
        except LoadingCancelled:
            return
        except Exception as error:
            bug = None if isinstance(error, AllEarsError) else error
            log.error("loading failed: %s", error, exc_info=bug)
            self.failure = error
            self.failed.set()
            return
        self.loaded_at = int(time.time())
        counters.add_engine_gauges(self.metrics, self.engine, _model_info(self.engine.runtime))
        counters.add_listening_gauges(self.metrics, self.engine, self.records)
        if self.state == "loading":
            self.state = "ready"
            log.info("ready: %s; %s", model_name(self.engine.runtime), _memory(self.engine))
            why = steering_refusal(self.engine.runtime)
            if why is not None:
                log.warning("answers stay bare: %s", why)

    async def _engine(self, runtime: Runtime | None) -> Engine:
        """An engine that has answered a question."""
        settings = self.settings
        if runtime is None:
            loaded = run_in_daemon_thread(
                lambda: load_runtime(settings, self.progress.report), LOADING_THREAD
            )
            runtime = await loaded
        engine = Engine(
            runtime,
            queue_limit_requests=settings.queue_limit_requests,
            queue_timeout_seconds=settings.queue_timeout_seconds,
            request_timeout_seconds=settings.request_timeout_seconds,
        )
        await engine.answer(_first_question(runtime))
        await asyncio.to_thread(runtime.slots.warm_up)
        return engine

    async def drain(self, seconds: float) -> bool:
        """Whether all requests ended within `seconds`; from now on no question is admitted."""
        self.state = "draining"
        self.progress.stopping = True
        return await self._empty(seconds)

    async def abort_running(self) -> None:
        """End what still runs with Stopped, and give those answers time to be written."""
        if self.engine is not None:
            self.engine.stop()
        if self.stop_replicas is not None:
            await self.stop_replicas()
        await self._empty(_WRITING_SECONDS)

    async def watch(self) -> None:
        """Wait for the torch thread's end; `failure` and `failed` say if nobody asked for it."""
        engine = self.engine
        if engine is None:
            return
        await run_in_daemon_thread(engine.join, "watching the torch thread")
        if engine.dead:
            self.failure = EngineStopped("the thread that runs the model has ended")
            self.failed.set()

    async def _empty(self, seconds: float) -> bool:
        """Whether no request was left within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return self.in_flight == 0

    async def close(self) -> None:
        """Let all threads and processes end, and the log write what waits, for a while."""
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


def make_deployment(settings: Settings, traces: RequestTracer | None = None) -> Deployment:
    """A deployment whose log is where the settings say; nothing is opened yet."""
    metrics = make_metrics()
    if settings.logs_to_memory:
        return Deployment(settings, metrics, tracer=traces)
    records = DatabaseLog(settings, metrics.log_lost.inc)
    counters.add_log_gauges(metrics, records)
    return Deployment(settings, metrics, records, tracer=traces)


def _memory(engine: Engine) -> str:
    """What the rows of answers take, which is all there at start."""
    slots = engine.runtime.slots
    each = KVSlots.bytes_of(engine.runtime.model, 1, 1)
    total = slots.store.nbytes / 1e6
    return (
        f"keys and values: {slots.rows} rows x {slots.tokens} tokens x {each} bytes, {total:.0f} MB"
    )


def model_name(runtime: Runtime) -> str:
    """What users see of the model's name: of a folder only the last part."""
    return public_name(runtime.model.name)


def model_and_profile_names(runtime: Runtime) -> tuple[str, str]:
    """Of model and profile, as records have them: only records of the same ones compare."""
    profile = runtime.profile
    return model_name(runtime), public_name(profile.name) if profile else "none"


def public_name(name: str) -> str:
    """`demo` and hub ids as they are, the last part of a path."""
    return Path(name).resolve().name if Path(name).is_dir() or name.count("/") > 1 else name


def describe_profile(runtime: Runtime) -> dict[str, Any] | None:
    """Name, model, heads and layers of the profile; None if there is none."""
    found = runtime.profile
    if found is None:
        return None
    pairs = zip(found.heads, found.correlations, strict=True)
    return {
        "name": public_name(found.name),
        "model": public_name(found.model),
        "heads": [{"layer": layer, "head": head, "r": r} for (layer, head), r in pairs],
        "layers": list(found.layers),
        "max_strength": found.max_strength,
        "calibrated_on": found.calibrated_on,
    }


def _model_info(runtime: Runtime) -> dict[str, str]:
    loaded, found = runtime.model, runtime.profile
    return {
        "model": model_name(runtime),
        "revision": loaded.revision or "",
        "fingerprint": loaded.fingerprint,
        "profile": public_name(found.name) if found else "none",
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }


def _record(question: Question, answer: Answer, created: int, model: str, profile: str) -> Record:
    listening, steering, timings = answer.listening, answer.steering, answer.timings
    return Record(
        id=answer.id,
        created=created,
        generated=question.generate,
        score=listening.score,
        percentile=listening.percentile,
        verdict=listening.verdict,
        silence_score=listening.silence_score,
        steered=steering.applied,
        direction=steering.direction if steering.applied else None,
        strength=steering.strength,
        audio_seconds=sum(answer.prompt.heard_seconds),
        answered=time.time(),
        answer_changed=None if answer.unsteered is None else answer.unsteered != answer.text,
        queue_seconds=timings.queue_seconds,
        prefill_seconds=timings.prefill_seconds,
        silence_seconds=timings.silence_seconds,
        decode_seconds=timings.decode_seconds,
        model=model,
        profile=profile,
    )
