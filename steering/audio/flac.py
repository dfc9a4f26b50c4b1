"""FLAC, frame by frame: its header may leave the length open, or lie.

libsndfile reads as many samples as the header announces, and fails over what stands behind the
last frame. So the frames are followed by their heads, each of which has a number and a checksum.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from steering.audio.chunks import FILE_MARKS
from steering.audio.limits import AudioLimits, check_layout, check_seconds
from steering.audio.mpeg import are_frames
from steering.audio.recording import Recording
from steering.audio.tags import end_of_tag, end_of_tags
from steering.errors import AudioError

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_SECOND_FILE = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_MOST_OTHERS = 100_000  # marks of a frame that begin none: by chance one in 32 KB
_SIZES = {1: 192, **{n: 144 << n for n in range(2, 6)}, **{n: 1 << n for n in range(8, 16)}}


class StreamInfo(NamedTuple):
    """What the header says."""

    block_size: int
    rate_hz: int
    channels: int
    frames: int  # sample frames of the file, 0 for unknown
    largest: int  # bytes of a frame, 0 for unknown
    audio: int  # the byte at which the first frame begins


class FlacFrame(NamedTuple):
    """Where a frame stands in the file and in the sound."""

    start: int  # byte
    sample: int
    size: int  # samples


def open_flac(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The FLAC file at `start`, with the length that its frames have.

    Raises AudioTooLarge for more seconds than allowed, AudioError where no frame is found.
    """
    info = _stream_info(data, start)
    check_layout(info.channels, info.rate_hz, limits)
    second = _SECOND_FILE.search(data, info.audio)
    stop = second.start() if second else len(data)
    first, last, stop = _first_and_last(data, info, stop, limits)
    warnings = []
    end, total = _frame_end(data, last, stop, info), last.sample + last.size - first.sample
    if end is None:
        total -= last.size
        warnings.append(
            f"the {stop - last.start:,} bytes behind its last whole FLAC frame are damaged or cut"
            " short, and were not read"
        )
    if total == 0:
        raise _no_frame()
    if total < min(info.frames, limits.counted_seconds * info.rate_hz):
        warnings.append(
            f"its header announces {info.frames / info.rate_hz:,.2f} s, and"
            f" {total / info.rate_hz:.2f} s are there"
        )
    payload = bytearray(data[start : last.start if end is None else end])
    layout = int.from_bytes(payload[18:26], "big") >> 36 << 36 | total
    payload[18:26] = layout.to_bytes(8, "big")
    return Recording("FLAC", bytes(payload), end or stop, frames=total, warnings=tuple(warnings))


def _stream_info(data: bytes, start: int) -> StreamInfo:
    """The header of the file at `start`. Raises AudioError if it is not whole."""
    block = data[start + 8 : start + 42]
    at, last = start + 4, False
    while not last and at + 4 <= len(data):
        last = data[at] >> 7 == 1
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    if len(block) < 34 or data[start + 4] & 0x7F or not last or at >= len(data):
        raise AudioError("the FLAC file ends in its header: it is cut short; send it whole")
    layout = int.from_bytes(block[10:18], "big")
    return StreamInfo(
        block_size=int.from_bytes(block[2:4], "big"),
        rate_hz=layout >> 44,
        channels=(layout >> 41 & 7) + 1,
        frames=layout & (1 << 36) - 1,
        largest=int.from_bytes(block[7:10], "big"),
        audio=at,
    )


def _first_and_last(
    data: bytes, info: StreamInfo, stop: int, limits: AudioLimits
) -> tuple[FlacFrame, FlacFrame, int]:
    """The first frame, the last of those that go on where the one before it ends, and the byte at
    which to stop: what is beyond the seconds that are counted is not looked at.
    """
    first = last = None
    others = 0
    for match in _SYNC.finditer(data, info.audio, stop):
        head = _frame_head(data, match.start(), info)
        if head is None or (last is not None and head.sample != last.sample + last.size):
            others += 1
            if others > _MOST_OTHERS:
                break
            continue
        if first and last and head.sample - first.sample > limits.counted_seconds * info.rate_hz:
            return first, last, head.start
        last = head
        first = first or head
        seconds = (last.sample + last.size - first.sample) / info.rate_hz
        if seconds > limits.max_seconds:
            announced = info.frames / info.rate_hz
            check_seconds(max(announced, seconds), limits, counted=announced >= seconds)
    if first is None or last is None:
        raise _no_frame()
    return first, last, stop


def _no_frame() -> AudioError:
    return AudioError(
        "the FLAC file has no whole frame behind its header: it is damaged or cut short; check that"
        " it plays, and send it whole"
    )


def _frame_head(data: bytes, start: int, info: StreamInfo) -> FlacFrame | None:
    """The frame at a byte; None if the head's checksum or a field says that it is none."""
    head = data[start : start + 16]
    if len(head) < 16:
        head += bytes(16 - len(head))
    block, rate = head[2] >> 4, head[2] & 15
    if block == 0 or rate == 15 or head[3] >> 4 > 10 or head[3] & 1:
        return None
    lead = 8 - (head[4] ^ 0xFF).bit_length()  # ones in front: bytes of the number, 0 for one byte
    if lead == 1 or lead > 7:
        return None
    at, number = 5, head[4] & (0x7F >> lead)
    for byte in head[5 : 4 + max(lead, 1)]:
        number = number << 6 | byte & 0x3F
        at += 1
    size = _SIZES.get(block, 0)
    if block in (6, 7):
        size = int.from_bytes(head[at : at + block - 5], "big") + 1
        at += block - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _crc(head[:at], _CRC8, 8) != head[at]:
        return None
    variable = head[1] & 1
    return FlacFrame(start, number if variable else number * info.block_size, size)


def _frame_end(data: bytes, frame: FlacFrame, stop: int, info: StreamInfo) -> int | None:
    """The byte behind a last frame, None if it is not whole.

    There its checksum is right. By chance it is so within the frame as well, so that the end, a tag
    or another file must follow.
    """
    largest = info.largest or frame.size * info.channels * 5 + 64
    crc = 0
    for at in range(frame.start, min(stop, frame.start + largest)):
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ data[at]]
        if crc == 0 and at > frame.start + 6 and _something_else(data, at + 1, stop):
            return at + 1
    return None


def _something_else(data: bytes, at: int, stop: int) -> bool:
    """Whether the end, a tag or another file stands at a byte."""
    return (
        end_of_tags(data, at) in (stop, len(data))
        or end_of_tag(data, at) > at
        or data.startswith(FILE_MARKS, at)
        or are_frames(data, at, strict=True)
    )


def _crc(data: bytes, table: tuple[int, ...], bits: int) -> int:
    crc, mask = 0, (1 << bits) - 1
    for byte in data:
        crc = (crc << 8 & mask) ^ table[(crc >> bits - 8) ^ byte]
    return crc


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    mask, table = (1 << bits) - 1, []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> bits - 1 & 1 else 0)
        table.append(crc & mask)
    return tuple(table)


_CRC8, _CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)
