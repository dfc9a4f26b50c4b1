from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np
import pytest

from steering.audio.limits import AudioLimits
from steering.audio.ogg import open_ogg
from steering.errors import AudioError, UnsupportedAudio
from tests.steering.audio.files import encode, heard, noise

SOUND = noise(6.0)
VORBIS = encode(SOUND, container="OGG", subtype="VORBIS")
OPUS = encode(SOUND, container="OGG", subtype="OPUS")
KINDS = {"Vorbis": VORBIS, "Opus": OPUS}
LIMITS = AudioLimits()


def pages(data: bytes) -> list[bytearray]:
    starts = [match.start() for match in re.finditer(rb"OggS\x00", data)]
    return [bytearray(data[a:b]) for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def checksum(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return crc


def joined(changed: list[bytearray]) -> bytes:
    """The pages with the right checksums."""
    for page in changed:
        struct.pack_into("<I", page, 22, 0)
        struct.pack_into("<I", page, 22, checksum(bytes(page)))
    return b"".join(changed)


def moved(data: bytes, position: Callable[[int, bool], int]) -> bytes:
    """The file with other positions, by the own one and whether it is the last."""
    changed = pages(data)
    for page in changed:
        (at,) = struct.unpack_from("<q", page, 6)
        if at > 0:
            struct.pack_into("<q", page, 6, position(at, page is changed[-1]))
    return joined(changed)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> bytes:
    assert len(pages(KINDS[request.param])) > 4
    return KINDS[request.param]


def test_the_helpers_change_nothing(kind: bytes) -> None:
    assert moved(kind, lambda at, last: at) == kind
    assert heard(kind).submitted_seconds == pytest.approx(6.0, abs=1e-3)


@pytest.mark.parametrize(
    "position",
    [
        lambda at, last: 0 if last else at,
        lambda at, last: -1,
        lambda at, last: at // 3 if last else at,
        lambda at, last: at * 9 if last else at,
        lambda at, last: at // 3,
        lambda at, last: at * 3,
        lambda at, last: at + 10**9,
        lambda at, last: 0,
    ],
    ids=[
        "ends at 0",
        "none",
        "ends early",
        "ends late",
        "slow clock",
        "fast clock",
        "starts late",
        "all 0",
    ],
)
def test_wrong_positions_take_nothing_away(
    kind: bytes, position: Callable[[int, bool], int]
) -> None:
    right, clip = heard(kind), heard(moved(kind, position))
    assert clip.submitted_seconds >= right.submitted_seconds
    assert clip.submitted_seconds == pytest.approx(right.submitted_seconds, abs=0.15)
    size = len(right.samples)
    np.testing.assert_allclose(clip.samples[:size], right.samples, atol=1e-3)


def test_a_missing_page_is_told(kind: bytes) -> None:
    changed = pages(kind)
    del changed[3]
    clip = heard(b"".join(changed))
    assert 3 < clip.submitted_seconds < 5.5
    assert "1 of its OGG pages" in clip.warnings[0]


def test_a_damaged_page_is_told(kind: bytes) -> None:
    changed = pages(kind)
    changed[3][len(changed[3]) // 2] ^= 1
    clip = heard(b"".join(changed))
    assert 3 < clip.submitted_seconds < 5.5
    assert "damaged" in clip.warnings[0]


def test_a_page_cut_short_is_told(kind: bytes) -> None:
    clip = heard(kind[:-100])
    assert 3 < clip.submitted_seconds < 6
    assert "bytes" in clip.warnings[0]


def test_a_chain_is_heard_link_by_link(kind: bytes) -> None:
    clip = heard(kind + encode(noise(1.0, rate_hz=24_000), 24_000, container="OGG") + kind)
    assert clip.submitted_seconds == pytest.approx(13.0, abs=0.1)
    assert "3 recordings" in clip.warnings[-1]


def test_the_sound_of_several_streams_is_found(kind: bytes) -> None:
    """A video's stream beside it, as in an OGV file."""
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, 2, 0, 77, 0, 0, 1) + b"\x09\x80theora\x03\x02"
    more = struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 9, 77, 1, 0, 1) + b"\x05video"
    first, *rest = pages(kind)
    clip = heard(joined([first, bytearray(head), bytearray(more), *rest]))
    np.testing.assert_array_equal(clip.samples, heard(kind).samples)
    assert not clip.warnings


def test_flac_in_ogg_is_heard() -> None:
    flac = encode(noise(1.0), container="FLAC")
    packets = [b"\x7fFLAC\x01\x00\x00\x01" + flac[:42], *(flac[i : i + 40_000] for i in (42,))]
    changed = []
    for number, packet in enumerate(packets):
        sizes = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
        head = struct.pack("<4sBBqIIIB", b"OggS", 0, 2 * (number == 0), 0, 5, number, 0, len(sizes))
        changed.append(bytearray(head + sizes + packet))
    clip = heard(joined(changed))
    np.testing.assert_array_equal(clip.samples, heard(flac).samples)


@pytest.mark.parametrize(
    ("mark", "name"), [(b"Speex   1.2", "Speex"), (b"\x80theora\x03\x02", "Theora"), (b"x", "78")]
)
def test_other_codecs_are_refused_by_name(mark: bytes, name: str) -> None:
    head = struct.pack("<4sBBqIIIBB", b"OggS", 0, 2, 0, 7, 0, 0, 1, len(mark)) + mark
    with pytest.raises(UnsupportedAudio, match=f"not supported.*{name}"):
        open_ogg(joined([bytearray(head)]), 0, LIMITS)


def test_a_file_that_begins_in_the_middle_is_refused(kind: bytes) -> None:
    with pytest.raises(AudioError, match="no whole first page"):
        heard(b"".join(pages(kind)[3:]))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_samples_are_counted_as_the_decoder_counts_them(rate_hz: int, channels: int) -> None:
    for seconds in (0.1, 0.9, 2.3):
        samples = noise(seconds, rate_hz=rate_hz, channels=channels)
        data = encode(samples, rate_hz, container="OGG", subtype="VORBIS")
        assert open_ogg(data, 0, LIMITS).frames == len(samples)
        if rate_hz != 44_100:
            data = encode(samples, rate_hz, container="OGG", subtype="OPUS")
            assert open_ogg(data, 0, LIMITS).frames == len(samples)
