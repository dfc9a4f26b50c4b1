"""Blocks of samples become one channel, and what can't be heard as it was sent is found.

Channels are averaged. Where that cancels them, as it does two that are each other's opposite, one
of them is heard alone; floats that hold integers are divided by the integers' full scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from steering.audio.limits import AudioLimits, check_seconds
from steering.audio.recording import Block
from steering.errors import AudioError

_LARGEST_SAMPLE = 2.0**31  # of floats that hold integers; beyond, it is noise
_CANCELLED = 0.01  # power of the mean, as a share of that of the loudest channel
_LOUDEST_FLOAT = 32.0  # of samples that are floats indeed
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)
_OVERSHOOT = 1.5  # of a full scale, by a filter that integers went through


@dataclass(slots=True, eq=False)
class Section:
    """A stretch of one rate and number of channels."""

    rate_hz: int
    channels: int
    channel: int | None = None  # the one that is heard alone
    buffer: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # (S,)
    length: int = 0  # samples in use
    peak: float = 0.0
    integral: bool = True  # whether every sample is an integer
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 0)))  # (2, 1 + channels)

    @property
    def samples(self) -> NDArray[np.float32]:
        """(S,) mono."""
        return self.buffer[: self.length]

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.length / self.rate_hz

    def append(self, frames: NDArray[np.float32]) -> None:
        """Take (S, channels) samples in. Raises AudioError for one that is no number."""
        self._check(frames)
        end = self.length + len(frames)
        if end > len(self.buffer):  # in place as a rule, which twice the memory would not be
            self.buffer.resize(max(end, len(self.buffer) * 3 // 2), refcheck=False)
        mono = self.buffer[self.length : end]
        if self.channel is not None:
            mono[:] = frames[:, self.channel]
        else:
            frames.mean(axis=1, out=mono)
        if self.channels > 1:
            self.sums[0, 0] += mono.sum(dtype=np.float64)
            self.sums[0, 1:] += frames.sum(axis=0, dtype=np.float64)
            self.sums[1, 0] += np.dot(mono, mono)
            self.sums[1, 1:] += np.einsum("sc,sc->c", frames, frames)
        self.length = end

    def _check(self, frames: NDArray[np.float32]) -> None:
        magnitudes = np.abs(frames)
        peak = float(magnitudes.max())
        if not peak <= _LARGEST_SAMPLE:  # true for NaN as well
            first = int((~(magnitudes <= _LARGEST_SAMPLE)).any(axis=1).argmax())
            raise AudioError(
                f"the audio is not finite: the sample at"
                f" {(self.length + first) / self.rate_hz:.3f} s is {frames[first].tolist()};"
                " samples from -1 to 1 are expected: check the program that wrote the file"
            )
        self.peak = max(self.peak, peak)
        if self.integral:
            np.fmod(magnitudes, 1, out=magnitudes)
            self.integral = not magnitudes.any()

    def loudest_if_cancelled(self) -> int | None:
        """The loudest channel, if the mean of all holds next to nothing of it."""
        if self.channels == 1 or self.channel is not None:
            return None
        powers = self.sums[1] / self.length - (self.sums[0] / self.length) ** 2
        loudest = int(powers[1:].argmax())
        return loudest if powers[0] < _CANCELLED * powers[1 + loudest] else None

    def scale(self) -> float | None:
        """The full scale of the integers that the samples are, by which they are now divided."""
        if self.peak <= (1.0 if self.integral else _LOUDEST_FLOAT):
            return None
        full = next((f for f in _FULL_SCALES if self.peak <= f * _OVERSHOOT), _FULL_SCALES[-1])
        samples = self.samples
        samples /= np.float32(full)
        return full


def mix(
    blocks: Iterable[Block], limits: AudioLimits, channels: dict[int, int] | None = None
) -> list[Section]:
    """The sections of a recording, mixed to mono, or each heard from one of its channels.

    Raises AudioTooLarge as soon as there are more seconds than allowed, whatever the header said.
    """
    sections: list[Section] = []
    seconds = 0.0  # of the sections before the last
    for rate_hz, frames in blocks:
        section = sections[-1] if sections else None
        if section is None or (section.rate_hz, section.channels) != (rate_hz, frames.shape[1]):
            seconds += section.seconds if section else 0.0
            section = Section(
                rate_hz,
                frames.shape[1],
                (channels or {}).get(len(sections)),
                sums=np.zeros((2, 1 + frames.shape[1])),
            )
            sections.append(section)
        check_seconds(seconds + (section.length + len(frames)) / rate_hz, limits, counted=False)
        section.append(frames)
    for section in sections:
        section.buffer.resize(section.length, refcheck=False)
    return sections
