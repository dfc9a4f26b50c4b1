"""A clip: one piece of audio, as the model hears it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A mono waveform at the model's rate, and what was submitted to get it.

    `submitted_seconds`, `submitted_rate_hz` and `channels` describe the file before it was mixed
    and resampled; `warnings` say what of it was not heard, or not as it was sent. Two clips are
    equal only if they are the same object.
    """

    samples: NDArray[np.float32]  # (S,) mono, nominally in [-1, 1], finite
    sample_rate_hz: int  # rate of `samples`: the model's
    submitted_seconds: float
    submitted_rate_hz: int
    channels: int
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.samples.ndim == 1, self.samples.shape
        assert self.samples.size > 0, "a clip has at least one sample"
        assert self.samples.dtype == np.float32, self.samples.dtype
        assert self.sample_rate_hz > 0, self.sample_rate_hz

    @property
    def seconds(self) -> float:
        """Length of `samples` in seconds."""
        return len(self.samples) / self.sample_rate_hz

    def silent(self) -> Clip:
        """The silent twin: zeros, and everything else the same."""
        return replace(self, samples=np.zeros_like(self.samples))
