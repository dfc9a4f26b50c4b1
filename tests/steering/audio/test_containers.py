from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steering.audio.containers import recordings
from steering.audio.decode import read_clip
from steering.audio.limits import AudioLimits
from steering.errors import AudioError, AudioTooLarge, UnsupportedAudio
from tests.steering.audio.files import encode, heard, id3, noise

KINDS = [
    ("WAV", "PCM_16"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("CAF", "PCM_16"),
]


def made(kind: tuple[str, str], seconds: float) -> bytes:
    return encode(noise(seconds), container=kind[0], subtype=kind[1])


@pytest.mark.parametrize("first", KINDS, ids="-".join)
@pytest.mark.parametrize("second", KINDS, ids="-".join)
def test_a_second_file_is_heard(first: tuple[str, str], second: tuple[str, str]) -> None:
    clip = heard(made(first, 1.0) + made(second, 0.5))
    assert clip.submitted_seconds == pytest.approx(1.5, abs=0.01)
    assert len(clip.samples) == pytest.approx(24_000, abs=200)
    assert clip.warnings == (
        "it is 2 recordings one behind the other (1.00, 0.50 s); all are heard",
    )


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_one_file_is_one(kind: tuple[str, str]) -> None:
    for data in (made(kind, 1.0), made(kind, 1.0) + b"TAG" + bytes(125), id3(99) + made(kind, 1.0)):
        assert len(list(recordings(data, AudioLimits(), []))) == 1
        assert not heard(data).warnings


def test_all_together_are_held_against_the_limit() -> None:
    with pytest.raises(AudioTooLarge, match="longer than the 30 s"):
        heard(made(("WAV", "PCM_16"), 1.0) * 31)


def test_a_second_file_that_can_not_be_read_is_told() -> None:
    clip = heard(made(("WAV", "PCM_16"), 1.0) + made(("FLAC", "PCM_16"), 1.0)[:100])
    assert clip.submitted_seconds == 1.0
    assert "behind its first 1.00 s is not heard" in clip.warnings[0]


def test_only_so_many_files_are_heard() -> None:
    clip = heard(encode(np.ones((1, 1), np.int16)) * 1_001)
    assert len(clip.samples) == 1_000
    assert "more than 1,000 files" in clip.warnings[0]


def test_many_warnings_are_few_in_the_end() -> None:
    piece = bytearray(made(("WAV", "PCM_16"), 0.1))
    piece[40:44] = bytes(4)  # as of a recorder that was stopped hard
    clip = heard(b"".join(bytes(piece) + bytes(n) for n in range(1, 41)))
    assert len(clip.warnings) <= 12
    assert "40 recordings" in clip.warnings[-1]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (bytes.fromhex("3026b2758e66cf11") + bytes(99), "WMA"),
        (b"RIFF\x00\x10\x00\x00AVI LIST", "AVI"),
        (b"wvpk" + bytes(99), "WavPack"),
        (b"\x0b\x77" + bytes(99), "AC-3"),
        (b"\x56\xe2\x2c" + bytes(99), "LATM"),
        ((b"\x47\x40\x11" + bytes(185)) * 4, "transport stream"),
        (b"Creative Voice File\x1a", "VOC"),
    ],
)
def test_formats_that_are_not_read_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedAudio, match=f"not supported.*{name}"):
        heard(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"#EXTM3U\n#EXT-X-VERSION:3\nhttp://127.0.0.1/a.aac\n", "playlist"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not a WAV"),
        (b"<?xml version='1.0'?><MPD/>", "XML"),
        (b"PK\x03\x04" + bytes(99), "zip"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\0\x08mdat", "picture"),
        (bytes(500), "nothing was recorded"),
    ],
)
def test_what_is_no_audio_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(AudioError, match=word) as caught:
        heard(data)
    assert not isinstance(caught.value, UnsupportedAudio)


@pytest.mark.system
def test_sounds_of_a_real_system_are_one_file_each() -> None:
    paths = sorted(p for p in Path("/usr/share/sounds").rglob("*.[ow][ga]*") if p.is_file())
    if not paths:
        pytest.skip("no sounds in /usr/share/sounds")
    for path in paths:
        clip = read_clip(path, rate_hz=16_000, limits=AudioLimits())
        assert not [text for text in clip.warnings if "cancel" not in text], path
