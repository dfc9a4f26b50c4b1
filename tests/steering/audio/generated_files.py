"""Audio files of all containers, codecs, rates and layouts, whole and with faults, from a seed.

ffmpeg writes them. A fault is done to the bytes of a whole file.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator
SECONDS = 2.5


class Sample(NamedTuple):
    """A file, and what it is."""

    kind: str  # as counts are kept by
    name: str
    data: bytes
    refusable: bool = False  # a refusal is a right answer, too


class Encoding(NamedTuple):
    """How ffmpeg writes a file."""

    kind: str
    container: str  # ffmpeg's name
    words: tuple[str, ...]
    rates: tuple[int, ...] = (8_000, 16_000, 44_100, 48_000)
    channels: tuple[int, ...] = (1, 2)
    pipe: bool = False  # written where it can't go back to fill in lengths
    refusable: bool = False


def _pcm(*codecs: str) -> Iterator[tuple[str, ...]]:
    return (("-c:a", codec) for codec in codecs)


_ALL_RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_FRAGMENTED = ("-movflags", "+frag_keyframe+empty_moov+default_base_moof")
ENCODINGS = (
    *(
        Encoding("WAV", "wav", words, _ALL_RATES, (1, 2, 6, 8))
        for words in _pcm("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le")
    ),
    *(
        Encoding("WAV, other codecs", "wav", words)
        for words in _pcm("pcm_alaw", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms")
    ),
    Encoding("WAV, other codecs", "wav", ("-c:a", "libgsm_ms"), (8_000,), (1,)),
    Encoding("WAV, other codecs", "wav", ("-c:a", "libmp3lame"), _MPEG_RATES),
    Encoding("WAV, other codecs", "wav", ("-c:a", "mp2"), (32_000, 44_100, 48_000)),
    *(
        Encoding("WAV, unsupported", "wav", ("-c:a", codec), (16_000,), (1,), refusable=True)
        for codec in ("g722", "adpcm_yamaha", "wmav2", "aac", "ac3")
    ),
    Encoding("WAV to a pipe", "wav", ("-c:a", "pcm_s16le"), pipe=True),
    Encoding("RF64", "wav", ("-rf64", "always")),
    Encoding("W64", "w64", ("-c:a", "pcm_s24le")),
    Encoding("W64", "w64", (), pipe=True),
    *(
        Encoding("AIFF", "aiff", words, _ALL_RATES)
        for words in _pcm("pcm_s16be", "pcm_s24be", "pcm_f32be", "pcm_alaw", "pcm_s16le")
    ),
    Encoding("AIFF", "aiff", (), pipe=True),
    *(
        Encoding("AU", "au", words, _ALL_RATES)
        for words in _pcm("pcm_s16be", "pcm_s24be", "pcm_f32be", "pcm_alaw", "pcm_mulaw")
    ),
    Encoding("AU", "au", (), pipe=True),
    *(
        Encoding("CAF", "caf", words, (16_000, 44_100, 48_000))
        for words in _pcm("pcm_s16le", "pcm_s24be", "pcm_f32le", "alac", "pcm_mulaw")
    ),
    Encoding("CAF", "caf", ("-c:a", "libopus"), (48_000,)),
    Encoding("FLAC", "flac", (), _ALL_RATES, (1, 2, 6, 8)),
    Encoding("FLAC", "flac", ("-sample_fmt", "s32"), _ALL_RATES),
    Encoding("FLAC", "flac", ("-compression_level", "0")),
    Encoding("FLAC to a pipe", "flac", (), pipe=True),
    Encoding("FLAC in OGG", "ogg", ("-c:a", "flac")),
    Encoding("Vorbis", "ogg", ("-c:a", "libvorbis", "-q:a", "3"), _MPEG_RATES, (1, 2, 6)),
    Encoding("Vorbis", "ogg", ("-c:a", "libvorbis", "-page_duration", "50000")),
    Encoding("Opus", "ogg", ("-c:a", "libopus"), _OPUS_RATES),
    Encoding("Opus", "opus", ("-c:a", "libopus", "-frame_duration", "60"), _OPUS_RATES),
    Encoding("Opus", "ogg", ("-c:a", "libopus", "-frame_duration", "2.5"), (48_000,), (1, 2, 6)),
    Encoding("OGG, unsupported", "ogg", ("-c:a", "libspeex"), (16_000,), (1,), refusable=True),
    Encoding("MP3, CBR", "mp3", ("-b:a", "64k"), _MPEG_RATES),
    Encoding("MP3, CBR", "mp3", ("-b:a", "160k", "-id3v2_version", "0", "-write_id3v1", "1")),
    Encoding("MP3, VBR", "mp3", ("-q:a", "2"), _MPEG_RATES),
    Encoding("MP3, VBR", "mp3", ("-q:a", "9"), _MPEG_RATES),
    Encoding("MP3, no Xing", "mp3", ("-q:a", "0", "-write_xing", "0"), _MPEG_RATES),
    Encoding("MP3, no Xing", "mp3", ("-q:a", "7", "-write_xing", "0"), _MPEG_RATES),
    Encoding("MP3, no Xing", "mp3", ("-abr", "1", "-b:a", "56k"), pipe=True),
    Encoding("MP2", "mp2", ("-c:a", "mp2"), (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
    Encoding("M4A", "ipod", ("-c:a", "aac"), (*_MPEG_RATES, 96_000)),
    Encoding("M4A", "ipod", ("-c:a", "aac", "-movflags", "faststart"), channels=(1, 2, 6)),
    Encoding("M4A", "ipod", ("-c:a", "alac"), (16_000, 44_100, 48_000), (1, 2, 6)),
    Encoding("MP4, MOV, 3GP", "mp4", ("-c:a", "aac", *_FRAGMENTED), pipe=True),
    Encoding("MP4, MOV, 3GP", "mp4", ("-c:a", "libopus", "-strict", "-2"), (48_000,)),
    Encoding("MP4, MOV, 3GP", "mp4", ("-c:a", "flac", "-strict", "-2")),
    Encoding("MP4, MOV, 3GP", "mp4", ("-c:a", "libmp3lame"), (32_000, 44_100, 48_000)),
    Encoding("MP4, MOV, 3GP", "mov", ("-c:a", "pcm_s16le")),
    Encoding("MP4, MOV, 3GP", "mov", ("-c:a", "pcm_s24be")),
    Encoding("MP4, MOV, 3GP", "3gp", ("-c:a", "aac")),
    Encoding("MP4, MOV, 3GP", "mp4", ("-c:a", "ac3"), (48_000,), refusable=True),
    Encoding("WebM", "webm", ("-c:a", "libopus"), _OPUS_RATES),
    Encoding("WebM", "webm", ("-c:a", "libvorbis")),
    Encoding("WebM", "webm", ("-c:a", "libopus", "-live", "1"), _OPUS_RATES, pipe=True),
    Encoding("Matroska", "matroska", ("-c:a", "flac")),
    Encoding("Matroska", "matroska", ("-c:a", "aac"), pipe=True),
    Encoding("Matroska", "matroska", ("-c:a", "pcm_s16le")),
    Encoding("AAC", "adts", ("-c:a", "aac"), _MPEG_RATES),
    Encoding("others, unsupported", "asf", ("-c:a", "wmav2"), refusable=True),
    Encoding("others, unsupported", "wv", ("-c:a", "wavpack"), refusable=True),
    Encoding("others, unsupported", "tta", ("-c:a", "tta"), refusable=True),
    Encoding("others, unsupported", "avi", ("-c:a", "libmp3lame"), refusable=True),
    Encoding("others, unsupported", "mpegts", ("-c:a", "aac"), refusable=True),
    Encoding("others, unsupported", "voc", ("-c:a", "pcm_s16le"), refusable=True),
    Encoding("others, unsupported", "ac3", ("-c:a", "ac3"), (48_000,), refusable=True),
    Encoding("others, unsupported", "latm", ("-c:a", "aac"), refusable=True),
)


def signal(rate_hz: int, channels: int, seconds: float = SECONDS) -> NDArray[np.float32]:
    """(S, channels) a tone and noise, of changing loudness, different in each channel."""
    rng = np.random.default_rng((rate_hz, channels))
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    loudness = 0.05 + 0.2 * np.sin(2 * np.pi * 0.7 * time) ** 4
    tone = np.sin(2 * np.pi * 300 * time)[:, None]
    noise = rng.standard_normal((len(time), channels))
    return (loudness[:, None] * (0.7 * tone + 0.3 * noise)).astype(np.float32)


class _Plan(NamedTuple):
    """A file to write."""

    encoding: Encoding
    rate_hz: int
    channels: int


def _plans() -> Iterator[_Plan]:
    """A file of every encoding at every second of its rates, the layouts by turns."""
    for turn, encoding in enumerate(ENCODINGS):
        rates = encoding.rates[turn % 2 :: 2] or encoding.rates
        for number, rate_hz in enumerate(rates):
            yield _Plan(encoding, rate_hz, encoding.channels[number % len(encoding.channels)])


def _encode(plans: list[_Plan], folder: Path) -> dict[_Plan, bytes]:
    """Files of one sound, of which only one may go to a pipe: ffmpeg takes longest to start."""
    rate_hz, channels = plans[0][1:]
    words = ["ffmpeg", "-v", "error", "-y", "-f", "f32le", "-ar", str(rate_hz)]
    words += ["-ac", str(channels), "-i", "-"]
    targets = {plan: folder / str(number) for number, plan in enumerate(plans)}
    for plan, target in targets.items():
        output = "-" if plan.encoding.pipe else str(target)
        words += [*plan.encoding.words, "-f", plan.encoding.container, output]
    made = subprocess.run(
        words, input=signal(rate_hz, channels).tobytes(), capture_output=True, check=False
    )
    assert made.returncode == 0, (plans, made.stderr[-500:])
    return {
        plan: made.stdout if plan.encoding.pipe else target.read_bytes()
        for plan, target in targets.items()
    }


def whole_files(folder: Path) -> Iterator[Sample]:
    """A file of every encoding."""
    plans = list(_plans())
    by_sound: dict[tuple[int, ...], list[_Plan]] = defaultdict(list)
    for number, plan in enumerate(plans):
        alone = (number,) if plan.encoding.pipe else ()
        by_sound[plan.rate_hz, plan.channels, *alone].append(plan)
    written: dict[_Plan, bytes] = {}
    for together in by_sound.values():
        written |= _encode(together, folder)
    for plan in plans:
        kind, container, words, *_ = plan.encoding
        name = f"{container} {' '.join(words)} {plan.rate_hz} Hz x {plan.channels}"
        yield Sample(kind, name, written[plan], plan.encoding.refusable)


# ---- faults

Fault = Callable[[bytes, Random], bytes]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.integers(len(data) // 3, len(data) - 1)]


def _tag_in_front(data: bytes, rng: Random) -> bytes:
    size = int(rng.integers(1, 40_000))
    bits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    picture = rng.bytes(size - size // 2) + bytes(size // 2)
    return b"ID3\x04\x00\x00" + bits + picture + data


def _marks_in_a_tag(data: bytes, rng: Random) -> bytes:
    """A cover picture that holds the beginnings of other files."""
    marks = b"fLaC\x00\x00\x00\x22 OggS\x00\x02 RIFF\x00\x10\x00\x00WAVEfmt Xing\x00\x00\x00\x0f"
    size = len(marks) * 2
    bits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00\x00" + bits + marks * 2 + data


def _zeros_behind(data: bytes, rng: Random) -> bytes:
    return data + bytes(rng.integers(1, 5_000))


def _tag_behind(data: bytes, rng: Random) -> bytes:
    return data + b"TAG" + bytes(125)


def _noise_behind(data: bytes, rng: Random) -> bytes:
    return data + rng.bytes(int(rng.integers(100, 3_000)))


def _twice(data: bytes, rng: Random) -> bytes:
    return data + data


def _hole(data: bytes, rng: Random) -> bytes:
    at = int(rng.integers(len(data) // 3, len(data) // 2))
    return data[:at] + data[at + int(rng.integers(1, 2_000)) :]


def _overwritten(data: bytes, rng: Random) -> bytes:
    at = int(rng.integers(len(data) // 3, len(data) // 2))
    size = int(rng.integers(1, 300))
    return data[:at] + rng.bytes(size) + data[at + size :]


def _number(code: str, mark: bytes, offset: int, *values: int) -> Fault:
    """A header's number, at an offset from a mark, replaced by one of some values."""

    def replaced(data: bytes, rng: Random) -> bytes:
        changed = bytearray(data)
        struct.pack_into(code, changed, data.index(mark) + offset, int(rng.choice(values)))
        return bytes(changed)

    return replaced


def _without_sizes(data: bytes, rng: Random) -> bytes:
    """A WAV file as a recorder leaves it that is stopped hard."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, 4, 0)
    struct.pack_into("<I", changed, data.index(b"data") + 4, 0)
    return bytes(changed)


def _flac_length(*lengths: int) -> Fault:
    def replaced(data: bytes, rng: Random) -> bytes:
        info = int.from_bytes(data[18:26], "big") >> 36 << 36 | int(rng.choice(lengths))
        return data[:18] + info.to_bytes(8, "big") + data[26:]

    return replaced


def _xing_count(data: bytes, rng: Random) -> bytes:
    mark = max(data.find(b"Xing"), data.find(b"Info"))
    changed = bytearray(data)
    struct.pack_into(">I", changed, mark + 8, int(rng.choice([0, 1, 20, 10_000, 2**31])))
    return bytes(changed)


def _joined_in_the_middle(data: bytes, rng: Random) -> bytes:
    return data[rng.integers(2_000, len(data) // 2) :]


def _zeros_behind_the_tag(data: bytes, rng: Random) -> bytes:
    return b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10 + int(rng.integers(1, 3_000))) + data


def _ogg_checksum(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc = crc << 8 & 0xFFFFFFFF ^ _OGG_CRC[crc >> 24 ^ byte]
    return crc


def _ogg_crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


_OGG_CRC = [_ogg_crc_of(byte) for byte in range(256)]


def pages(data: bytes) -> list[bytearray]:
    """The pages of an OGG file."""
    starts = [match.start() for match in re.finditer(rb"OggS\x00", data)]
    return [bytearray(data[a:b]) for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def _granules(change: Callable[[int, int, int], int]) -> Fault:
    """Positions of the pages of sound changed, by what they are, their number and that of all."""

    def changed(data: bytes, rng: Random) -> bytes:
        found = pages(data)
        for number, page in enumerate(found):
            (position,) = struct.unpack_from("<q", page, 6)
            if position > 0:
                position = change(position, number, len(found))
            struct.pack_into("<qIII", page, 6, position, *struct.unpack_from("<II", page, 14), 0)
            struct.pack_into("<I", page, 22, _ogg_checksum(bytes(page)))
        return b"".join(found)

    return changed


def _lost_page(data: bytes, rng: Random) -> bytes:
    found = pages(data)
    del found[min(len(found) - 2, 4)]
    return b"".join(found)


def _damaged_page(data: bytes, rng: Random) -> bytes:
    found = pages(data)
    page = found[min(len(found) - 2, 4)]
    page[len(page) // 2] ^= 255
    return b"".join(found)


_MP3 = ("MP3, CBR", "MP3, VBR", "MP3, no Xing", "MP2")
_OGG = ("Vorbis", "Opus")
HEADER_FAULTS: dict[str, tuple[tuple[str, ...], Fault]] = {  # and the kinds that can have them
    "WAV without sizes": (("WAV", "WAV, other codecs"), _without_sizes),
    "WAV of a wrong size": (
        ("WAV", "WAV, other codecs"),
        _number("<I", b"data", 4, 0, 2_000, 10**8, 2**31 - 1, 2**31, 2**32 - 1),
    ),
    "RIFF of a wrong size": (("WAV",), _number("<I", b"RIFF", 4, 0, 1_000, 10**8, 2**32 - 1)),
    "RF64 of a wrong size": (("RF64",), _number("<q", b"ds64", 16, 0, 2_000, 10**8, -1)),
    "W64 of a wrong size": (("W64",), _number("<q", b"data\xf3\xac", 16, 0, 24, 2_000, 10**8)),
    "AIFF of a wrong size": (("AIFF",), _number(">I", b"SSND", 4, 0, 8, 2_000, 10**8, 2**32 - 1)),
    "AIFF of a wrong count": (("AIFF",), _number(">I", b"COMM", 10, 0, 100, 10**8)),
    "AU of a wrong size": (("AU",), _number(">I", b".snd", 8, 0, 2_000, 10**8, 2**32 - 1)),
    "CAF of a wrong size": (("CAF",), _number(">q", b"data", 4, 0, 2_000, 10**8, -1)),
    "FLAC of unknown length": (("FLAC",), _flac_length(0)),
    "FLAC of a wrong length": (("FLAC",), _flac_length(1, 5_000, 10**6, 2**36 - 1)),
    "MP3 of a wrong count": (("MP3, CBR", "MP3, VBR"), _xing_count),
    "MP3 joined in the middle": (_MP3, _joined_in_the_middle),
    "MP3 behind a tag and zeros": (_MP3, _zeros_behind_the_tag),
    "OGG that ends at 0": (_OGG, _granules(lambda at, n, all_: 0 if n == all_ - 1 else at)),
    "OGG that ends early": (_OGG, _granules(lambda at, n, all_: at // 3 if n == all_ - 1 else at)),
    "OGG that ends late": (_OGG, _granules(lambda at, n, all_: at * 9 if n == all_ - 1 else at)),
    "OGG that starts late": (_OGG, _granules(lambda at, n, all_: at + 10**9)),
    "OGG without positions": (_OGG, _granules(lambda at, n, all_: 0)),
    "OGG by another clock": (_OGG, _granules(lambda at, n, all_: at // 3)),
    "OGG that misses a page": (_OGG, _lost_page),
    "OGG with a damaged page": (_OGG, _damaged_page),
}
FAULTS: dict[str, Fault] = {
    "cut short": _cut,
    "behind an ID3 tag": _tag_in_front,
    "behind marks in a tag": _marks_in_a_tag,
    "zeros behind": _zeros_behind,
    "ID3v1 behind": _tag_behind,
    "noise behind": _noise_behind,
    "twice": _twice,
    "a hole": _hole,
    "overwritten": _overwritten,
}
