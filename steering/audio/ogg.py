"""OGG, page by page: which codec is in it, and what its packets hold.

libsndfile takes the length from the position that the last page gives, and leaves out pages whose
checksum is wrong without a word. So damaged and missing pages are told, samples are counted packet
by packet (ogg_packets.py), and positions that don't agree with them are written anew.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from steering.audio.chunks import FILE_MARKS
from steering.audio.flac import open_flac
from steering.audio.limits import CONVERT, AudioLimits, check_layout, check_seconds
from steering.audio.ogg_packets import Page, packets, read_layout
from steering.audio.recording import Recording
from steering.audio.tags import end_of_tags
from steering.errors import AudioError, UnsupportedAudio

_CAPTURE = b"OggS\x00"
_HEAD_BYTES = 27
_MOST_DAMAGED_PAGES = 10_000
_NONE_ENDS = -1  # position of a page on which no packet ends
_LONGEST_PAGE_SECONDS = 1.0  # more or less, of which the last may be trimmed
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_HEARD = {b"OpusHead": "Opus", b"\x01vorbis": "Vorbis", b"\x7fFLAC": "FLAC"}
_NOT_HEARD = {  # by the start of a stream's first packet
    b"Speex   ": "Speex",
    b"CELT    ": "CELT",
    b"PCM     ": "PCM in OGG",
    b"OggMIDI\x00": "MIDI",
    b"\x80theora": "Theora, a video without sound",
    b"OVP80": "VP8, a video without sound",
    b"BBCD\x00": "Dirac, a video without sound",
}


@dataclass(slots=True)
class _Chain:
    """The pages of one file, and what of it can't be read."""

    end: int
    pages: list[Page] = field(default_factory=list)
    skipped_bytes: int = 0


def open_ogg(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The OGG file at `start`, up to the first page of a next one.

    Raises AudioTooLarge for more seconds than allowed, UnsupportedAudio for other codecs than
    Vorbis, Opus and FLAC, AudioError where there is no whole first page.
    """
    chain = _chain(data, start)
    serial, codec, tracks = _audio_stream(data, chain.pages)
    pages = [page for page in chain.pages if page.serial == serial]
    warnings = list(_losses(chain, pages))
    if tracks > 1:
        warnings.append(f"it holds {tracks} sound tracks; the first is heard")
    if codec == "FLAC":
        native = b"".join(data[page.body : page.end] for page in pages)
        recording = open_flac(native[9:], 0, limits)
        recording = replace(recording, container="FLAC in OGG", end=chain.end)
    else:
        recording = _counted(data, codec, pages, chain.end, limits)
    return replace(recording, warnings=(*warnings, *recording.warnings))


def _chain(data: bytes, start: int) -> _Chain:
    """The pages from `start` on, up to those that begin streams of a next file."""
    chain, at, heads, damaged_pages = _Chain(start), start, True, 0
    while damaged_pages <= _MOST_DAMAGED_PAGES:
        page = _page(data, at)
        if page is not None:
            if page.begins_stream and not heads:
                break
            heads = page.begins_stream
            chain.pages.append(page)
            chain.end = at = page.end
            continue
        damaged = data.startswith(_CAPTURE, at)
        if not damaged and chain.end == at and _something_else(data, at):
            break
        behind = data.find(_CAPTURE, at + 1)
        if behind < 0:
            chain.end = len(data) if damaged else at
            chain.skipped_bytes += chain.end - at
            break
        damaged_pages += damaged
        chain.skipped_bytes += behind - at
        at = behind
    if not chain.pages or not chain.pages[0].begins_stream:
        raise AudioError(
            "the OGG file has no whole first page: it is damaged or cut short; check that it plays,"
            " and send it whole"
        )
    return chain


def _something_else(data: bytes, at: int) -> bool:
    """Whether a tag, the end or another container's mark stands behind a page."""
    return end_of_tags(data, at) > at or at >= len(data) or data.startswith(FILE_MARKS, at)


def _page(data: bytes, at: int) -> Page | None:
    """The page at a byte, None if it is none, not whole, or damaged."""
    head = data[at : at + _HEAD_BYTES]
    if not head.startswith(_CAPTURE) or len(head) < _HEAD_BYTES:
        return None
    flags, position, serial, number, checksum, count = struct.unpack("<BqIIIB", head[5:])
    body = at + _HEAD_BYTES + count
    sizes = data[at + _HEAD_BYTES : body]
    end = body + sum(sizes)
    if end > len(data) or checksum != _checksum(
        data[at : at + 22] + bytes(4) + data[at + 26 : end]
    ):
        return None
    return Page(at, body, end, flags, position, serial, number, sizes)


def _checksum(page: bytes) -> int:
    """OGG's CRC: zlib's polynomial, but with the bits of each byte in the other order."""
    crc = zlib.crc32(page.translate(_BITS_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _audio_stream(data: bytes, pages: Sequence[Page]) -> tuple[int, str, int]:
    """Serial number and codec of the stream that is heard, and how many could be."""
    heads = [(p.serial, data[p.body : p.body + 8]) for p in pages if p.begins_stream]
    streams = [
        (serial, codec)
        for serial, head in heads
        for mark, codec in _HEARD.items()
        if head.startswith(mark)
    ]
    if streams:
        return *streams[0], len(streams)
    names = [
        name for _, head in heads for mark, name in _NOT_HEARD.items() if head.startswith(mark)
    ]
    name = names[0] if names else f"one whose first packet starts with {heads[0][1].hex()}"
    raise UnsupportedAudio(
        f"the audio is OGG with a codec that is not supported: {name}; Vorbis, Opus and FLAC are:"
        f" {CONVERT}"
    )


def _losses(chain: _Chain, pages: Sequence[Page]) -> Iterator[str]:
    """What of a file was not read."""
    missing = sum(max(0, b.number - a.number - 1) for a, b in pairwise(pages))
    if missing:
        yield f"{missing:,} of its OGG pages are damaged or missing and were not heard"
    if chain.skipped_bytes:
        yield f"{chain.skipped_bytes:,} bytes between or behind its whole OGG pages were not read"


def _counted(
    data: bytes, codec: str, pages: Sequence[Page], end: int, limits: AudioLimits
) -> Recording:
    """A stream of Vorbis or Opus, its positions those that its packets have."""
    stream = packets(data, pages)
    layout = read_layout(codec, stream)
    check_layout(layout.channels, layout.rate_hz, limits)
    ends, total = [_NONE_ENDS] * len(pages), 0
    for index, packet in stream:
        seconds = (total - layout.skipped) / layout.clock_hz - _LONGEST_PAGE_SECONDS
        check_seconds(seconds, limits, counted=False)
        if seconds > limits.counted_seconds and ends[index] == _NONE_ENDS:  # a page begins
            pages, ends = pages[:index], ends[:index]
            break
        total += layout.samples(packet)
        ends[index] = total
    total, ends = _trimmed(pages, ends, total)
    total -= layout.skipped
    check_seconds(total / layout.clock_hz, limits)
    payload = b"".join(
        data[page.start : page.end] if ends[i] in (page.position, _NONE_ENDS) else
        _moved(data, page, ends[i])
        for i, page in enumerate(pages)
    )  # fmt: skip
    frames = max(0, total * layout.rate_hz // layout.clock_hz)
    return Recording("OGG", payload, end, frames=frames)


def _trimmed(pages: Sequence[Page], ends: list[int], total: int) -> tuple[int, list[int]]:
    """Samples of the sound, and the position of each page; -1 for those that stay as they are.

    Positions may all be off by the same: a sound that was joined in the middle, or whose start is
    to be left out. The last may be smaller, so that the end is left out. Others are wrong.
    """
    sounding = [i for i, end in enumerate(ends) if end > 0]
    if not sounding:
        return total, ends
    last, before = sounding[-1], sounding[:-1]
    offsets = {pages[i].position - ends[i] for i in before} or {
        max(0, pages[last].position - ends[last])
    }
    offset = next(iter(offsets))
    trimmed = ends[last] + offset - pages[last].position
    page_samples = ends[last] - (ends[before[-1]] if before else 0)
    if len(offsets) > 1 or not 0 <= trimmed <= page_samples or -offset > ends[sounding[0]]:
        return total, ends
    if offset <= 0:
        return total - trimmed + offset, [_NONE_ENDS] * len(ends)
    ends[last] -= trimmed
    return total - trimmed, ends


def _moved(data: bytes, page: Page, position: int) -> bytes:
    """A page with another position, and the checksum of that."""
    moved = bytearray(data[page.start : page.end])
    struct.pack_into("<q", moved, 6, position)
    struct.pack_into("<I", moved, 22, 0)
    struct.pack_into("<I", moved, 22, _checksum(bytes(moved)))
    return bytes(moved)
