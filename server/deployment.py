"""One deployment's life: loading, ready, draining; and what its requests share."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from server import metrics as counters
from server.decoder import Bounds, Decoder
from server.engine import Busy, Engine, Stopped
from server.exchange import Answer, Question
from server.lasting_records import LastingRecords
from server.listener import NO_PROFILE, Listener, refusal
from server.listening_log import ListeningLog, RecentRecords, Record
from server.metrics import Metrics, make_metrics
from server.question import Hearing
from server.settings import Settings
from server.totals import Samples
from server.tracing import Traces
from steering import memory, model, profile
from steering.answer import Sampling
from steering.calibration import auto
from steering.clip import Clip
from steering.decode import AudioLimits
from steering.errors import AllEarsError
from steering.model import AudioModel
from steering.profile import Profile
from steering.prompt import Message
from steering.rehearsal import rehearse
from steering.slots import Slots

log = logging.getLogger("allears")
Result = TypeVar("Result")

LOADING = "loading"  # the thread's name
_LOG_SECONDS = 5.0
_ENDING_SECONDS = 5.0  # for the torch thread's last step
_TRACES_SECONDS = 3.0  # what a collector that is away may delay the end by
_WRITING_SECONDS = 2.0  # for the last answers to be written


class Loading(Busy):
    """The model is not loaded yet."""


class Draining(Busy):
    """The server finishes what it has begun and takes nothing new."""


class ReplicaLost(Busy):
    """The replica that had the request in hand has ended."""


class Crowded(Busy):
    """More connections are open than allowed."""


class GivenUp(Exception):
    """Ends loading in its thread, because the server stops."""


@dataclass(slots=True, eq=False)
class Progress:
    """How far loading is. The loading thread writes it, the event loop reads it and may stop it."""

    stage: str = "the model is still loading"
    stopping: bool = False
    _logged_at: float = field(default_factory=time.monotonic)

    def say(self, stage: str) -> None:
        """Note and, every few seconds, log what is being done; GivenUp if the server stops."""
        self.stage = stage
        if self.stopping:
            raise GivenUp
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.info("%s", stage)


@dataclass(slots=True, eq=False)
class Deployment:
    """What requests share. Only the event loop's thread touches it."""

    settings: Settings
    metrics: Metrics = field(default_factory=make_metrics)
    records: ListeningLog = field(default_factory=RecentRecords)
    traces: Traces | None = None
    state: Literal["loading", "ready", "draining"] = "loading"
    engine: Engine | None = None
    loaded_at: int = 0  # seconds since 1970
    in_flight: int = 0  # HTTP requests, those to probes left out
    progress: Progress = field(default_factory=Progress)
    crowded: Callable[[], bool] = lambda: False  # whether too many connections are open
    failure: Exception | None = None  # why loading failed, or why it answers nothing any more
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    replicas: Callable[[], Awaitable[list[Samples]]] | None = None  # of a front: their metrics
    decoder: Decoder = field(init=False)

    def __post_init__(self) -> None:
        settings, decodes = self.settings, self.metrics.decodes
        bounds = Bounds(
            workers=settings.decode_workers,
            timeout_seconds=settings.decode_timeout_seconds,
            waiting_requests=settings.queue_limit_requests + settings.max_batch_rows,
            waiting_seconds=settings.queue_timeout_seconds,
        )
        self.decoder = Decoder(bounds, lambda result: decodes.labels(result).inc())

    @property
    def limits(self) -> AudioLimits:
        """How much audio one clip may hold here."""
        return AudioLimits(
            max_bytes=self.settings.max_audio_bytes, max_seconds=self.settings.max_audio_seconds
        )

    def hearing(self, engine: Engine) -> Hearing:
        """What this deployment hears."""
        model, settings = engine.listener.model, self.settings
        return Hearing(
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
            raise Stopped("the model does not run any more; the server is about to end", 5)
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

    def note(self, question: Question, answer: Answer, created: int) -> None:
        """Record and count an answered question."""
        assert self.engine is not None, "answered by nobody"
        record = _record(question, answer, created, *names(self.engine.listener))
        self.records.add(record)
        counters.count(self.metrics, answer, record)

    async def load(self, listener: Listener | None) -> None:
        """Ready when this returns, unless it failed, which `failure` and `failed` then say."""
        try:
            self.engine = await self._engine(listener)
        except GivenUp:
            return
        except Exception as error:
            bug = None if isinstance(error, AllEarsError) else error
            log.error("loading failed: %s", error, exc_info=bug)
            self.failure = error
            self.failed.set()
            return
        self.loaded_at = int(time.time())
        counters.watch(self.metrics, self.engine, _model_info(self.engine.listener))
        counters.watch_listening(self.metrics, self.engine, self.records)
        if self.state == "loading":
            self.state = "ready"
            log.info("ready: %s; %s", model_name(self.engine.listener), _memory(self.engine))
            why = refusal(self.engine.listener)
            if why is not None:
                log.warning("answers stay bare: %s", why)

    async def _engine(self, listener: Listener | None) -> Engine:
        """An engine that has answered a question."""
        settings = self.settings
        if listener is None:
            loaded = in_own_thread(lambda: load_listener(settings, self.progress.say), LOADING)
            listener = await loaded
        engine = Engine(
            listener,
            queue_limit_requests=settings.queue_limit_requests,
            queue_timeout_seconds=settings.queue_timeout_seconds,
            request_timeout_seconds=settings.request_timeout_seconds,
        )
        await engine.answer(_first_question(listener))
        await asyncio.to_thread(listener.slots.warm_up)
        return engine

    async def drained(self, seconds: float) -> bool:
        """Whether all requests ended within `seconds`; from now on no question is admitted."""
        self.state = "draining"
        self.progress.stopping = True
        return await self._empty(seconds)

    async def cut_off(self) -> None:
        """End what still runs with Stopped, and give those answers time to be written."""
        if self.engine is not None:
            self.engine.stop()
        await self._empty(_WRITING_SECONDS)

    async def watch(self) -> None:
        """Wait for the torch thread's end; `failure` and `failed` say if nobody asked for it."""
        engine = self.engine
        if engine is None:
            return
        await in_own_thread(engine.join, "watching the torch thread")
        if engine.dead:
            self.failure = Stopped("the thread that runs the model has ended")
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
        await self.decoder.close()
        if self.engine is not None:
            ended = in_own_thread(self.engine.close, "waiting for the torch thread")
            with suppress(TimeoutError):
                await asyncio.wait_for(ended, _ENDING_SECONDS)
        await asyncio.to_thread(self.records.close)
        if self.traces is not None:
            sent = in_own_thread(self.traces.close, "sending the last traces")
            try:
                await asyncio.wait_for(sent, _TRACES_SECONDS)
            except TimeoutError:
                log.warning("the last traces were not sent within %g s", _TRACES_SECONDS)


def make_deployment(settings: Settings, traces: Traces | None = None) -> Deployment:
    """A deployment whose log is where the settings say; nothing is opened yet."""
    metrics = make_metrics()
    if settings.logs_to_memory:
        return Deployment(settings, metrics, traces=traces)
    records = LastingRecords(settings, metrics.log_lost.inc)
    counters.watch_log(metrics, records)
    return Deployment(settings, metrics, records, traces=traces)


async def in_own_thread(work: Callable[[], Result], name: str) -> Result:
    """What some work gives or raises, done in a thread that nobody waits for when the loop ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        done.set_exception(error) if error else done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done


def load_listener(settings: Settings, said: Callable[[str], None]) -> Listener:
    """Model and profile that the settings name. Raises ModelError, ProfileError, or what `said`
    raises, which hears how far it is.
    """
    loaded = model.load(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        adapter=settings.adapter,
        quantize=settings.quantize,
        style=settings.prompt_style,
    )
    rehearse(loaded)
    found, unprofiled = find_profile(settings, loaded, said)
    rows, tokens = settings.max_batch_rows, settings.max_context_tokens
    memory.require(
        Slots.bytes_of(loaded, rows, min(tokens, int(loaded.text_config.max_position_embeddings))),
        memory.free_bytes(loaded.device),
        f"keys and values of {rows} rows of {tokens} tokens",
        "lower ALLEARS_MAX_BATCH_ROWS or ALLEARS_MAX_CONTEXT_TOKENS",
    )
    return Listener.of(
        loaded,
        found,
        unprofiled=unprofiled,
        silence_cache_bytes=settings.silence_cache_bytes,
        rows=settings.max_batch_rows,
        tokens=settings.max_context_tokens,
    )


def find_profile(
    settings: Settings, loaded: AudioModel, said: Callable[[str], None]
) -> tuple[Profile | None, str]:
    """The profile to serve with and, where there is none, why."""
    if not auto.is_wanted(settings.profile, loaded):
        return profile.find(settings.profile, loaded), NO_PROFILE
    found = auto.find_or_make(
        loaded, settings.cache_folder, items=settings.calibration_items, said=said
    )
    return (None, found.reason) if isinstance(found, auto.Unprofiled) else (found, NO_PROFILE)


def _memory(engine: Engine) -> str:
    """What the rows of answers take, which is all there at start."""
    slots = engine.listener.slots
    each = Slots.bytes_of(engine.listener.model, 1, 1)
    total = slots.store.nbytes / 1e6
    return (
        f"keys and values: {slots.rows} rows x {slots.tokens} tokens x {each} bytes, {total:.0f} MB"
    )


def model_name(listener: Listener) -> str:
    """What users see of the model's name: of a folder only the last part."""
    return public_name(listener.model.name)


def names(listener: Listener) -> tuple[str, str]:
    """Of model and profile, as records have them: only records of the same ones compare."""
    profile = listener.profile
    return model_name(listener), public_name(profile.name) if profile else "none"


def public_name(name: str) -> str:
    """`demo` and hub ids as they are, the last part of a path."""
    return Path(name).resolve().name if Path(name).is_dir() or name.count("/") > 1 else name


def describe_profile(listener: Listener) -> dict[str, Any] | None:
    """Name, model, heads and layers of the profile; None if there is none."""
    found = listener.profile
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


def _model_info(listener: Listener) -> dict[str, str]:
    loaded, found = listener.model, listener.profile
    return {
        "model": model_name(listener),
        "revision": loaded.revision or "",
        "fingerprint": loaded.fingerprint,
        "profile": public_name(found.name) if found else "none",
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }


def _first_question(listener: Listener) -> Question:
    """A question about quiet noise, which the model must answer for the server to be ready.

    The clip fills the model's window: so the silence of the longest clips is at hand from the
    start, and memory that is too small for one shows before anybody waits.
    """
    rate_hz = listener.model.rate_hz
    room_seconds = listener.slots.tokens // 3 * listener.model.hop_seconds
    seconds = min(listener.model.max_clip_seconds, room_seconds)
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate_hz)) * 0.01
    clip = Clip(noise.astype(np.float32), rate_hz, seconds, rate_hz, 1)
    message = Message("user", (clip, "What do you hear?"))
    return Question("start", (message,), steer=True, sampling=Sampling(max_tokens=2))


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
