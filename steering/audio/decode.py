"""Decoding: bytes become a Clip, or an AudioError with a remedy.

Nothing in the bytes is trusted:

1. the first bytes must be those of one of four containers, so no other parser ever runs;
2. a second file behind the first is refused: decoders would silently leave it out;
3. the header's channels, rate and length are checked against the limits before decoding;
4. decoding goes block by block into a buffer of the checked length. A false header can shorten the
   clip, and can't lengthen it.

The decoder's own error text is not passed on: it may hold addresses. The decoding libraries are
imported with the first clip, so everything else works without them.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steering.audio.clip import Clip
from steering.audio.concatenated import second_start
from steering.errors import AudioError, AudioTooLarge

if TYPE_CHECKING:
    import soundfile

_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3"})
_ALLOWED = "WAV, FLAC, OGG (Vorbis or Opus) or MP3"
_CONVERT = "convert it, for example with `ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav`"
_BLOCK_FRAMES = 65_536
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's answer for a FLAC header that leaves the length open
_LARGEST_SAMPLE = 2.0**31  # float files that hold unscaled integers are heard; beyond, it is noise

# What people send instead: where the mark stands, the mark, its name.
_FOREIGN = (
    (4, b"ftyp", "MP4 or M4A"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"#!AMR", "AMR"),
    (0, b"{", "JSON text"),
    (0, b"[", "JSON text"),
    (0, b"<", "HTML or XML text"),
    (0, b"data:", "a data: URI; send what follows its comma, decoded from base64"),
)


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Limits on one clip."""

    max_bytes: int = 25_000_000
    max_seconds: float = 30.0
    min_seconds: float = 0.05  # shorter than one audio token of the model is not audio to it
    max_channels: int = 8
    min_rate_hz: int = 4_000
    max_rate_hz: int = 192_000

    @property
    def max_decoded_bytes(self) -> int:
        """Bytes of the longest waveform ever held: mono float32 at the highest rate."""
        return int(self.max_seconds * self.max_rate_hz) * np.dtype(np.float32).itemsize


def decode(data: bytes, *, rate_hz: int, limits: AudioLimits) -> Clip:
    """The clip in `data`, a whole WAV, FLAC, OGG or MP3 file, at `rate_hz`.

    Channels are averaged, then the mean is resampled. Every sample that the header announces and
    the bytes hold is heard; `submitted_seconds` says how many seconds those were.

    Raises AudioTooLarge for bytes or seconds over the limit, AudioError for all else: another
    format, a damaged file, no samples, NaN or infinity, channels or rate outside the limits.
    """
    mono, submitted_rate_hz, channels = _waveform(data, limits)
    samples = mono
    if submitted_rate_hz != rate_hz:
        import soxr

        samples = soxr.resample(mono, submitted_rate_hz, rate_hz, quality="HQ")
    return Clip(
        samples=samples,
        sample_rate_hz=rate_hz,
        submitted_seconds=len(mono) / submitted_rate_hz,
        submitted_rate_hz=submitted_rate_hz,
        channels=channels,
    )


def _waveform(data: bytes, limits: AudioLimits) -> tuple[NDArray[np.float32], int, int]:
    """(S,) mono at the file's own rate, that rate in Hz, and the channels it had."""
    import soundfile

    _check_bytes(len(data), limits)
    container = _container(data)
    _check_alone(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, limits)
            mono = _read_mono(file)
            submitted_rate_hz, channels = file.samplerate, file.channels
    except soundfile.SoundFileError:
        raise AudioError(
            f"the audio can't be decoded: its {len(data):,} bytes start like {container} but are"
            f" damaged or cut short; check that the file plays, send it whole, or {_CONVERT}"
        ) from None
    seconds = len(mono) / submitted_rate_hz
    if seconds < limits.min_seconds:
        raise AudioError(
            f"the audio is empty or too short: {len(mono)} samples at {submitted_rate_hz} Hz are"
            f" {seconds:.4f} s; at least {limits.min_seconds} s are needed: check the recording"
        )
    return mono, submitted_rate_hz, channels


def read_clip(path: str | os.PathLike[str], *, rate_hz: int, limits: AudioLimits) -> Clip:
    """The clip in the file at `path`, by its contents: the name's ending plays no part.

    Raises what `decode` raises, with the path in front, and AudioError for an unreadable file.
    """
    with _naming(path):
        return decode(_file_bytes(path, limits), rate_hz=rate_hz, limits=limits)


def check_clip(path: str | os.PathLike[str], limits: AudioLimits) -> str:
    """sha256 of the file at `path`, after it was decoded to its end, block by block.

    Raises what `read_clip` raises; cheaper, for nothing is resampled.
    """
    with _naming(path):
        data = _file_bytes(path, limits)
        _waveform(data, limits)
        return hashlib.sha256(data).hexdigest()


def _file_bytes(path: str | os.PathLike[str], limits: AudioLimits) -> bytes:
    with Path(path).open("rb") as file:
        _check_bytes(os.fstat(file.fileno()).st_size, limits)
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


def _check_bytes(count: int, limits: AudioLimits) -> None:
    if count == 0:
        raise AudioError(f"the audio is empty: 0 bytes; send a {_ALLOWED} file")
    if count > limits.max_bytes:
        raise AudioTooLarge(
            f"the audio has {count:,} bytes; at most {limits.max_bytes:,} are allowed:"
            " send a shorter clip, or a compressed one such as FLAC or Opus"
        )


def _container(data: bytes) -> str:
    """The container that the first bytes announce; AudioError if it is none of the four."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        return "OGG"
    head = int.from_bytes(data[:2], "big")
    is_mpeg_frame = head >> 5 == 0x7FF and head >> 1 & 3  # 11 bits of sync, a layer (AAC has none)
    if data[:3] == b"ID3" or is_mpeg_frame:
        return "MP3"
    raise AudioError(
        f"the audio is not a {_ALLOWED} file: its {len(data):,} bytes start with"
        f" {data[:8].hex()}{_hint(data)}; send one of these formats, or {_CONVERT}"
    )


def _check_alone(data: bytes) -> None:
    """Raise AudioError if `data` is two files, one behind the other."""
    second = second_start(data)
    if second is not None:
        raise AudioError(
            f"the audio is several files in one: of its {len(data):,} bytes a second file starts at"
            f" byte {second:,}, which would not be heard; send one file, or each as a clip"
        )


def _hint(data: bytes) -> str:
    """A guess at the real format, as the end of a sentence; empty if unknown."""
    start = data[:512].lstrip()
    for offset, mark, name in _FOREIGN:
        if start[offset:].startswith(mark):
            return f", which looks like {name}"
    if re.fullmatch(rb"[A-Za-z0-9+/_=\r\n-]{16,}", start):
        return ", which looks like base64 text that was not decoded, or was encoded twice"
    return ""


def _check_header(file: soundfile.SoundFile, limits: AudioLimits) -> None:
    """Raise AudioError if the header announces more than the limits allow."""
    if file.format not in _FORMATS:  # an MP3's tag in front of something else
        raise AudioError(f"the audio holds {file.format}; send a {_ALLOWED} file, or {_CONVERT}")
    if not 1 <= file.channels <= limits.max_channels:
        raise AudioError(
            f"the audio has {file.channels} channels; 1 to {limits.max_channels} are allowed:"
            " mix it down to mono or stereo"
        )
    if not limits.min_rate_hz <= file.samplerate <= limits.max_rate_hz:
        raise AudioError(
            f"the audio's sample rate is {file.samplerate} Hz; {limits.min_rate_hz} to"
            f" {limits.max_rate_hz} Hz are allowed: {_CONVERT}"
        )
    if file.frames == _UNKNOWN_FRAMES:
        raise AudioError(
            "the audio's header does not say how long it is, as happens to FLAC written to a pipe;"
            " write it to a file, or send WAV"
        )
    if file.frames > limits.max_seconds * file.samplerate:
        raise AudioTooLarge(
            f"the audio is {file.frames / file.samplerate:,.2f} s long; at most"
            f" {limits.max_seconds:g} s are allowed: send a shorter clip, or several"
        )
    assert file.frames * np.dtype(np.float32).itemsize <= limits.max_decoded_bytes


def _read_mono(file: soundfile.SoundFile) -> NDArray[np.float32]:
    """(S,) float32, the mean over channels, S at most the header's length.

    Raises AudioError for a sample that is NaN, infinite or absurd.
    """
    mono = np.empty(file.frames, np.float32)
    block = np.empty((_BLOCK_FRAMES, file.channels), np.float32)
    heard = 0
    while heard < len(mono):
        frames = file.read(len(mono) - heard, out=block)  # (at most _BLOCK_FRAMES, channels)
        if len(frames) == 0:
            break
        outside = ~(np.abs(frames) <= _LARGEST_SAMPLE).all(axis=1)  # true for NaN as well
        if outside.any():
            first = int(outside.argmax())
            raise AudioError(
                f"the audio is not finite: the sample at {(heard + first) / file.samplerate:.3f} s"
                f" is {frames[first].tolist()}; samples from -1 to 1 are expected: check the"
                " program that wrote the file"
            )
        frames.mean(axis=1, out=mono[heard : heard + len(frames)])
        heard += len(frames)
    return mono[:heard]


def libsndfile_version() -> str:
    """The version of the library that decodes."""
    import soundfile

    return str(soundfile.__libsndfile_version__)
