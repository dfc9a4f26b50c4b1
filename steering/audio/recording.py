"""One recording: what a file holds, or one of the files that stand in it one behind the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steering.audio.limits import CONVERT
from steering.errors import AudioError


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Bytes fit to be read: whole, alone, with a header that does not lie."""

    container: str  # as messages name it
    payload: bytes
    end: int  # behind it, in the bytes that were sent
    reader: Literal["soundfile", "pyav"] = "soundfile"
    demuxer: str = ""  # of PyAV, which is also asked where libsndfile fails
    frames: int | None = None  # sample frames, where they were counted
    zeros: int = 0  # to be read behind the payload: libsndfile takes lengths from the file's size
    bytes_per_second: float = 0.0  # of samples, where they are of one size
    warnings: tuple[str, ...] = ()  # what of it is not heard, or not as the header says


@dataclass(slots=True, eq=False)
class Findings:
    """What a reader finds out beside the samples."""

    notes: list[str] = field(default_factory=list)  # of what is not heard, or not as it was sent
    seconds_behind: float = 0.0  # behind those that were kept


class Block(NamedTuple):
    """Some decoded samples."""

    rate_hz: int
    frames: NDArray[np.float32]  # (S, channels)


def damaged(container: str, size: int) -> AudioError:
    """The error of bytes that their decoder can't read."""
    return AudioError(
        f"the audio can't be decoded: its {size:,} bytes start like {container} but are damaged or"
        f" cut short; check that the file plays, send it whole, or {CONVERT}"
    )
