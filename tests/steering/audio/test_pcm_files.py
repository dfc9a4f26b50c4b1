from __future__ import annotations

import struct

import numpy as np
import pytest

from steering.errors import AudioError, UnsupportedAudio
from tests.steering.audio.files import encode, heard, noise

SAMPLES = noise(2.0)
KINDS = {name: encode(SAMPLES, container=name) for name in ("AIFF", "CAF", "AU", "W64")}
SIZES = {  # where the size of the samples stands, its format, and the bytes that it counts besides
    "AIFF": (KINDS["AIFF"].index(b"SSND") + 4, ">I", 8),
    "CAF": (KINDS["CAF"].index(b"data") + 4, ">q", 4),
    "AU": (8, ">I", 0),
    "W64": (KINDS["W64"].index(b"data\xf3") + 16, "<q", 24),
}


def with_size(name: str, size: int) -> bytes:
    at, code, besides = SIZES[name]
    changed = bytearray(KINDS[name])
    struct.pack_into(code, changed, at, size + besides if size >= 0 else size % 2**32)
    return bytes(changed)


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_heard(name: str) -> None:
    clip = heard(KINDS[name])
    np.testing.assert_array_equal(clip.samples, heard(encode(SAMPLES)).samples)
    assert not clip.warnings


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT", "ULAW", "ALAW"])
def test_other_samples_are_heard(name: str, subtype: str) -> None:
    clip = heard(encode(SAMPLES, container=name, subtype=subtype))
    assert clip.submitted_seconds == 2.0
    assert not clip.warnings


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [0, 10**8])
def test_an_unfinished_header_is_heard_to_the_end(name: str, size: int) -> None:
    clip = heard(with_size(name, size))
    assert clip.submitted_seconds == 2.0
    if (name, size) != ("AIFF", 0):  # which says the number of samples elsewhere
        assert len(clip.warnings) == 1


@pytest.mark.parametrize("name", ["CAF", "AU", "W64"])
def test_samples_behind_the_announced_ones_are_told_in_seconds(name: str) -> None:
    clip = heard(with_size(name, 32_000))
    assert clip.submitted_seconds == pytest.approx(1.0, abs=0.001)
    assert "1.00 s" in clip.warnings[0]


def test_lengths_that_a_format_may_leave_open_are_no_fault() -> None:
    caf = bytearray(KINDS["CAF"])
    struct.pack_into(">q", caf, SIZES["CAF"][0], -1)
    for data in (with_size("AU", -1), bytes(caf)):
        clip = heard(data)
        assert clip.submitted_seconds == pytest.approx(2.0, abs=0.001)
        assert not clip.warnings


def test_a_count_of_samples_that_lies_is_no_matter() -> None:
    for frames in (0, 100, 10**8):
        changed = bytearray(KINDS["AIFF"])
        struct.pack_into(">I", changed, KINDS["AIFF"].index(b"COMM") + 10, frames)
        assert heard(bytes(changed)).submitted_seconds == 2.0


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_file_is_told(name: str) -> None:
    clip = heard(KINDS[name][: len(KINDS[name]) // 2])
    assert clip.submitted_seconds == pytest.approx(1.0, abs=0.1)
    assert "cut short" in clip.warnings[0]


def test_other_codecs_are_refused_by_name() -> None:
    aifc = encode(SAMPLES, container="AIFF", subtype="ULAW")
    au = bytearray(KINDS["AU"])
    struct.pack_into(">I", au, 12, 24)
    caf = KINDS["CAF"].replace(b"lpcm", b"QDM2")
    for data, name in (
        (aifc.replace(b"ulaw", b"QDM2"), "QDM2"),
        (caf, "QDM2"),
        (au, "encoding 24"),
    ):
        with pytest.raises(UnsupportedAudio, match=f"not supported.*{name}"):
            heard(bytes(data))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [16, 30])
def test_a_header_cut_short_is_refused(name: str, size: int) -> None:
    with pytest.raises(AudioError):
        heard(KINDS[name][:size])


def test_absurd_rates_are_refused() -> None:
    changed = bytearray(KINDS["AIFF"])
    for exponent in (0, 0x3FFF, 0x7FFF, 0xFFFF):
        struct.pack_into(">H", changed, KINDS["AIFF"].index(b"COMM") + 16, exponent)
        with pytest.raises(AudioError, match="rate"):
            heard(bytes(changed))
    caf = bytearray(KINDS["CAF"])
    for rate in (float("nan"), float("inf"), -1.0, 1e300):
        struct.pack_into(">d", caf, KINDS["CAF"].index(b"desc") + 12, rate)
        with pytest.raises(AudioError, match="rate"):
            heard(bytes(caf))


CUT_HEADERS = {  # a chunk that announces more than there is, and the mark of the samples within it
    "AIFF": b"FORM\0\0\0\x64AIFFCOMM" + struct.pack(">I", 9999) + b"SSND" + bytes(12),
    "CAF": b"caff\0\x01\0\0desc" + struct.pack(">q", 9999) + b"data" + bytes(12),
    "RF64": b"RF64\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    + b"data\xff\xff\xff\xffds64" + struct.pack("<I", 9999) + b"data\xff\xff\xff\xff\0\0",
}  # fmt: skip


@pytest.mark.parametrize("name", CUT_HEADERS)
def test_a_header_that_ends_early_is_an_audio_error(name: str) -> None:
    with pytest.raises(AudioError):
        heard(CUT_HEADERS[name])


@pytest.mark.parametrize("name", CUT_HEADERS)
def test_what_stands_before_such_a_header_is_heard(name: str) -> None:
    clip = heard(encode(SAMPLES) + CUT_HEADERS[name])
    assert clip.submitted_seconds == pytest.approx(2.0, abs=0.01)  # RF64's one sample is heard
    assert clip.warnings
