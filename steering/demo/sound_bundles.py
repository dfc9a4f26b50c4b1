"""Recordings inside the bundles in which some packages keep them: Qt's resources, OpenTTD's sounds.

Sources: the formats of Qt's rcc and of OpenTTD's .cat files.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

Named = tuple[str, bytes]  # a recording's name and its file


def recordings_in(path: Path) -> Iterator[Named]:
    """Names and bytes of a bundle's recordings; any other file is one recording."""
    data, reader = path.read_bytes(), READERS.get(path.suffix)
    return reader(data) if reader else iter([(path.name, data)])


def _qt_resource(data: bytes) -> Iterator[Named]:
    """The files of a resource, but for compressed ones: recordings are stored plain."""
    version, tree, body, names = struct.unpack_from(">4I", data, 4)
    nodes = [0]
    while nodes:
        at = tree + (22 if version > 1 else 14) * nodes.pop()
        name, flags, first, second = struct.unpack_from(">IHII", data, at)
        if flags & 2:  # a folder: how many are in it, and the first of them
            nodes += range(second, second + first)
        elif not flags:
            letters, start = struct.unpack_from(">H", data, names + name)[0], names + name + 6
            size = struct.unpack_from(">I", data, body + second)[0]
            text = data[start : start + 2 * letters].decode("utf-16-be")
            yield text, data[body + second + 4 :][:size]


def _openttd_sounds(data: bytes) -> Iterator[Named]:
    """The WAV files of a sound set; a name tells what is heard, by whom, and its licence."""
    count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
    for index in range(count):
        at = struct.unpack_from("<I", data, 8 * index)[0] & 0x7FFFFFFF
        start = at + 1 + data[at]
        size = 8 + struct.unpack_from("<I", data, start + 4)[0]
        yield data[at + 1 : start].rstrip(b"\0").decode("latin-1"), data[start : start + size]


READERS = {".rcc": _qt_resource, ".cat": _openttd_sounds}
