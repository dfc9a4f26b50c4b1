"""How much audio one clip may hold, and the errors of clips that hold more."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steering.errors import AudioError, AudioTooLarge

ALLOWED = "WAV, FLAC, OGG, MP3, AIFF, M4A or WebM"
_COUNTED_SECONDS = 4 * 3600.0  # a hostile file could hold weeks, and counting takes time
CONVERT = "convert it, for example with `ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`"


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """How much audio one clip may hold."""

    max_bytes: int = 25_000_000
    max_seconds: float = 30.0
    kept_seconds: float = math.inf  # what stands behind is counted, and not decoded
    min_seconds: float = 0.05  # shorter than one audio token of the model is not audio to it
    max_channels: int = 8
    min_rate_hz: int = 4_000
    max_rate_hz: int = 192_000

    @property
    def max_decoded_bytes(self) -> int:
        """Bytes of the longest waveform ever held: mono float32 at the highest rate."""
        return int(self.decoded_seconds * self.max_rate_hz) * np.dtype(np.float32).itemsize

    @property
    def decoded_seconds(self) -> float:
        """Seconds of the longest waveform ever held."""
        return min(self.max_seconds, self.kept_seconds)

    @property
    def counted_seconds(self) -> float:
        """Seconds beyond which a length is not counted any further."""
        return max(self.kept_seconds, _COUNTED_SECONDS)


def check_bytes(count: int, limits: AudioLimits) -> None:
    """Raise AudioError for no bytes, AudioTooLarge for more than allowed."""
    if count == 0:
        raise AudioError(f"the audio is empty: 0 bytes; send a {ALLOWED} file")
    if count > limits.max_bytes:
        raise AudioTooLarge(
            f"the audio has {count:,} bytes; at most {limits.max_bytes:,} are allowed:"
            " send a shorter clip, or a compressed one such as FLAC or Opus"
        )


def check_layout(channels: int, rate_hz: int, limits: AudioLimits) -> None:
    """Raise AudioError for channels or a sample rate outside the limits."""
    if not 1 <= channels <= limits.max_channels:
        raise AudioError(
            f"the audio has {channels} channels; 1 to {limits.max_channels} are allowed:"
            " mix it down to mono or stereo"
        )
    if not limits.min_rate_hz <= rate_hz <= limits.max_rate_hz:
        raise AudioError(
            f"the audio's sample rate is {rate_hz} Hz; {limits.min_rate_hz} to"
            f" {limits.max_rate_hz} Hz are allowed: {CONVERT}"
        )


def check_seconds(seconds: float, limits: AudioLimits, *, counted: bool = True) -> None:
    """Raise AudioTooLarge for more seconds than allowed; those not counted are a lower bound."""
    if seconds > limits.max_seconds:
        if not counted:
            raise AudioTooLarge(
                f"the audio is longer than the {limits.max_seconds:g} s that are allowed: send a"
                " shorter clip, or several"
            )
        raise AudioTooLarge(
            f"the audio is {seconds:,.2f} s long; at most {limits.max_seconds:g} s are allowed:"
            " send a shorter clip, or several"
        )
