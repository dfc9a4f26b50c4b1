"""Tags and padding around audio: what stands in a file and is no sound, and where it ends."""

from __future__ import annotations

import re

MOST_TAGS = 1_000  # side by side
_ZEROS = re.compile(rb"\x00*")


def end_of_tags(data: bytes, start: int) -> int:
    """The byte behind all tags and zeros that begin at `start`; at most the file's end."""
    for _ in range(MOST_TAGS):
        end = end_of_zeros(data, end_of_tag(data, start))
        if end == start:
            break
        start = end
    return start


def end_of_zeros(data: bytes, start: int) -> int:
    """The first byte from `start` on that is not zero."""
    zeros = _ZEROS.match(data, start)
    assert zeros is not None
    return zeros.end()


def end_of_tag(data: bytes, start: int) -> int:
    """The byte behind the one tag that begins at `start`, `start` itself if there is none."""
    head = data[start : start + 32]
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        end = start + 10 + size + (10 if head[5] & 0x10 else 0)
        return end if end <= len(data) else start + 10  # a size that lies: look behind its head
    if head[:3] == b"TAG":
        return min(start + (227 if head[:4] == b"TAG+" else 128), len(data))
    if head[:8] == b"APETAGEX" and len(head) == 32:
        return min(start + 32 + int.from_bytes(head[12:16], "little"), len(data))
    if head[:11] == b"LYRICSBEGIN":
        marks = (data.find(mark, start) for mark in (b"LYRICS200", b"LYRICSEND"))
        return min((at + 9 for at in marks if at >= 0), default=start)
    return start
