"""TODO"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from server.engine.messages import Question
from server.engine.runtime import NO_PROFILE, Runtime
from server.errors import LoadingCancelled
from server.settings import Settings
from steering import profile
from steering.audio.clip import Clip
from steering.calibration import auto
from steering.generation import Sampling
from steering.kv_slots import KVSlots
from steering.model import loading, memory_plan
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.prompt import Message
from steering.self_test import self_test

log = logging.getLogger("allears")

_LOG_SECONDS = 5.0
LOADING_THREAD = "loading"  # the thread's name


@dataclass(slots=True, eq=False)
class Progress:
    """How far loading is. The loading thread writes it, the event loop reads it and may stop it."""

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


def load_runtime(settings: Settings, said: Callable[[str], None]) -> Runtime:
    """Model and profile that the settings name. Raises ModelError, ProfileError, or what `said`
    raises, which hears how far it is.
    """
    loaded = loading.load(
        settings.model,
        revision=settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        adapter=settings.adapter,
        quantize=settings.quantize,
        style=settings.prompt_style,
    )
    self_test(loaded)
    found, unprofiled = find_profile(settings, loaded, said)
    rows, tokens = settings.max_batch_rows, settings.max_context_tokens
    memory_plan.require(
        KVSlots.bytes_of(
            loaded, rows, min(tokens, int(loaded.text_config.max_position_embeddings))
        ),
        memory_plan.free_bytes(loaded.device),
        f"keys and values of {rows} rows of {tokens} tokens",
        "lower ALLEARS_MAX_BATCH_ROWS or ALLEARS_MAX_CONTEXT_TOKENS",
    )
    return Runtime.of(
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
        loaded, settings.cache_folder, items=settings.calibration_items, on_progress=said
    )
    return (None, found.reason) if isinstance(found, auto.NoProfile) else (found, NO_PROFILE)


def _first_question(runtime: Runtime) -> Question:
    """A question about quiet noise, which the model must answer for the server to be ready.

    The clip fills the model's window: so the silence of the longest clips is at hand from the
    start, and memory that is too small for one shows before anybody waits.
    """
    rate_hz = runtime.model.sample_rate_hz
    room_seconds = runtime.slots.tokens // 3 * runtime.model.hop_seconds
    seconds = min(runtime.model.max_clip_seconds, room_seconds)
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate_hz)) * 0.01
    clip = Clip(noise.astype(np.float32), rate_hz, seconds, rate_hz, 1)
    message = Message("user", (clip, "What do you hear?"))
    return Question("start", (message,), steer=True, sampling=Sampling(max_tokens=2))
