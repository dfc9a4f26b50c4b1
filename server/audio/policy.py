"""The audio that a deployment accepts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from steering.audio.limits import AudioLimits


@dataclass(frozen=True, slots=True)
class AudioPolicy:
    """The model's rate and window, and limits on what is sent."""

    rate_hz: int
    limits: AudioLimits
    max_clips: int
    window_seconds: float  # of the longest clip that the model hears as one
    max_long_seconds: float  # of a clip that is heard in windows
    long_audio: Literal["refuse", "cut", "window"] = "cut"  # where the request does not say


def for_long_audio(
    policy: AudioPolicy, long_audio: Literal["refuse", "cut", "window"] | None
) -> AudioPolicy:
    """The policy for a request that may choose what happens to long clips."""
    chosen = replace(policy, long_audio=long_audio or policy.long_audio)
    if chosen.long_audio != "window":
        return chosen
    longest = max(policy.max_long_seconds, policy.limits.max_seconds)
    return replace(chosen, limits=replace(policy.limits, max_seconds=longest))
