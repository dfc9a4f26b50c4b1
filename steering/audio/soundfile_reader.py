"""libsndfile, through soundfile: the reader of all that needs no extra."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from steering.audio.limits import AudioLimits, check_layout, check_seconds
from steering.audio.recording import Block, Findings, Recording, damaged

_FORMATS = {
    "WAV": ("WAV", "WAVEX", "RF64"), "FLAC": ("FLAC",), "FLAC in OGG": ("FLAC",), "OGG": ("OGG",),
    "MP3": ("MP3",), "MP3 in WAV": ("MP3",), "AIFF": ("AIFF",), "CAF": ("CAF",), "AU": ("AU",),
    "W64": ("W64",),
}  # fmt: skip
_BLOCK_FRAMES = 65_536
_TOLD_SECONDS = 0.05  # less is not told


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def tell(self) -> int: ...


class _Padded:
    """A file with zeros behind it that take no memory."""

    def __init__(self, payload: bytes, zeros: int) -> None:
        self._payload = payload
        self._size = len(payload) + zeros
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """So many bytes, all that are left if negative."""
        left = max(0, self._size - self._at)
        size = left if size < 0 else min(size, left)
        data = self._payload[self._at : self._at + size]
        self._at += size
        return data + bytes(size - len(data))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        """The byte that comes next."""
        return self._at


def blocks(recording: Recording, limits: AudioLimits, findings: Findings) -> Iterator[Block]:
    """The samples of a recording that are kept, decoded as they are taken.

    Raises AudioError for a damaged file and for channels or a rate outside the limits,
    AudioTooLarge for more seconds than allowed. A block is overwritten by the next one.
    """
    import soundfile

    try:
        with soundfile.SoundFile(_readable(recording)) as file:
            if file.format not in _FORMATS[recording.container]:
                raise damaged(recording.container, len(recording.payload))
            check_layout(file.channels, file.samplerate, limits)
            # Between blocks soundfile seeks to where it is; MP3 loses what it keeps of the last
            # frames by that, and files of unknown length can't seek.
            file.seekable = lambda: False
            frames = file.frames if recording.frames is None else recording.frames
            check_seconds(frames / file.samplerate, limits)
            block = np.empty((_BLOCK_FRAMES, file.channels), np.float32)
            kept = left = int(min(frames, limits.kept_seconds * file.samplerate))
            findings.seconds_behind = (frames - kept) / file.samplerate
            while left > 0 and len(samples := file.read(min(left, _BLOCK_FRAMES), out=block)):
                left -= len(samples)
                yield Block(file.samplerate, samples)
            if left > _TOLD_SECONDS * file.samplerate:
                findings.notes.append(
                    f"of {kept / file.samplerate:.2f} s,"
                    f" {(kept - left) / file.samplerate:.2f} s could be decoded"
                )
    except soundfile.SoundFileError:
        raise damaged(recording.container, len(recording.payload)) from None


def _readable(recording: Recording) -> _Readable:
    if recording.zeros:
        return _Padded(recording.payload, recording.zeros)
    return io.BytesIO(recording.payload)


def libsndfile_version() -> str:
    """The version of the library that decodes."""
    import soundfile

    return str(soundfile.__libsndfile_version__)
