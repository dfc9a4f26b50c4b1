"""TODO"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from steering.audio.limits import AudioLimits


@dataclass(frozen=True, slots=True)
class AudioPolicy:
    """What this deployment hears: the model's rate, and limits on what is sent."""

    rate_hz: int
    limits: AudioLimits
    max_clips: int
    window_seconds: float  # the longest clip that the model hears as one
    max_long_seconds: float  # of a clip that is heard in windows
    long_audio: Literal["refuse", "cut", "window"] = "cut"  # where the request does not say


def for_long_audio(
    hearing: AudioPolicy, wish: Literal["refuse", "cut", "window"] | None
) -> AudioPolicy:
    """What is heard of a request that says what is to become of long clips."""
    chosen = replace(hearing, long_audio=wish or hearing.long_audio)
    if chosen.long_audio != "window":
        return chosen
    longest = max(hearing.max_long_seconds, hearing.limits.max_seconds)
    return replace(chosen, limits=replace(hearing.limits, max_seconds=longest))
