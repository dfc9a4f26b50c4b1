"""Loading: the model, its profile, an engine that has answered a first question."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from server.engine.engine import Engine
from server.engine.messages import Question
from server.engine.runtime import NO_PROFILE, Runtime, prepare_silence
from server.errors import LoadingCancelled
from server.memory_check import check_memory
from server.settings import Settings
from server.threads import run_in_daemon_thread
from steering import profile as profiles
from steering.audio.clip import Clip
from steering.calibration import auto
from steering.calibration.auto import NoProfile
from steering.decision import SteeringRequest
from steering.generation import Sampling
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.model.merging import merge_and_pack
from steering.profile import Profile
from steering.prompt import Message
from steering.verification.self_test import check_slots, self_test

log = logging.getLogger("allears")

OnProgress = Callable[[str], None]  # an exception from it cancels the work
LOADING_THREAD = "loading"  # the thread's name
_LOG_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Progress:
    """The stage of loading. The loading thread writes it, the event loop reads it and may stop."""

    stage: str = "the model is still loading"
    stopping: bool = False
    _logged_at: float = field(default_factory=time.monotonic)

    def report(self, stage: str) -> None:
        """Keep and, every few seconds, log the stage; LoadingCancelled if the server stops."""
        self.stage = stage
        if self.stopping:
            raise LoadingCancelled
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.info("%s", stage)


async def start_engine(settings: Settings, progress: Progress, runtime: Runtime | None) -> Engine:
    """An engine that has answered a question; loads what the settings name without a runtime."""
    if runtime is None:
        runtime = await run_in_daemon_thread(
            lambda: load_runtime(settings, progress.report), LOADING_THREAD
        )
    prepared = runtime
    await run_in_daemon_thread(lambda: prepare_silence(prepared, progress.report), LOADING_THREAD)
    engine = Engine(
        runtime,
        queue_limit_requests=settings.queue_limit_requests,
        queue_timeout_seconds=settings.queue_timeout_seconds,
        request_timeout_seconds=settings.request_timeout_seconds,
    )
    try:
        await engine.answer(_first_question(runtime))
        await asyncio.to_thread(runtime.slots.warm_up)
    except BaseException:
        engine.stop()  # nobody else knows its thread
        raise
    return engine


def load_runtime(settings: Settings, on_progress: OnProgress) -> Runtime:
    """Model and profile that the settings name, if memory holds them and their rows.

    Raises ModelError, ProfileError, or an exception from `on_progress`.
    """
    log.info("memory: %s", check_memory(settings).fits())
    model = load_from(settings)
    tested = self_test(model)
    merged, packed = merge_and_pack(model)
    profile = find_profile(settings, model, on_progress)  # last: it may take minutes to make
    if isinstance(profile, Profile):
        model = _asked(settings, model, profile)
    log.info("%d products of a step merged into others, %d weights packed", merged, packed)
    runtime = Runtime.of(
        model,
        profile if isinstance(profile, Profile) else None,
        no_profile_reason=profile.reason if isinstance(profile, NoProfile) else NO_PROFILE,
        silence_cache_bytes=settings.silence_cache_bytes,
        rows=settings.max_batch_rows,
        tokens=settings.max_context_tokens,
        chunk_tokens=settings.prefill_chunk_tokens,
        found_wrong=tested.found_wrong,
    )
    check_slots(tested.trial, runtime.slots)
    return runtime


def _asked(settings: Settings, model: AudioModel, profile: Profile) -> AudioModel:
    """The model, asked in the style that the settings name, or else the profile."""
    if settings.prompt_style == "auto":
        return profiles.asked_as_fitted(model, profile)
    if profile.prompt_style not in (None, model.prompt_style.name):
        log.warning(
            "prompt style %s, as was asked for; the profile was fitted with %s: calibrate again",
            *(model.prompt_style.name, profile.prompt_style),
        )
    return model


def load_from(settings: Settings) -> AudioModel:
    """The model that the settings name. Raises ModelError."""
    return load(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        adapter=settings.adapter,
        quantize=settings.quantize,
        style=settings.prompt_style,
        mmap=False,
    )


def find_profile(
    settings: Settings, model: AudioModel, on_progress: OnProgress
) -> Profile | NoProfile:
    """The profile to serve with, made first where the settings want that; or why there is none."""
    if auto.is_wanted(settings.profile, model):
        folder, items = settings.cache_folder, settings.calibration_items
        return auto.find_or_make(model, folder, items=items, on_progress=on_progress)
    return profiles.find(settings.profile, model) or NoProfile(NO_PROFILE)


def _first_question(runtime: Runtime) -> Question:
    """A question about quiet noise, which the model must answer for the server to be ready.

    The clip fills the model's window, so that a lack of memory is found at start.
    """
    rate_hz = runtime.model.sample_rate_hz
    room_seconds = runtime.slots.tokens // 3 * runtime.model.hop_seconds
    seconds = min(runtime.window_seconds, room_seconds)
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate_hz)) * 0.01
    clip = Clip(noise.astype(np.float32), rate_hz, seconds, rate_hz, 1)
    message = Message("user", (clip, "What do you hear?"))
    steering = SteeringRequest(steer=True)
    return Question("start", (message,), steering=steering, sampling=Sampling(max_tokens=2))
