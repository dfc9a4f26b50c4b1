"""The audio that a deployment accepts, and how much of it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from steering.audio.limits import AudioLimits

LongAudio = Literal["refuse", "cut", "window"]
_BEYOND_SECONDS = 1.0  # decoded as well: the resampler looks past the cut


@dataclass(frozen=True, slots=True)
class AudioPolicy:
    """The model's rate and window, and limits on what is sent."""

    rate_hz: int
    limits: AudioLimits
    max_clips: int
    window_seconds: float  # of the longest clip that is heard as one
    max_long_seconds: float  # of a clip that is heard in windows
    long_audio: LongAudio = "cut"  # where the request does not say


def for_long_audio(policy: AudioPolicy, long_audio: LongAudio | None) -> AudioPolicy:
    """The policy for a request that may choose what happens to long clips.

    What will not be heard is counted and not decoded: so `cut` takes a clip of any length in memory
    for one window.
    """
    chosen = replace(policy, long_audio=long_audio or policy.long_audio)
    if chosen.long_audio == "window":
        limits = replace(policy.limits, max_seconds=policy.max_long_seconds)
    else:
        limits = replace(policy.limits, kept_seconds=policy.window_seconds + _BEYOND_SECONDS)
    return replace(chosen, limits=limits)
