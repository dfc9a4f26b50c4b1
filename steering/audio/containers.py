"""Bytes become recordings: which container they are, where a next file begins, what is no sound."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from steering.audio.flac import open_flac
from steering.audio.limits import ALLOWED, CONVERT, AudioLimits
from steering.audio.mpeg import are_frames, first_frame, frame_head, open_mpeg
from steering.audio.ogg import open_ogg
from steering.audio.pcm_files import W64_MARK, open_aiff, open_au, open_caf, open_w64
from steering.audio.phone_files import (
    MATROSKA_MARK,
    MP4_BOXES,
    is_adts,
    open_adts,
    open_amr,
    open_matroska,
    open_mp4,
)
from steering.audio.recording import Recording, damaged
from steering.audio.tags import MOST_TAGS, end_of_tag, end_of_zeros
from steering.audio.wav import MARKS as WAV_MARKS
from steering.audio.wav import open_wav
from steering.errors import AudioError, UnsupportedAudio

Open = Callable[[bytes, int, AudioLimits], Recording]
_MOST_RECORDINGS = 1_000  # in one file
_MARKS: tuple[tuple[int, tuple[bytes, ...], Open], ...] = (  # where a mark stands, and who opens it
    (0, (b"fLaC",), open_flac),
    (0, (b"OggS",), open_ogg),
    (8, (b"AIFF", b"AIFC"), open_aiff),
    (0, (b"caff",), open_caf),
    (0, (b".snd",), open_au),
    (0, (W64_MARK,), open_w64),
    (4, MP4_BOXES, open_mp4),
    (0, (MATROSKA_MARK,), open_matroska),
    (0, (b"#!AMR",), open_amr),
)
_NOT_READ = (  # formats of audio by how they start
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (rb"RIFF.{4}AVI ", "AVI"),
    (rb"MAC ", "Monkey's Audio"),
    (rb"wvpk", "WavPack"),
    (rb"TTA1", "True Audio"),
    (rb"DSD |FRM8", "DSD"),
    (rb"MPCK|MP\+", "Musepack"),
    (rb"MThd", "MIDI"),
    (rb"FLV\x01", "Flash video"),
    (rb"\.RMF|\.ra\xfd", "RealAudio"),
    (rb"\x02?#!SILK", "SILK"),
    (rb"Creative Voice File", "VOC"),
    (rb"NIST_1A", "NIST SPHERE"),
    (rb"FORM", "IFF, and neither AIFF nor AIFF-C"),
    (rb"\x0b\x77", "AC-3"),
    (rb"\x56[\xe0-\xff]", "AAC in LATM"),
    (rb"\x00\x00\x01\xba", "an MPEG program stream"),
    (rb"\x47.{187}\x47.{187}\x47|.{4}\x47.{191}\x47", "an MPEG transport stream"),
)
_NO_AUDIO = (
    (0, b"{", "JSON text"),
    (0, b"[", "JSON text"),
    (0, b"<", "HTML or XML text"),
    (0, b"data:", "a data: URI; send what follows its comma, decoded from base64"),
    (0, b"#EXTM3U", "a playlist; send the audio that it names"),
    (0, b"\x1f\x8b", "gzip; send the file in it"),
    (0, b"PK\x03\x04", "a zip archive; send the file in it"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89PNG", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
    (0, b"version https://git-lfs", "a Git LFS pointer; send the file that it stands for"),
)


def recordings(data: bytes, limits: AudioLimits, notes: list[str]) -> Iterator[Recording]:
    """Each recording in `data`; what stands around and between them goes to `notes`.

    Raises UnsupportedAudio for another format or codec, AudioError for what is no audio or
    damaged, AudioTooLarge for a recording that is longer than allowed.
    """
    at, opener = _next(data, 0)
    if opener is None:
        at, opener = _frames_behind(data, at, notes), open_mpeg
    for _ in range(_MOST_RECORDINGS):
        recording = opener(data, at, limits)
        assert recording.end > at, "an opener goes on"
        yield recording
        at, opener = _next(data, recording.end)
        if opener is None:
            frames = first_frame(data, at) if recording.container == "MP3" else None
            _note_skipped(data, at, frames or len(data), recording, notes)
            if frames is None:
                return
            at, opener = frames, open_mpeg
    raise AudioError(
        f"the audio is more than {_MOST_RECORDINGS:,} files in one; send one, or each as a clip"
    )


def _next(data: bytes, at: int) -> tuple[int, Open | None]:
    """Where the next recording begins, behind tags and zeros, and what opens it."""
    for _ in range(MOST_TAGS):
        opener = _opener(data, at)
        behind = end_of_tag(data, at)
        behind = end_of_zeros(data, at) if behind == at else behind
        if opener is not None or behind == at:
            return at, opener
        at = behind
    return at, None


def _opener(data: bytes, at: int) -> Open | None:
    """The function that opens what begins at a byte; None for what is not read."""
    if data[at : at + 4] in WAV_MARKS and data[at + 8 : at + 12] == b"WAVE":
        return open_wav
    for offset, marks, opener in _MARKS:
        if data.startswith(marks, at + offset):
            return opener
    if are_frames(data, at):
        return open_mpeg
    return open_adts if is_adts(data, at) else None


def _frames_behind(data: bytes, at: int, notes: list[str]) -> int:
    """Where MP3 frames begin behind something else, as in a stream that was joined in the middle.

    Raises AudioError where there are none, which says what the bytes are instead.
    """
    size = f"its {len(data):,} bytes start with {data[:8].hex()}"
    start = data[at : at + 512].lstrip(b" \t\r\n") or data[:512]
    name = next((name for mark, name in _NOT_READ if re.match(mark, start, re.DOTALL)), None)
    if name:
        raise UnsupportedAudio(
            f"the audio is of a format that is not supported: {size}, which looks like {name};"
            f" send a {ALLOWED} file, or {CONVERT}"
        )
    hint = _no_audio(start) if any(data) else ", as all of them are: nothing was recorded"
    frames = first_frame(data, at) if not hint else None
    if frames is None and (data[:3] == b"ID3" or frame_head(data, at) is not None):
        raise damaged("MP3", len(data))
    if frames is None:
        raise AudioError(
            f"the audio is not a {ALLOWED} file: {size}{hint}; send one of these formats, or"
            f" {CONVERT}"
        )
    if data[at:frames].strip(b"\0"):
        notes.append(f"{frames - at:,} bytes in front of its first MP3 frame were not read")
    return frames


def _no_audio(start: bytes) -> str:
    """What the bytes look like, as the end of a sentence; empty if we can't tell."""
    for offset, mark, name in _NO_AUDIO:
        if start.startswith(mark, offset):
            return f", which looks like {name}"
    if re.fullmatch(rb"[A-Za-z0-9+/_=\r\n-]{16,}", start):
        return ", which looks like base64 text that was not decoded, or was encoded twice"
    return ""


def _note_skipped(data: bytes, at: int, end: int, recording: Recording, notes: list[str]) -> None:
    """Tell bytes behind a recording that are not heard, if they are more than zeros."""
    count = len(data[at:end].strip(b"\0"))
    if count:
        rate = recording.bytes_per_second
        seconds = f" ({count / rate:,.2f} s, if they are samples)" if rate else ""
        notes.append(
            f"the {count:,} bytes from byte {at:,} on{seconds} are not part of the sound by its"
            " header, and were not read"
        )
