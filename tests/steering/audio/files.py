"""Audio files to test readers with, and what a reader makes of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from steering.audio.clip import Clip
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits

RATE_HZ = 16_000
Floats = NDArray[np.float32]


def noise(seconds: float = 1.0, *, rate_hz: int = RATE_HZ, channels: int = 1) -> Floats:
    """(S, channels) another noise in each channel; the same arguments make the same."""
    rng = np.random.default_rng(0)
    samples = 0.2 * rng.standard_normal((round(seconds * rate_hz), channels))
    return samples.clip(-0.9, 0.9).astype(np.float32)


def encode(
    samples: NDArray[Any],
    rate_hz: int = RATE_HZ,
    *,
    container: str = "WAV",
    subtype: str | None = None,
    **more: Any,
) -> bytes:
    """The file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype, **more)
    return file.getvalue()


def changing_mp3(rate_hz: int = RATE_HZ, *, seconds: float = 2.0) -> bytes:
    """An MP3 of variable bit rate that begins with silence, so that its first frames are small."""
    silence = np.zeros((round(rate_hz * seconds / 2), 1), np.float32)
    samples = np.concatenate([silence, noise(seconds / 2, rate_hz=rate_hz)])
    return encode(samples, rate_hz, container="MP3", bitrate_mode="VARIABLE", compression_level=0)


def id3(size: int, filling: bytes = b"\0") -> bytes:
    """A tag of so many bytes behind its head."""
    bits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00\x00" + bits + (filling * size)[:size]


def heard(data: bytes, *, limits: AudioLimits | None = None) -> Clip:
    """The clip of a file."""
    return decode(data, rate_hz=RATE_HZ, limits=limits or AudioLimits())
