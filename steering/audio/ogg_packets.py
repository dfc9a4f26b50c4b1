"""Packets of an OGG stream, and the samples in each: Vorbis's and Opus's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from steering.errors import AudioError

_OPUS_CLOCK_HZ = 48_000
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_OPUS_SAMPLES = (*(480, 960, 1920, 2880) * 3, *(480, 960) * 2, *(120, 240, 480, 960) * 4)
_LONGEST_OPUS_PACKET = 5_760  # samples
_MODE_BITS = 41  # of a mode in Vorbis's setup: block flag, window, transform, mapping


class Page(NamedTuple):
    """A whole page with the right checksum."""

    start: int  # byte
    body: int
    end: int
    flags: int
    position: int  # in samples, where the last packet that ends on the page ends
    serial: int  # of the stream
    number: int
    sizes: bytes  # of the segments

    @property
    def begins_stream(self) -> bool:
        """Whether it is its stream's first page."""
        return bool(self.flags & 2)


class Layout(NamedTuple):
    """What a stream's first packets say, and the function that counts samples in the others."""

    channels: int
    rate_hz: int  # of what libsndfile gives
    clock_hz: int  # of positions
    skipped: int  # samples at the start that are not part of the sound
    samples: Callable[[bytes], int]  # of a packet


def packets(data: bytes, pages: Sequence[Page]) -> Iterator[tuple[int, bytes]]:
    """Whole packets, each with the index of the page on which it ends."""
    packet, whole, number = bytearray(), True, -1
    for index, page in enumerate(pages):
        whole = not page.flags & 1 or (bool(packet) and page.number == number + 1)
        if not page.flags & 1:
            packet.clear()
        at, number = page.body, page.number
        for size in page.sizes:
            packet += data[at : at + size]
            at += size
            if size < 255:
                if whole:
                    yield index, bytes(packet)
                packet.clear()
                whole = True


def read_layout(codec: str, stream: Iterator[tuple[int, bytes]]) -> Layout:
    """The layout of Opus or Vorbis; takes the head packets off `stream`."""
    heads = [packet for _, packet in islice(stream, 2 if codec == "Opus" else 3)]
    if codec == "Opus" and len(heads) == 2 and len(heads[0]) >= 19:
        return _opus(heads[0])
    if codec == "Vorbis" and len(heads) == 3 and len(heads[0]) >= 30:
        return _vorbis(heads[0], heads[2])
    raise AudioError(
        f"the {codec} file ends in its header: it is damaged or cut short; check that it plays, and"
        " send it whole"
    )


def _opus(head: bytes) -> Layout:
    rate_hz = int.from_bytes(head[12:16], "little")
    rate_hz = rate_hz if rate_hz in _OPUS_RATES else _OPUS_CLOCK_HZ
    skipped = int.from_bytes(head[10:12], "little")
    return Layout(head[9], rate_hz, _OPUS_CLOCK_HZ, skipped, _opus_samples)


def _opus_samples(packet: bytes) -> int:
    if not packet:
        return 0
    code = packet[0] & 3
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    return min(frames * _OPUS_SAMPLES[packet[0] >> 3], _LONGEST_OPUS_PACKET)


def _vorbis(head: bytes, setup: bytes) -> Layout:
    rate_hz = int.from_bytes(head[12:16], "little")
    blocks = (1 << (head[28] & 15), 1 << (head[28] >> 4))
    flags = _vorbis_block_flags(setup)
    mode_mask = (1 << (len(flags) - 1).bit_length()) - 1
    previous = 0

    def samples(packet: bytes) -> int:
        nonlocal previous
        mode = packet[0] >> 1 & mode_mask if packet else len(flags)
        if not packet or packet[0] & 1 or mode >= len(flags):
            return 0
        block = blocks[flags[mode]]
        count = (previous + block) // 4 if previous else 0
        previous = block
        return count

    return Layout(head[11], rate_hz, rate_hz, 0, samples)


def _vorbis_block_flags(setup: bytes) -> list[int]:
    """Of each mode, whether its blocks are the long ones.

    The modes are the last of the setup, and what is before them takes a Vorbis decoder to read: so
    they are read from the end, as long as they are modes, and their number stands before them.
    """
    bits = int.from_bytes(setup, "little")
    at = bits.bit_length() - 1  # the last bit set frames the packet
    flags: list[int] = []
    modes: list[int] = []
    while len(flags) < 64 and at >= _MODE_BITS + 6:
        at -= _MODE_BITS
        mode = bits >> at
        if mode >> 1 & 0xFFFFFFFF or mode >> 33 & 0xFF > 63:
            break
        flags.insert(0, mode & 1)
        if (bits >> at - 6 & 63) + 1 == len(flags):
            modes = list(flags)
    if not modes:
        raise AudioError(
            "the Vorbis file's header is damaged: it has no modes; check that it plays, and send it"
            " again"
        )
    return modes
