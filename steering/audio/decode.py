"""Decoding: bytes become a Clip, or an AudioError with a remedy.

Nothing in the bytes is trusted:

1. the first bytes must be those of a known container, so no other parser ever runs;
2. what a header says of channels, rate and length is held against the limits, then against what is
   there (wav.py, mpeg.py, ogg.py and their like), before a sample is decoded;
3. decoding goes block by block and ends where the limits do: a header that lies can't lengthen it;
4. what of the bytes is not heard all the same is in the clip's warnings.

The decoder's own error text is not passed on: it may hold addresses. The decoding libraries are
imported with the first clip, so everything else works without them.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steering.audio import pyav_reader, soundfile_reader
from steering.audio.clip import Clip
from steering.audio.containers import recordings
from steering.audio.limits import AudioLimits, check_bytes, check_seconds
from steering.audio.mono import Section, mix
from steering.audio.recording import Findings, Recording
from steering.errors import AudioError, AudioTooLarge

log = logging.getLogger("allears")

_MOST_WARNINGS = 12
_ROUNDING_SECONDS = 1e-6


@dataclass(slots=True, eq=False)
class Heard:
    """What was decoded, at the rates that it had."""

    sections: list[Section] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)  # seconds of each recording, all counted
    notes: list[str] = field(default_factory=list)  # of what was not heard, or not as it was sent

    @property
    def seconds(self) -> float:
        """Length of all, what was counted and not kept included."""
        return sum(self.lengths)

    @property
    def kept_seconds(self) -> float:
        """Length of what was kept."""
        return sum(section.seconds for section in self.sections)


def decode(data: bytes, *, rate_hz: int, limits: AudioLimits) -> Clip:
    """The clip in `data`, a whole audio file, at `rate_hz`.

    Channels are averaged, then the mean is resampled. All that can be decoded is heard, to the end
    of the bytes or of `limits.kept_seconds`: `submitted_seconds` says how many seconds the bytes
    hold, `warnings` what of them was not heard. Files that stand one behind the other are heard one
    after the other.

    Raises AudioTooLarge for bytes or seconds over the limit, UnsupportedAudio for another format or
    codec, AudioError for all else: a damaged file, no samples, NaN or infinity, channels or rate
    outside the limits.
    """
    heard = _decoded(data, limits)
    return Clip(
        samples=_resampled(heard.sections, rate_hz),
        sample_rate_hz=rate_hz,
        submitted_seconds=heard.seconds,
        submitted_rate_hz=heard.sections[0].rate_hz,
        channels=heard.sections[0].channels,
        warnings=tuple(heard.notes),
    )


def _resampled(sections: list[Section], rate_hz: int) -> NDArray[np.float32]:
    """(S,) the sections one after the other, at `rate_hz`."""
    parts = []
    for section in sections:
        samples = section.samples
        if section.rate_hz != rate_hz:
            import soxr

            samples = soxr.resample(samples, section.rate_hz, rate_hz, quality="HQ")
        parts.append(samples)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _decoded(data: bytes, limits: AudioLimits) -> Heard:
    """All that can be decoded of `data`."""
    check_bytes(len(data), limits)
    heard = Heard()
    try:
        for recording in recordings(data, limits, heard.notes):
            heard.notes += recording.warnings
            _listen(recording, heard, limits)
            if heard.seconds > limits.counted_seconds:
                hours = limits.counted_seconds / 3600
                heard.notes.append(f"it is longer than {hours:g} hours; how much was not counted")
                break
    except AudioTooLarge:
        raise
    except AudioError as error:
        if not heard.sections:
            raise
        heard.notes.append(
            f"what stands behind its first {heard.seconds:.2f} s is not heard: {error}"
        )
    if heard.seconds < limits.min_seconds:
        raise _too_short(heard, limits)
    heard.notes = list(dict.fromkeys(heard.notes))[: _MOST_WARNINGS - 1]
    if len(heard.lengths) > 1:
        lengths = ", ".join(f"{seconds:.2f}" for seconds in heard.lengths[:5])
        more = ", ..." if len(heard.lengths) > 5 else ""
        whole = "; all are heard" * (heard.seconds - heard.kept_seconds < _ROUNDING_SECONDS)
        heard.notes.append(
            f"it is {len(heard.lengths)} recordings one behind the other ({lengths}{more} s){whole}"
        )
    return heard


def _listen(recording: Recording, heard: Heard, limits: AudioLimits) -> None:
    """Add a recording to what was heard."""
    before, findings = heard.seconds, Findings()
    left = replace(
        limits,
        max_seconds=limits.max_seconds - before,
        kept_seconds=max(0.0, limits.kept_seconds - before),
    )
    reader = pyav_reader if recording.reader == "pyav" else soundfile_reader
    try:
        try:
            sections = mix(reader.blocks(recording, left, findings), left)
        except AudioTooLarge:
            raise
        except AudioError:
            if reader is pyav_reader or not recording.demuxer:
                raise
            reader, findings = pyav_reader, Findings(findings.notes)
            sections = mix(reader.blocks(recording, left, findings), left)
        alone = {
            index: channel
            for index, section in enumerate(sections)
            if (channel := section.loudest_if_cancelled()) is not None
        }
        if alone:  # once more, for which the mean need not be kept beside every channel
            del sections
            sections = mix(reader.blocks(recording, left, Findings()), left, alone)
    except AudioTooLarge:
        check_seconds(limits.max_seconds + before, limits, counted=False)
        raise
    heard.notes += [*findings.notes, *_changes(sections)]
    heard.sections += sections
    heard.lengths.append(sum(s.seconds for s in sections) + findings.seconds_behind)
    check_seconds(heard.seconds, limits)


def _changes(sections: list[Section]) -> Iterator[str]:
    """What of the sections is not heard as it was sent; floats that hold integers are scaled."""
    for section in sections:
        if section.channel is not None:
            yield (
                f"its {section.channels} channels cancel each other out (antiphase): channel"
                f" {section.channel + 1} alone is heard; send it as mono"
            )
        full_scale = section.scale()
        if full_scale is not None:
            yield (
                f"its samples are not within -1 to 1 but reach {section.peak:,.0f}, as integers do:"
                f" they were divided by {full_scale:,.0f}; write floats from -1 to 1"
            )


def _too_short(heard: Heard, limits: AudioLimits) -> AudioError:
    why = "".join(f"; {note}" for note in heard.notes)
    if not heard.sections:
        return AudioError(f"the audio is empty: it holds no samples; check the recording{why}")
    section = heard.sections[0]
    return AudioError(
        f"the audio is empty or too short: {section.length} samples at {section.rate_hz} Hz are"
        f" {heard.seconds:.4f} s; at least {limits.min_seconds} s are needed: check the"
        f" recording{why}"
    )


def read_clip(path: str | os.PathLike[str], *, rate_hz: int, limits: AudioLimits) -> Clip:
    """The clip in the file at `path`, by its contents: the name's ending plays no part.

    Its warnings are logged, once in a process. Raises what `decode` raises, with the path in front,
    and AudioError for an unreadable file.
    """
    with _naming(path):
        clip = decode(_file_bytes(path, limits), rate_hz=rate_hz, limits=limits)
    _log_once(os.fspath(path), clip.warnings)
    return clip


def check_clip(path: str | os.PathLike[str], limits: AudioLimits) -> str:
    """sha256 of the file at `path`, after it was decoded to its end, block by block.

    Logs and raises what `read_clip` does; cheaper, for nothing is resampled.
    """
    with _naming(path):
        data = _file_bytes(path, limits)
        _log_once(os.fspath(path), tuple(_decoded(data, limits).notes))
        return hashlib.sha256(data).hexdigest()


@functools.lru_cache(100_000)
def _log_once(path: str, warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        log.warning("%s: %s", path, warning)


def _file_bytes(path: str | os.PathLike[str], limits: AudioLimits) -> bytes:
    with Path(path).open("rb") as file:
        check_bytes(os.fstat(file.fileno()).st_size, limits)
        return file.read(limits.max_bytes + 1)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Generator[None, None, None]:
    """Put the path in front of errors about a file."""
    try:
        yield
    except OSError as error:
        raise AudioError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except AudioError as error:
        raise type(error)(f"{path}: {error}") from None
