"""Chunks of a file, and sizes of samples that are held against what is there."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from steering.audio.tags import end_of_tags
from steering.errors import AudioError

FILE_MARKS = (b"RIFF", b"RF64", b"BW64", b"RIFX", b"FORM", b"caff", b"OggS", b"fLaC", b".snd")
LEFT_OPEN = -1  # a size that the writer of a file did not know


class Chunk(NamedTuple):
    """A part of a file."""

    name: bytes
    body: int  # byte
    size: int  # as announced


def chunks(data: bytes, at: int, size_format: str) -> Iterator[Chunk]:
    """Chunks from a byte on, the last of which may announce more than there is.

    Each is a name of four characters, a size, and so many bytes, made even where sizes are of 4.
    """
    size_bytes = struct.calcsize(size_format)
    while at + 4 + size_bytes <= len(data):
        name = data[at : at + 4]
        (size,) = struct.unpack_from(size_format, data, at + 4)
        if not all(0x20 <= byte < 0x7F for byte in name) or name.startswith(FILE_MARKS):
            return
        body = at + 4 + size_bytes
        yield Chunk(name, body, size)
        if size < 0 or body + size > len(data):
            return
        at = body + size + (size % 2 if size_bytes == 4 else 0)


def head_chunks(data: bytes, at: int, last: bytes, size_format: str) -> dict[bytes, Chunk]:
    """The first chunk of each name, up to that of the samples, which is looked for if need be."""
    head: dict[bytes, Chunk] = {}
    for chunk in chunks(data, at, size_format):
        head.setdefault(chunk.name, chunk)
        at = chunk.body
        if chunk.name == last:
            return head
    body = data.find(last, at) + 4 + struct.calcsize(size_format)
    if at < body <= len(data):  # something that is no chunk stands before
        (size,) = struct.unpack_from(size_format, data, body - struct.calcsize(size_format))
        head[last] = Chunk(last, body, size)
    return head


def with_fields(data: bytes, start: int, end: int, fields: Sequence[tuple[int, str, int]]) -> bytes:
    """Some bytes with numbers in them replaced, by where they stand in `data` and their format."""
    if all(struct.unpack_from(code, data, at)[0] == value for at, code, value in fields):
        return data[start:end]
    mended = bytearray(data[start:end])
    for at, code, value in fields:
        struct.pack_into(code, mended, at - start, value)
    return bytes(mended)


def end_of_chunks(data: bytes, at: int, size_format: str) -> int:
    """The byte behind the whole chunks that begin at a byte, or behind one that pads to two."""
    for start in (at, at + 1):
        end = start
        for chunk in chunks(data, start, size_format):
            if not 0 <= chunk.size <= len(data) - chunk.body:
                break
            end = chunk.body + chunk.size
        if end > start:
            return end
    return at


def end_of_samples(
    data: bytes, body: int, announced: int, size_format: str, bytes_per_second: float
) -> tuple[int, str | None]:
    """Where the samples that begin at `body` end, and a warning if that is not as announced."""
    available = len(data) - body
    if announced < 0:
        return len(data), (
            "its header leaves the length open: heard to the end of the file; whether more was"
            " recorded can't be told"
        )
    if announced > available:
        counts = (f"{announced:,} bytes", f"{available:,} bytes")
        if bytes_per_second > 0:
            counts = (
                f"{announced / bytes_per_second:,.2f} s",
                f"{available / bytes_per_second:,.2f} s",
            )
        return len(data), (
            f"its header announces {counts[0]} of samples, and the file ends after {counts[1]}: it"
            " is cut short, or was not finished"
        )
    follows = end_of_tags(data, end_of_chunks(data, body, size_format)) < len(data)
    if announced == 0 and follows and not data.startswith(FILE_MARKS, body):
        return len(data), (
            f"its header announces no samples, and {available:,} bytes follow: the recorder did not"
            " finish the file; heard to the end"
        )
    return body + announced, None


def cut_short(container: str, what: str) -> AudioError:
    """The error of a file whose header is not whole."""
    return AudioError(
        f"the {container} file can't be read: {what}; it is damaged or cut short: check that it"
        " plays, and send it whole"
    )
