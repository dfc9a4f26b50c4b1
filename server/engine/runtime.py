"""The runtime that all questions of a deployment share: model, profile, silence cache, slots."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from steering.decision import refusal
from steering.kv_slots import KVSlots
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.silence import SilenceCache

RECORDED_STEPS = "recorded_steps"  # decode steps as CUDA graphs
FEATURES = (RECORDED_STEPS,)  # that can be switched off for a slower way
NO_AUDIO = "no audio"  # why a conversation without clips is not steered
NO_PROFILE = "this deployment has no listening profile (--profile none)"


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """A model, its profile, and what its questions share: the silence cache and KV slots."""

    model: AudioModel
    profile: Profile | None
    silence_cache: SilenceCache
    slots: KVSlots
    no_profile_reason: str = NO_PROFILE  # why there is no profile, where there is none

    @classmethod
    def of(
        cls,
        model: AudioModel,
        profile: Profile | None,
        *,
        silence_cache_bytes: int = 1_000_000_000,
        rows: int = 16,
        tokens: int = 2048,
        no_profile_reason: str = NO_PROFILE,
    ) -> Runtime:
        """A runtime for `rows` answers at once, prompt and answer at most `tokens` together."""
        tokens = min(tokens, int(model.text_config.max_position_embeddings))
        slots = KVSlots(model, rows, tokens, profile.intervention if profile else None)
        return cls(model, profile, SilenceCache(silence_cache_bytes), slots, no_profile_reason)

    @property
    def switched_off(self) -> dict[str, str]:
        """Features found wrong, which are done in a slower and right way, each with its fault."""
        faults = {RECORDED_STEPS: self.slots.why_not_recorded}
        return {feature: fault for feature, fault in faults.items() if fault}

    @property
    def window_seconds(self) -> float:
        """The longest clip heard as one: the model's window, or what a row without text holds."""
        return min(self.model.max_clip_seconds, self.slots.tokens * self.model.hop_seconds)

    def make_room(self) -> None:
        """Free the silence cache, and give its memory back to the device."""
        self.silence_cache.clear()
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def steering_refusal(runtime: Runtime) -> str | None:
    """Why this deployment steers no answer, in plain words; None where it may steer."""
    return runtime.no_profile_reason if runtime.profile is None else refusal(runtime.profile)
