"""What phones and browsers record: MP4 (M4A, 3GP, MOV), WebM, AAC and AMR, found out but not read.

PyAV reads them. Where each ends, and whether it is whole, is looked at here: FFmpeg says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from steering.audio.chunks import cut_short
from steering.audio.limits import CONVERT, AudioLimits, check_seconds
from steering.audio.recording import Recording
from steering.audio.tags import end_of_tags
from steering.errors import AudioError, UnsupportedAudio

MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof")
MATROSKA_MARK = b"\x1a\x45\xdf\xa3"
_SECOND_MATROSKA = re.compile(rb"\x1a\x45\xdf\xa3[\x40-\xff].{4,60}?(?:webm|matroska)", re.DOTALL)
_SEGMENT = b"\x18\x53\x80\x67"
_ADTS_HEAD = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
_MOST_SEARCHES = 100_000  # for a frame
_LAST_ADTS_RATE = 12  # of the rates in its table
_PICTURES = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")  # brands of MP4
_MOST_BOXES = 10_000  # of an MP4 file, none in another
_SHORTEST_FRAME_SECONDS = 1024 / 96_000
AMR_MARKS = {  # and the bytes behind the head of a frame, by its kind
    b"#!AMR\n": (12, 13, 15, 17, 19, 20, 26, 31, 5, -1, -1, -1, -1, -1, -1, 0),
    b"#!AMR-WB\n": (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, -1, -1, -1, -1, 0, 0),
}


def open_mp4(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The MP4 file at `start`, up to the first box of a next one. AudioError without its index."""
    names, end, warnings = set(), start, []
    for name, box, stop in _boxes(data, start):
        if name == b"ftyp" and b"moov" in names:
            break
        names.add(name)
        end = min(stop, len(data))
        if stop > len(data):
            warnings.append(
                f"its box {name.decode()} announces {stop - box:,} bytes, and"
                f" {len(data) - box:,} are there: the file is cut short"
            )
    if data[start + 8 : start + 12] in _PICTURES:
        raise AudioError("the file is a picture (HEIF or AVIF), not audio; send a recording")
    if b"moov" not in names:
        raise cut_short("MP4", "its index (the moov box) is missing")
    return Recording("MP4", data[start:end], end, "pyav", "mp4", warnings=tuple(warnings))


def _boxes(data: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and end of the boxes from a byte on; the last may end behind the file."""
    for _ in range(_MOST_BOXES):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = len(data) - at
        if size < 8 or not (name.isalnum() or name in MP4_BOXES):
            return
        yield name, at, at + size
        at += size


def open_matroska(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The WebM or Matroska file at `start`, up to the head of a next one."""
    second = _SECOND_MATROSKA.search(data, start + 4)
    end, warnings = second.start() if second else len(data), []
    segment = data.find(_SEGMENT, start, start + 4096) + 4
    if segment >= 4 and segment < len(data):
        width = 9 - data[segment].bit_length()
        size = int.from_bytes(data[segment : segment + width], "big") & (1 << 7 * width) - 1
        stop = segment + width + size
        if size == (1 << 7 * width) - 1:  # as of a stream
            stop = end
        elif stop > end:
            warnings.append(
                f"its header announces {stop - start:,} bytes, and {end - start:,} are there: the"
                " file is cut short"
            )
        end = min(stop, end)
    return Recording("WebM", data[start:end], end, "pyav", "matroska", warnings=tuple(warnings))


def is_adts(data: bytes, at: int) -> bool:
    """Whether two frames of AAC stand side by side at a byte, or one at the end."""
    behind = at + _adts_size(data, at)
    return behind > at and (_adts_size(data, behind) > 0 or end_of_tags(data, behind) >= len(data))


def _adts_size(data: bytes, at: int) -> int:
    """Bytes of the AAC frame at a byte, 0 for none."""
    head = data[at : at + 7]
    if len(head) < 7 or not _ADTS_HEAD.match(head) or head[2] >> 2 & 15 > _LAST_ADTS_RATE:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0


def open_adts(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The AAC frames from `start` on, without what stands between them."""

    def next_frame(at: int) -> int | None:
        for match in islice(_ADTS_HEAD.finditer(data, at), _MOST_SEARCHES):
            if is_adts(data, match.start()):
                return match.start()
        return None

    frames, end, warnings = _side_by_side(
        data, start, lambda at: _adts_size(data, at), next_frame, limits
    )
    return Recording("AAC", frames, end, "pyav", "aac", warnings=warnings)


def open_amr(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The AMR file at `start`, narrow or wide band."""
    head = next((mark for mark in AMR_MARKS if data.startswith(mark, start)), None)
    if head is None:
        raise UnsupportedAudio(f"the audio is AMR of several channels, not supported: {CONVERT}")
    sizes = AMR_MARKS[head]

    def size_at(at: int) -> int:
        return 1 + sizes[data[at] >> 3 & 15] if data[at] & 0x83 == 0 else 0

    body = start + len(head)
    frames, end, warnings = _side_by_side(data, body, size_at, lambda at: None, limits)
    return Recording("AMR", head + frames, end, "pyav", "amr", warnings=warnings)


def _side_by_side(
    data: bytes,
    at: int,
    size_at: Callable[[int], int],
    next_frame: Callable[[int], int | None],
    limits: AudioLimits,
) -> tuple[bytes, int, tuple[str, ...]]:
    """Frames from a byte on, the byte behind them, and warnings about what was left out."""
    spans: list[slice] = []  # of frames that touch
    count, skipped, warnings = 0, 0, []
    while at < len(data) and end_of_tags(data, at) < len(data):
        size = size_at(at)
        if size and at + size <= len(data):
            if spans and spans[-1].stop == at:
                spans[-1] = slice(spans[-1].start, at + size)
            else:
                spans.append(slice(at, at + size))
            count, at = count + 1, at + size
            check_seconds(count * _SHORTEST_FRAME_SECONDS, limits, counted=False)
            if count * _SHORTEST_FRAME_SECONDS > limits.counted_seconds:
                break
            continue
        behind = None if size else next_frame(at + 1)
        if size:
            warnings.append(
                f"its last frame is cut short: {len(data) - at:,} bytes at the end were not read"
            )
            at = len(data)
        if behind is None:
            break
        skipped, at = skipped + behind - at, behind
    if skipped:
        warnings.append(f"{skipped:,} bytes between its frames were not read")
    return b"".join(data[span] for span in spans), at, tuple(warnings)
