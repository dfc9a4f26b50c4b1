"""Hostile audio files: made from a seed, the same on every machine.

Sound files of every format libsndfile writes, whole or mutated, and files that are no sound at
all. A file's name says how it was made: `wav/PCM_16/bits`.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

Random = np.random.Generator
Mutation = Callable[[bytearray, Random], bytes]

FORMATS = (
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAV", "ALAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "GSM610"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("CAF", "PCM_16"),
    ("AU", "PCM_16"),
    ("W64", "PCM_16"),
    ("VOC", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("MP4", "aac"),
    ("MP4", "alac"),
    ("MOV", "pcm_s16le"),
    ("WEBM", "libopus"),
    ("MATROSKA", "aac"),
    ("ADTS", "aac"),
    ("AMR", "AMR_NB"),
)
OURS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
MAGICS = (
    b"RIFF\x00\x10\x00\x00WAVEfmt ",
    b"RIFF\xff\xff\xff\xffWAVE",
    b"RF64\xff\xff\xff\xffWAVEds64",
    b"fLaC\x00\x00\x00\x22",
    b"fLaC\x84\xff\xff\xff",
    b"OggS\x00\x02",
    b"OggS" + bytes(22) + b"\x01\x13OpusHead",
    b"\xff\xfb\x90\x64",
    b"ID3\x04\x00\x00\x00\x00\x0f\x7f",
    b"FORM\x00\x00\x10\x00AIFFCOMM",
    b"caff\x00\x01\x00\x00",
    b".snd\x00\x00\x00\x18",
    b"\x00\x00\x00\x20ftypM4A ",
    b"\x1a\x45\xdf\xa3",
    b"#!AMR\n",
    b"\xff\xf1\x50\x80",
)
BOMBS = ("FLAC PCM_16", "OGG OPUS", "OGG VORBIS", "MP4 aac", "WEBM libopus")
_NUMBERS = (0, 1, 2, 3, 255, 4_000, 65_535, 192_001, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` names and files."""
    for kind in BOMBS:
        _bomb(kind)  # takes seconds: before the first file, so that no request waits for it
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        if rng.random() < 0.2:
            name = str(rng.choice(list(MADE)))
            yield f"made/{name}", MADE[name](rng)
        else:
            container, subtype = FORMATS[rng.integers(len(FORMATS))]
            name = str(rng.choice(list(MUTATIONS)))
            data = bytearray(whole(container, subtype, int(rng.integers(4))))
            yield f"{container.lower()}/{subtype}/{name}", MUTATIONS[name](data, rng)


@functools.cache
def whole(container: str, subtype: str, variant: int) -> bytes:
    """A sound file as it should be: short, mono or stereo, of one of two rates."""
    rate_hz = (8_000, 48_000)[variant % 2]
    channels = 1 if subtype == "GSM610" else 1 + variant // 2
    rng = np.random.default_rng(variant)
    time = np.arange(round(0.3 * rate_hz)) / rate_hz
    tone = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.05 * rng.standard_normal(len(time))
    samples = np.repeat(tone[:, None], channels, axis=1)
    return encoded(samples, rate_hz, container, subtype)


def encoded(
    samples: NDArray[Any], rate_hz: int, container: str, subtype: str | None = None
) -> bytes:
    """Samples (S, channels) as a file."""
    if container == "AMR":  # for which there is no encoder: frames of 12.2 kbit/s of some bits
        rng = np.random.default_rng(len(samples))
        frames = (b"\x3c" + rng.bytes(31) for _ in range(len(samples) * 50 // rate_hz))
        return b"#!AMR\n" + b"".join(frames)
    file = io.BytesIO()
    if subtype is not None and subtype.islower():  # the name of one of FFmpeg's encoders
        _encode_with_pyav(file, samples, rate_hz, container.lower(), subtype)
    else:
        soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def _encode_with_pyav(
    file: io.BytesIO, samples: NDArray[Any], rate_hz: int, muxer: str, encoder: str
) -> None:
    import av

    with av.open(file, "w", format=muxer) as output:
        layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
        stream = output.add_stream(encoder, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        packed = (samples.clip(-1, 1) * 32_767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
        frame.sample_rate = rate_hz
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)


# ---- mutations of a file


def _bits(data: bytearray, rng: Random) -> bytes:
    for _ in range(rng.integers(1, 40)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _head_bits(data: bytearray, rng: Random) -> bytes:
    for _ in range(rng.integers(1, 8)):
        data[rng.integers(min(len(data), 120))] = rng.integers(256)
    return bytes(data)


def _head_number(data: bytearray, rng: Random) -> bytes:
    """A field of the header, or what stands there, set to a number that programs trip over."""
    code = str(rng.choice(["<H", "<I", ">H", ">I", ">Q", "<Q"]))
    value = int(_NUMBERS[rng.integers(len(_NUMBERS))]) % 256 ** struct.calcsize(code)
    struct.pack_into(code, data, int(rng.integers(4, 80)) // 2 * 2, value)
    return bytes(data)


def _wav_number(data: bytearray, rng: Random) -> bytes:
    """Size, channels, rate, bytes a second, block or depth of a WAV file; of others, a number."""
    code, at = (("<I", 4), ("<H", 22), ("<I", 24), ("<I", 28), ("<H", 32), ("<H", 34), ("<I", 40))[
        rng.integers(7)
    ]
    value = int(_NUMBERS[rng.integers(len(_NUMBERS))]) % 256 ** struct.calcsize(code)
    struct.pack_into(code, data, at, value)
    return bytes(data)


def _info_bits(data: bytearray, rng: Random) -> bytes:
    """Rate, channels, depth and length of a FLAC file; of others, what stands there."""
    data[18:26] = rng.bytes(8)
    return bytes(data)


def _granules(data: bytearray, rng: Random) -> bytes:
    """Positions of an OGG file's pages, their checksums left wrong or not."""
    at = data.find(b"OggS")
    while at >= 0:
        if rng.random() < 0.3:
            data[at + 6 : at + 14] = rng.bytes(8)
        at = data.find(b"OggS", at + 4)
    return bytes(data)


def _cut(data: bytearray, rng: Random) -> bytes:
    region = min(len(data), (16, 64, 512, len(data))[rng.integers(4)])
    return bytes(data[: rng.integers(region + 1)])


def _beheaded(data: bytearray, rng: Random) -> bytes:
    return bytes(data[rng.integers(1, 64) :])


def _joined(data: bytearray, rng: Random) -> bytes:
    container, subtype = FORMATS[rng.integers(len(FORMATS))]
    return bytes(data) + whole(container, subtype, int(rng.integers(4)))


def _doubled(data: bytearray, rng: Random) -> bytes:
    """A part of the file twice."""
    first, last = sorted(rng.integers(len(data), size=2))
    return bytes(data[:last] + data[first:])


def _hole(data: bytearray, rng: Random) -> bytes:
    first, last = sorted(rng.integers(len(data), size=2))
    return bytes(data[:first] + data[last:])


def _chunk(data: bytearray, rng: Random) -> bytes:
    """Something between the parts: a chunk whose size is right or a lie."""
    size = int(rng.choice([0, 7, 100, 2**31, 2**32 - 1]))
    mark = (b"LIST", b"junk", b"fmt ", b"data", b"OggS", b"ID3\x04")[rng.integers(6)]
    at = (12, 36, int(rng.integers(len(data))))[rng.integers(3)]
    return bytes(data[:at]) + mark + struct.pack("<I", size) + rng.bytes(100) + bytes(data[at:])


def _tagged(data: bytearray, rng: Random) -> bytes:
    """An ID3 tag in front, up to 200 KB, whose size may be a lie."""
    size = int(rng.integers(200_000))
    stated = size if rng.random() < 0.6 else int(rng.integers(2**28))
    bits = bytes(stated >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00\x00" + bits + bytes(size) + bytes(data)


def _noise_behind(data: bytearray, rng: Random) -> bytes:
    at = rng.integers(min(len(data), 400))
    return bytes(data[:at]) + rng.bytes(4_000)


def _untouched(data: bytearray, rng: Random) -> bytes:
    return bytes(data)


MUTATIONS: dict[str, Mutation] = {
    "bits": _bits,
    "head_bits": _head_bits,
    "head_number": _head_number,
    "wav_number": _wav_number,
    "info_bits": _info_bits,
    "granules": _granules,
    "cut": _cut,
    "beheaded": _beheaded,
    "joined": _joined,
    "doubled": _doubled,
    "hole": _hole,
    "chunk": _chunk,
    "tagged": _tagged,
    "noise_behind": _noise_behind,
    "untouched": _untouched,
}


# ---- files made from nothing


def _value(rng: Random) -> bytes:
    """A float file with one sample that is no number, or far out."""
    samples = np.zeros((4_000, 2))
    samples[rng.integers(4_000), rng.integers(2)] = rng.choice(
        [np.nan, np.inf, -np.inf, 1e30, 1e300, 3.4e38, 1e-310, -0.0]
    )
    return encoded(samples, 8_000, "WAV", str(rng.choice(["FLOAT", "DOUBLE"])))


def _zeros(rng: Random) -> bytes:
    container = str(rng.choice(OURS))
    return encoded(np.zeros((8_000, 1 + rng.integers(2))), 8_000, container)


def _subnormal(rng: Random) -> bytes:
    return encoded(np.full((4_000, 1), 1e-40), 8_000, "WAV", "FLOAT")


def _magic(rng: Random) -> bytes:
    return bytes(MAGICS[rng.integers(len(MAGICS))]) + rng.bytes(int(rng.integers(5_000)))


def _tiny(rng: Random) -> bytes:
    return bytes(rng.bytes(int(rng.integers(16))))


def _text(rng: Random) -> bytes:
    texts = (
        b"<html>404</html>",
        b'{"data": 1}',
        b"data:audio/wav;base64,UklGRg==",
        b"UklGRg==" * 9,
    )
    return texts[rng.integers(len(texts))]


def _short(rng: Random) -> bytes:
    return encoded(
        np.zeros((rng.integers(500), 1)), 8_000, str(rng.choice(["WAV", "FLAC", "RF64"]))
    )


def _channels(rng: Random) -> bytes:
    return encoded(np.zeros((800, rng.integers(2, 200))), 8_000, "WAV")


def _rate(rng: Random) -> bytes:
    rate_hz = int(rng.choice([1, 100, 3_999, 192_001, 655_350, 2**31 - 1]))
    return encoded(np.zeros((800, 1)), rate_hz, "WAV")


@functools.cache
def _bomb(kind: str) -> bytes:
    """Minutes of silence in few bytes."""
    container, subtype = kind.split()
    rate_hz = 4_000 if container == "FLAC" else 8_000
    file, minute = io.BytesIO(), np.zeros(rate_hz * 60, np.float32)
    if subtype.islower():
        _encode_with_pyav(file, np.zeros((rate_hz * 1_200, 1)), rate_hz, container.lower(), subtype)
        return file.getvalue()
    with soundfile.SoundFile(file, "w", rate_hz, 1, format=container, subtype=subtype) as writer:
        for _ in range(20):  # minute by minute: libsndfile's own writer dies of more at once
            writer.write(minute)
    return file.getvalue()


def _long(rng: Random) -> bytes:
    return _bomb(str(rng.choice(BOMBS)))


def _lying_bomb(rng: Random) -> bytes:
    """A bomb whose header, or last page, announces a second."""
    data = bytearray(_bomb(str(rng.choice(["FLAC PCM_16", "OGG OPUS"]))))
    if data[:4] == b"fLaC":
        data[22:26] = struct.pack(">I", 4_000)
    else:
        struct.pack_into("<Q", data, data.rfind(b"OggS") + 6, 48_000)
    return bytes(data)


MADE: dict[str, Callable[[Random], bytes]] = {
    "value": _value,
    "zeros": _zeros,
    "subnormal": _subnormal,
    "magic": _magic,
    "tiny": _tiny,
    "text": _text,
    "short": _short,
    "channels": _channels,
    "rate": _rate,
    "long": _long,
    "lying_bomb": _lying_bomb,
}
