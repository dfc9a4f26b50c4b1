"""Several audio files in one are detected, since only the first would be heard.

Decoders stop at the end of the first file, and of two OGG streams they mix the ends. A file inside
a file leaves its own beginning behind, of 6 bytes or more: chance makes none.
"""

from __future__ import annotations

from collections.abc import Iterator

_MARKS = (  # what stands at the beginning of a file and nowhere else
    b"fLaC\x00\x00\x00\x22",
    b"fLaC\x80\x00\x00\x22",
    b"OggS\x00\x02",
    b"OggS\x00\x06",
)
_MPEG_MARKS = (b"Xing\x00\x00\x00", b"Info\x00\x00\x00")  # in the first frame of an MP3


def second_start(data: bytes) -> int | None:
    """Byte at which a second file starts in `data`; None if there is none."""
    first = _end_of_ogg_heads(data) or 1
    starts = [data.find(mark, first) for mark in _MARKS]
    starts += [next(_starts_of_wav(data, first), -1)]
    for mark in _MPEG_MARKS:
        before = data.find(mark)
        starts.append(data.find(mark, before + 1) if before >= 0 else -1)
    return min((start for start in starts if start >= 0), default=None)


def _end_of_ogg_heads(data: bytes) -> int:
    """End of the pages that each begin a stream of one OGG file; 0 for another container."""
    at = 0
    while data[at : at + 4] == b"OggS" and len(data) > at + 27 and data[at + 5] & 2:
        segments = data[at + 26]
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    return at


def _starts_of_wav(data: bytes, first: int) -> Iterator[int]:
    at = data.find(b"WAVE", first + 12)
    while at >= 0:
        if data[at - 8 : at - 4] in (b"RIFF", b"RF64"):
            yield at - 8
        at = data.find(b"WAVE", at + 1)
