"""Sounds that can be sent: a path, the bytes of a file, an open file, or samples."""

from __future__ import annotations

import base64
import io
import os
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from allears_client.errors import UnreadableAudio

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_CHANNELS = 8
_MAX_RATE_HZ = 10_000_000  # fits a WAV header with eight channels


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A waveform: (S,) or (S, channels), floats from -1 to 1 or int16, as soundfile reads them."""

    samples: NDArray[Any]
    sample_rate_hz: int


Sound = bytes | str | os.PathLike[str] | BinaryIO | Samples


def as_list(audio: Sound | Sequence[Sound] | None) -> list[Sound]:
    """The sounds, as a list."""
    if audio is None:
        return []
    if isinstance(audio, Sequence) and not isinstance(audio, bytes | str):
        return list(audio)
    return [audio]


def as_json(sound: Sound) -> dict[str, str]:
    """A sound as a request's body carries it. Raises UnreadableAudio."""
    return {"data": base64.b64encode(read(sound)).decode("ascii")}


def read(sound: Sound) -> bytes:
    """The bytes of an audio file. Raises UnreadableAudio."""
    if isinstance(sound, bytes):
        return sound
    if isinstance(sound, Samples):
        return wav(sound)
    if isinstance(sound, str | os.PathLike):
        try:
            return Path(sound).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no path has such characters
            reason = getattr(error, "strerror", None) or error
            raise UnreadableAudio(f"{sound}: can't be read ({reason}); check the path") from None
    try:
        data = sound.read() if hasattr(sound, "read") else None
    except (OSError, ValueError) as error:  # ValueError: it is closed, or text that isn't text
        raise UnreadableAudio(
            f"the open file can't be read ({error}); open it in binary mode: open(path, 'rb')"
        ) from None
    if not isinstance(data, bytes):
        raise UnreadableAudio(
            f"{type(sound).__name__} is no sound; give a path, bytes, a file opened in binary mode,"
            " or Samples(array, sample_rate_hz)"
        )
    return data


def wav(sound: Samples) -> bytes:
    """A WAV file of 16-bit samples. Raises UnreadableAudio for arrays that are no waveform."""
    import numpy as np  # only a caller with an array needs it

    try:
        samples = np.asarray(sound.samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnreadableAudio(f"the samples are no array of numpy's: {error}") from None
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise UnreadableAudio(f"samples of shape {samples.shape}; (S,) or (S, channels) is needed")
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    if channels > _MAX_CHANNELS:
        raise UnreadableAudio(
            f"samples of shape {samples.shape} would be {channels} channels; transpose the array to"
            " (S, channels)"
        )
    rate_hz = sound.sample_rate_hz
    if not (isinstance(rate_hz, Real) and 1 <= rate_hz <= _MAX_RATE_HZ):
        raise UnreadableAudio(f"sample_rate_hz is {rate_hz}; 1 to {_MAX_RATE_HZ} can be sent")
    if samples.dtype != np.int16:
        samples = _to_int16(samples)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(round(rate_hz))
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def _to_int16(samples: NDArray[Any]) -> NDArray[Any]:
    import numpy as np  # as above

    if not np.issubdtype(samples.dtype, np.floating):
        raise UnreadableAudio(f"samples are {samples.dtype}; floats from -1 to 1 or int16 are sent")
    largest = float(np.abs(samples).max())
    if not largest <= 1.5:  # true for NaN as well; a little over 1 is common and clipped
        raise UnreadableAudio(
            f"the largest sample is {largest:g}; floats from -1 to 1 are sent: divide by the"
            " largest value of the type they come from"
        )
    samples = samples.astype(np.float32, copy=False)  # float16 has no 32767
    scaled: NDArray[Any] = np.round(samples.clip(-1, 1) * 32767).astype(np.int16)
    return scaled
