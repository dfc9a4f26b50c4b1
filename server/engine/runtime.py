"""The runtime that all questions of a deployment share: model, profile, silence cache, slots."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from steering.attention.taps import Head
from steering.audio.clip import Clip
from steering.decision import refusal
from steering.kv_slots import KVSlots
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.prompt import build_question
from steering.silence import make_ahead, new_silence_cache
from steering.silence_cache import Ladder, SilenceCache
from steering.verification.self_test import CUT_SILENCE, SLOWER

log = logging.getLogger("allears")

RECORDED_STEPS = "recorded_steps"  # decode steps as CUDA graphs
LIVE_SCORE = "live_score"  # a listening score for every token
# What can be switched off: for a slower way, or the score for none.
FEATURES = (RECORDED_STEPS, LIVE_SCORE, *SLOWER.values())
NO_AUDIO = "no audio"  # why a conversation without clips is not steered
NO_PROFILE = "this deployment has no listening profile (--profile none)"


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """A model, its profile, and what its questions share: the silence cache and KV slots."""

    model: AudioModel
    profile: Profile | None
    silence_cache: SilenceCache
    slots: KVSlots
    chunk_tokens: int = 512  # that enter between two tokens of other answers
    no_profile_reason: str = NO_PROFILE  # why there is no profile, where there is none
    found_wrong: dict[str, str] = field(default_factory=dict)  # features not to use, and why

    @classmethod
    def of(
        cls,
        model: AudioModel,
        profile: Profile | None,
        *,
        silence_cache_bytes: int = 1_000_000_000,
        rows: int = 16,
        tokens: int = 2048,
        chunk_tokens: int = 512,
        no_profile_reason: str = NO_PROFILE,
        found_wrong: Mapping[str, str] | None = None,
    ) -> Runtime:
        """A runtime for `rows` answers at once, prompt and answer at most `tokens` together."""
        tokens = min(tokens, int(model.text_config.max_position_embeddings))
        intervention, heads = (profile.intervention, profile.heads) if profile else (None, ())
        slots = KVSlots(model, rows, tokens, intervention, heads)
        wrong = dict(found_wrong or {})
        known = profile is not None and CUT_SILENCE not in wrong  # that a coarse ladder does
        ladder = profile.ladder if profile and known else Ladder(0)
        silence_cache = new_silence_cache(model, ladder, silence_cache_bytes)
        silence_cache.longest_ahead = longest_frames(model, tokens)
        return cls(model, profile, silence_cache, slots, chunk_tokens, no_profile_reason, wrong)

    def twin_depth(self, *, effect: bool = False) -> int:
        """Number of layers that a silent twin is run through, all where its effect is wanted."""
        return _twin_depth(self.model, self.profile, effect=effect)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The specialist heads, none without a profile."""
        return self.profile.heads if self.profile else ()

    @property
    def pass_limit(self) -> int | None:
        """The most tokens of a pass: a chunk's, or any number while no answer is being written."""
        return self.chunk_tokens if self.slots.active else None

    @property
    def switched_off(self) -> dict[str, str]:
        """Features found wrong, which are done in a slower and right way, each with its fault."""
        slots = self.slots
        faults = {RECORDED_STEPS: slots.why_not_recorded, LIVE_SCORE: slots.why_not_scored}
        faults |= self.found_wrong
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


def _twin_depth(model: AudioModel, profile: Profile | None, *, effect: bool = False) -> int:
    if profile is None or effect or profile.gate.reads == "effect":
        return model.num_layers
    return profile.depth


def steering_refusal(runtime: Runtime) -> str | None:
    """Why this deployment steers no answer, in plain words; None where it may steer."""
    return runtime.no_profile_reason if runtime.profile is None else refusal(runtime.profile)


def longest_frames(model: AudioModel, tokens: int) -> int:
    """Mel frames of the longest clip that the model and a row of so many tokens take."""
    extractor = model.processor.feature_extractor
    seconds = tokens * model.hop_seconds
    return min(model.window_frames, int(seconds * model.sample_rate_hz / extractor.hop_length))


def prepare_silence(runtime: Runtime, on_progress: Callable[[str], None]) -> None:
    """Make all silences behind the template's own words, for as long as the runtime lives.

    An exception from `on_progress` cancels the work.
    """
    model, profile, kept = runtime.model, runtime.profile, runtime.silence_cache
    if profile is None or refusal(profile):
        return
    if not kept.ladder.steps:
        log.warning(
            "silence of every clip's own length is run: profile %s asks for it", profile.name
        )
        return
    rate_hz = model.sample_rate_hz
    clip = Clip(np.zeros(rate_hz, np.float32), rate_hz, 1.0, rate_hz, 1)
    prompt = build_question(model, [clip], "What do you hear?")
    words = prompt.tokens[: int(prompt.audio_mask.nonzero()[0])]
    kept.pinned = words.numpy().tobytes()
    kept.want(kept.pinned, runtime.twin_depth(), model.window_frames)
    rungs = len(kept.ahead)
    while kept.ahead:
        on_progress(f"making silences: {len(kept.ahead)} of {rungs} left")
        make_ahead(model, kept)
    log.info(
        "silences: %d of %d lengths, each %.2f times the next shorter, %.1f of %.1f MB",
        len(kept),
        rungs,
        2 ** (1 / kept.ladder.steps),
        kept.held_bytes / 1e6,
        kept.limit_bytes / 1e6,
    )
