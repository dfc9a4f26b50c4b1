from __future__ import annotations

import struct

import numpy as np
import pytest

from steering.errors import AudioError, UnsupportedAudio
from tests.steering.audio.files import RATE_HZ, encode, heard, id3, noise

SAMPLES = noise(2.0)
KINDS = {
    "PCM_16": encode(SAMPLES),
    "PCM_24": encode(SAMPLES, subtype="PCM_24"),
    "FLOAT": encode(SAMPLES, subtype="FLOAT"),
    "ULAW": encode(SAMPLES, subtype="ULAW"),
    "IMA_ADPCM": encode(SAMPLES, subtype="IMA_ADPCM"),
    "RF64": encode(SAMPLES, container="RF64"),
}
WAV = KINDS["PCM_16"]


def with_size(wav: bytes, size: int) -> bytes:
    """The file whose header announces so many bytes of samples, 2**32 or more for `unknown`."""
    changed = bytearray(wav)
    if wav[:4] == b"RF64":
        struct.pack_into("<Q", changed, wav.index(b"ds64") + 16, size % 2**64)
    else:
        struct.pack_into("<I", changed, wav.index(b"data") + 4, size % 2**32)
        struct.pack_into("<I", changed, 4, 0)
    return bytes(changed)


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("size", "word"), [(0, "no samples"), (10**8, "cut short"), (-1, "length open")]
)
def test_an_unfinished_header_is_heard_to_the_end(name: str, size: int, word: str) -> None:
    clip = heard(with_size(KINDS[name], size))
    np.testing.assert_array_equal(clip.samples, heard(KINDS[name]).samples)
    assert len(clip.warnings) == 1
    assert word in clip.warnings[0]


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 0x7FFFF000])
def test_sizes_that_programs_write_to_pipes(size: int) -> None:
    clip = heard(with_size(WAV, size))
    assert clip.submitted_seconds == 2.0
    assert "length open" in clip.warnings[0]


def test_samples_behind_the_announced_ones_are_told_in_seconds() -> None:
    clip = heard(with_size(WAV, 32_000))
    assert clip.submitted_seconds == 1.0
    assert "1.00 s" in clip.warnings[0]


def test_a_file_cut_short_says_how_much_there_was() -> None:
    clip = heard(WAV[: 44 + 16_000])
    assert clip.submitted_seconds == 0.5
    assert "2.00 s" in clip.warnings[0]
    assert "0.50 s" in clip.warnings[0]


@pytest.mark.parametrize(
    "behind",
    [
        chunk(b"LIST", b"INFOISFT\x04\x00\x00\x00abc\x00"),
        chunk(b"id3 ", id3(100)) + chunk(b"bext", bytes(700)),
        chunk(b"junk", b"RIFF\x00\x10\x00\x00WAVEfmt "),
        id3(500),
        bytes(3_000),
        b"TAG" + bytes(125),
    ],
)
def test_chunks_tags_and_zeros_behind_are_no_sound(behind: bytes) -> None:
    clip = heard(WAV + behind)
    np.testing.assert_array_equal(clip.samples, heard(WAV).samples)
    assert not clip.warnings


def test_a_chunk_behind_an_odd_size_is_found_with_and_without_its_padding() -> None:
    odd = encode(noise(1.00005, rate_hz=20_000)[:, :1], 20_000, subtype="PCM_U8")
    body = odd[:-1] if len(odd) % 2 == 0 else odd
    for padding in (b"", b"\0"):
        clip = heard(body + padding + chunk(b"LIST", b"INFO"))
        assert not clip.warnings


def test_an_empty_file_is_refused_as_such() -> None:
    for behind in (b"", chunk(b"LIST", b"INFO")):
        with pytest.raises(AudioError, match="no samples"):
            heard(encode(np.zeros((0, 1), np.int16)) + behind)


def test_a_tag_in_front_is_passed() -> None:
    clip = heard(id3(4_000) + WAV)
    np.testing.assert_array_equal(clip.samples, heard(WAV).samples)


@pytest.mark.parametrize("size", [None, 0, -1])
def test_files_one_behind_the_other_are_heard(size: int | None) -> None:
    """As of programs that write a header in front of each piece of a stream."""
    piece = WAV if size is None else with_size(WAV, size)
    clip = heard(piece * 3)
    np.testing.assert_array_equal(clip.samples, np.tile(heard(WAV).samples, 3))
    assert "3 recordings" in clip.warnings[-1]


@pytest.mark.parametrize(
    ("tag", "name"), [(0x28F, "G.722"), (0x161, "WMA 2"), (0x2000, "AC-3"), (0x1234, "unknown")]
)
@pytest.mark.parametrize("extensible", [True, False])
def test_other_codecs_are_refused_by_name(tag: int, name: str, extensible: bool) -> None:
    layout = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, 1, RATE_HZ, 8_000, 1, 4)
    if extensible:
        layout += struct.pack("<HHIH", 22, 4, 4, tag) + bytes(14)
    chunks = chunk(b"fmt ", layout) + chunk(b"data", bytes(8_000))
    with pytest.raises(UnsupportedAudio, match=f"not supported: .*{name}.*{tag:04X}"):
        heard(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


@pytest.mark.parametrize(("tag", "bits"), [(1, 64), (1, 0), (3, 16), (3, 24)])
def test_samples_of_other_sizes_are_refused_by_name(tag: int, bits: int) -> None:
    layout = struct.pack("<HHIIHH", tag, 1, RATE_HZ, RATE_HZ * bits // 8, bits // 8, bits)
    chunks = chunk(b"fmt ", layout) + chunk(b"data", bytes(8_000))
    with pytest.raises(UnsupportedAudio, match=f"samples of {bits} bits"):
        heard(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def test_bw64_and_rifx_are_heard() -> None:
    rf64 = KINDS["RF64"]
    assert heard(b"BW64" + rf64[4:]).submitted_seconds == 2.0
    swapped = SAMPLES.astype(np.float32)
    big = struct.pack(">HHIIHH", 3, 1, RATE_HZ, 4 * RATE_HZ, 4, 32)
    body = swapped.astype(">f4").tobytes()
    chunks = b"fmt " + struct.pack(">I", 16) + big + b"data" + struct.pack(">I", len(body)) + body
    clip = heard(b"RIFX" + struct.pack(">I", 4 + len(chunks)) + b"WAVE" + chunks)
    np.testing.assert_allclose(clip.samples, swapped[:, 0], atol=1e-7)


@pytest.mark.parametrize("size", [12, 20, 40])
def test_a_header_cut_short_is_refused(size: int) -> None:
    with pytest.raises(AudioError, match="WAV file can't be read"):
        heard(WAV[:size])
