"""MPEG audio (MP1, MP2, MP3), frame by frame: what is there, not what a header says of it.

libsndfile takes an MP3's length from its first frame, or from the file's size, and reads no
further. So frames are counted here, up to the first of another kind or of another file, and what
stands between them is left out.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from steering.audio.chunks import FILE_MARKS
from steering.audio.limits import AudioLimits, check_seconds
from steering.audio.recording import Recording
from steering.audio.tags import end_of_tag, end_of_tags

_KBPS = {  # by whether it is MPEG 1, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SECOND = bytes(b for b in range(0xE0, 0x100) if b >> 3 & 3 != 1 and b >> 1 & 3)
_THIRD = bytes(b for b in range(0x100) if b >> 4 != 15 and b >> 2 & 3 != 3)
_HEAD = re.compile(b"\xff[%b][%b]." % (re.escape(_SECOND), re.escape(_THIRD)), re.DOTALL)
_MOST_SEARCHES = 100_000  # for a frame, in a file that is full of what looks like some
_MOST_GAPS = 1_000
_LARGEST_FREE_FRAME = 8_192
_DECODER_DELAY = 529  # samples
_LONGEST_PADDING = 2_880  # samples: more is nonsense
_TRIMMED_FRAMES = 6  # at most, of delay and padding

Kind = tuple[int, int, int, int]  # version, layer, rate, channels: the same in a recording


@dataclass(frozen=True, slots=True)
class FrameHead:
    """What the head of a frame says."""

    version: int  # the two bits: 3 for MPEG 1, 2 for MPEG 2, 0 for MPEG 2.5
    layer: int
    rate_hz: int
    channels: int
    samples: int  # per channel
    size: int  # bytes, 0 where the head leaves it open

    @property
    def kind(self) -> Kind:
        """What is the same in all frames of a recording."""
        return self.version, self.layer, self.rate_hz, self.channels


@dataclass(slots=True)
class _Walk:
    """Frames of one kind."""

    first: FrameHead
    count: int = 0
    info: bytes = b""  # the frame in front that holds no sound, but says how much there is
    spans: list[tuple[int, int]] = field(default_factory=list)  # bytes of frames side by side
    skipped_bytes: int = 0
    largest: int = 0  # bytes of a frame
    cut_bytes: int = 0  # of a last frame that is not whole

    def add(self, start: int, end: int) -> None:
        self.count += 1
        self.largest = max(self.largest, end - start)
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1] = (self.spans[-1][0], end)
        else:
            self.spans.append((start, end))


@functools.lru_cache(4096)
def _parse(second: int, third: int, fourth: int) -> FrameHead | None:
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    if second < 0xE0 or version == 1 or layer == 4 or third >> 4 == 15 or third >> 2 & 3 == 3:
        return None
    rate_hz = _RATES[version][third >> 2 & 3]
    bits = 1000 * _KBPS[version == 3, layer][third >> 4]
    padding = third >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    if layer == 1:
        size = (12 * bits // rate_hz + padding) * 4
    else:
        size = samples // 8 * bits // rate_hz + padding
    channels = 1 if fourth >> 6 == 3 else 2
    return FrameHead(version, layer, rate_hz, channels, samples, size if bits else 0)


def frame_head(data: bytes, at: int) -> FrameHead | None:
    """The head of the frame at a byte, None if there is none; its size is found, if left open."""
    if len(data) < at + 4 or data[at] != 0xFF:
        return None
    head = _parse(data[at + 1], data[at + 2], data[at + 3])
    if head is None or head.size:
        return head
    same = re.compile(b"\xff%b[%b]." % (
        re.escape(data[at + 1 : at + 2]), re.escape(bytes((data[at + 2] & ~2, data[at + 2] | 2)))
    ), re.DOTALL)  # fmt: skip
    after = same.search(data, at + 24, at + _LARGEST_FREE_FRAME)
    end = after.start() if after else len(data)
    return FrameHead(*head.kind, head.samples, end - at) if end - at < _LARGEST_FREE_FRAME else None


def first_frame(data: bytes, start: int, kind: Kind | None = None) -> int | None:
    """The byte from `start` on at which frames of a kind stand side by side; None for none.

    Of no given kind there must be three: in other data single ones look like it by chance.
    """
    for number, match in enumerate(_HEAD.finditer(data, start)):
        if number > _MOST_SEARCHES:
            break
        head = frame_head(data, match.start())
        if head is None or (kind is not None and head.kind != kind):
            continue
        if are_frames(data, match.start(), strict=kind is None):
            return match.start()
    return None


def are_frames(data: bytes, at: int, count: int = 3, *, strict: bool = False) -> bool:
    """Whether so many frames of one kind stand side by side, or fewer up to the file's end."""
    first = head = frame_head(data, at)
    for number in range(count):
        if head is None or first is None or head.kind != first.kind:
            return False
        at += head.size
        if at > len(data) or (not strict and end_of_tags(data, at) == len(data)):
            return not strict and (at <= len(data) or number > 0)
        head = frame_head(data, at)
    return True


def open_mpeg(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The recording whose first frame stands at `start`.

    It ends before frames of another kind, before the first frame of another file, and where no
    frame is found any more. Raises AudioTooLarge for more seconds than allowed.
    """
    first = frame_head(data, start)
    assert first is not None
    walk, at = _Walk(first), start
    trims = _trims(data, at, first)
    if trims is not None:
        walk.info = data[at : at + first.size] if trims else b""
        at += first.size
    for head, begin in _frames(data, at, walk):
        walk.add(begin, begin + head.size)
        at = begin + head.size
        seconds = (walk.count - _TRIMMED_FRAMES) * head.samples / head.rate_hz
        check_seconds(seconds, limits, counted=False)
        if seconds > limits.counted_seconds:
            break
    return _recording(data, walk, at + walk.cut_bytes)


def _frames(data: bytes, at: int, walk: _Walk) -> Iterator[tuple[FrameHead, int]]:
    """Frames of the walk's kind and their bytes, those behind bytes that are none as well."""
    kind, searches = walk.first.kind, 0
    while at < len(data):
        head = frame_head(data, at)
        if head is not None and head.kind == kind:
            if walk.count and _trims(data, at, head) is not None:
                return
            if at + head.size > len(data):
                walk.cut_bytes = len(data) - at
                return
            yield head, at
            at += head.size
            continue
        behind = _resynchronised(data, at, walk.first)
        searches += 1
        if behind is None or searches > _MOST_GAPS:
            return
        walk.skipped_bytes += len(data[at:behind].strip(b"\0"))
        at = behind


def _resynchronised(data: bytes, at: int, first: FrameHead) -> int | None:
    """Where frames of the same kind go on, None if a tag or another recording comes first."""
    while data[at : at + 1] == b"\0":
        at += 1
    if end_of_tag(data, at) > at or are_frames(data, at, 2) or data.startswith(FILE_MARKS, at):
        head = frame_head(data, at)
        return at if head is not None and head.kind == first.kind else None
    return first_frame(data, at, first.kind)


def _trims(data: bytes, at: int, head: FrameHead) -> bool | None:
    """Whether an information frame says how to trim the sound; None for a frame of sound."""
    if head.layer != 3:
        return None
    if data[at + 36 : at + 40] == b"VBRI":
        return False
    mark = at + _info_offset(head)
    if data[mark : mark + 4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(data[mark + 4 : mark + 8], "big")
    encoder = mark + _encoder_offset(flags)
    if not flags & 1 or flags > 15 or encoder + 24 > at + head.size or not data[encoder]:
        return False
    return max(_delay_and_padding(data, encoder)) <= _LONGEST_PADDING


def _info_offset(head: FrameHead) -> int:
    """Bytes from a frame's start to its Xing mark: the head and the side information."""
    if head.version == 3:
        return 4 + (17 if head.channels == 1 else 32)
    return 4 + (9 if head.channels == 1 else 17)


def _encoder_offset(flags: int) -> int:
    """Bytes from a Xing mark to what the encoder says of itself: past mark, flags and fields."""
    return 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3)


def _delay_and_padding(data: bytes | bytearray, encoder: int) -> tuple[int, int]:
    """Samples that the encoder put before and behind the sound."""
    bits = int.from_bytes(data[encoder + 21 : encoder + 24], "big")
    return bits >> 12, bits & 0xFFF


def _recording(data: bytes, walk: _Walk, end: int) -> Recording:
    warnings = []
    if walk.skipped_bytes:
        warnings.append(f"{walk.skipped_bytes:,} bytes between its MP3 frames were not read")
    if walk.cut_bytes:
        warnings.append(
            f"its last MP3 frame is cut short: {walk.cut_bytes:,} bytes at the end were not read"
        )
    audio, zeros = b"".join(data[start:stop] for start, stop in walk.spans), 0
    if walk.info:
        info, frames = _mended(walk, len(audio))
        audio = info + audio
    else:  # libsndfile will divide the size of the file by that of its first frame
        frames = walk.count * walk.first.samples
        zeros = max(0, (walk.count + 2) * walk.largest - len(audio))
    return Recording("MP3", audio, end, frames=frames, zeros=zeros, warnings=tuple(warnings))


def _mended(walk: _Walk, audio_bytes: int) -> tuple[bytes, int]:
    """The information frame with the true count of frames, and the samples behind the trimming."""
    frame = bytearray(walk.info)
    mark = _info_offset(walk.first)
    flags = int.from_bytes(frame[mark + 4 : mark + 8], "big")
    encoder = mark + _encoder_offset(flags)
    announced = int.from_bytes(frame[mark + 8 : mark + 12], "big")
    struct.pack_into(">I", frame, mark + 8, walk.count)
    if flags & 2:
        struct.pack_into(">I", frame, mark + 12, len(frame) + audio_bytes)
    delay, padding = _delay_and_padding(frame, encoder)
    if abs(announced - walk.count) > 1:  # the last frame is another: it has no such padding
        padding = 0
        frame[encoder + 22] &= 0xF0
        frame[encoder + 23] = 0
    trimmed = delay + _DECODER_DELAY + max(0, padding - _DECODER_DELAY)
    return bytes(frame), max(0, walk.count * walk.first.samples - trimmed)
