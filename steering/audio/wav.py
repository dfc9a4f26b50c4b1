"""WAV and its relatives of chunks (RF64, BW64, RIFX): codec by name, and where the samples end.

A recorder that was stopped hard leaves sizes of 0 behind, a program that writes to a pipe sizes far
beyond the end. libsndfile believes the former, so sizes are held against what is there.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import NamedTuple

from steering.audio.chunks import (
    LEFT_OPEN,
    Chunk,
    chunks,
    cut_short,
    end_of_chunks,
    end_of_samples,
    head_chunks,
    with_fields,
)
from steering.audio.limits import CONVERT, AudioLimits, check_layout
from steering.audio.mpeg import first_frame, open_mpeg
from steering.audio.recording import Recording
from steering.errors import UnsupportedAudio

MARKS = (b"RIFF", b"RF64", b"BW64", b"RIFX")
_SECOND_FILE = re.compile(rb"(?:RIFF|RF64|BW64).{4}WAVE(?:fmt |ds64|JUNK|bext|LIST)", re.DOTALL)
_UNKNOWN_SIZES = 0x7FFF_0000  # and more: programs that write to a pipe
_EXTENSIBLE = 0xFFFE
_MPEG = (0x50, 0x55)
_BITS = {1: range(1, 33), 3: (32, 64)}  # that samples may have
_ONE_SIZE = (1, 3, 6, 7)  # format tags of samples that are all of one size
_READ = {  # format tags that libsndfile decodes
    1: "PCM", 2: "MS ADPCM", 3: "IEEE float", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM",
    0x31: "GSM 6.10", 0x38: "NMS ADPCM", 0x40: "G.721 ADPCM",
}  # fmt: skip
_NOT_READ = {  # by their names in Microsoft's and FFmpeg's tables
    0x04: "VSELP", 0x05: "CVSD", 0x08: "DTS", 0x09: "DRM", 0x0A: "WMA Voice", 0x10: "OKI ADPCM",
    0x14: "G.723 ADPCM", 0x15: "DIGISTD", 0x16: "DIGIFIX", 0x17: "Dialogic OKI ADPCM",
    0x20: "Yamaha ADPCM", 0x22: "TrueSpeech", 0x30: "Dolby AC-2", 0x32: "MSN Audio",
    0x41: "G.728", 0x42: "G.723.1", 0x45: "G.726", 0x57: "AMR-NB", 0x58: "AMR-WB", 0x59: "G.723.1",
    0x61: "Duck DK4 ADPCM", 0x62: "Duck DK3 ADPCM", 0x64: "G.726", 0x65: "G.722",
    0x69: "IMA ADPCM as in games", 0x75: "Voxware MetaSound", 0x83: "G.729", 0xFF: "AAC",
    0x130: "Sipro ACELP", 0x160: "WMA 1", 0x161: "WMA 2", 0x162: "WMA Professional",
    0x163: "WMA Lossless", 0x200: "Creative ADPCM", 0x270: "ATRAC3", 0x28F: "G.722",
    0x401: "Intel Music Coder", 0x1600: "AAC", 0x1602: "AAC in LATM", 0x1610: "AAC",
    0x2000: "AC-3", 0x2001: "DTS", 0x4143: "AAC", 0x5346: "ADPCM as in Flash", 0x566F: "Vorbis",
    0x674F: "Vorbis", 0x6750: "Vorbis", 0x6751: "Vorbis", 0x676F: "Vorbis", 0x6770: "Vorbis",
    0x6771: "Vorbis", 0x704F: "Opus", 0x706D: "AAC", 0xA106: "AAC", 0xA109: "Speex",
    0xF1AC: "FLAC",
}  # fmt: skip


class SampleFormat(NamedTuple):
    """What the `fmt ` chunk says."""

    tag: int
    channels: int
    rate_hz: int
    bits: int


def open_wav(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The WAV file at `start`, with sizes that are right.

    Raises UnsupportedAudio for a codec that is not read, AudioError for a header that is not whole.
    """
    order = ">" if data[start : start + 4] == b"RIFX" else "<"
    head = head_chunks(data, start + 12, b"data", order + "I")
    if b"data" not in head or b"fmt " not in head:
        raise cut_short("WAV", f"it has no {'data' if b'fmt ' in head else 'format'} chunk")
    layout = _sample_format(data, head[b"fmt "], order)
    check_layout(layout.channels, layout.rate_hz, limits)
    _check_codec(layout)
    samples, bytes_per_second = head[b"data"], _bytes_per_second(layout)
    announced = _announced(data, samples, head.get(b"ds64"))
    fits = 0 < announced <= len(data) - samples.body
    second = None if fits else _SECOND_FILE.search(data, samples.body)
    within = data[: second.start()] if second else data
    end, warning = end_of_samples(within, samples.body, announced, order + "I", bytes_per_second)
    warnings = [warning] if warning else []
    behind = end_of_chunks(within, end, order + "I")
    for chunk in chunks(within[:behind], end + end % 2, order + "I"):
        if chunk.name == b"data":
            warnings.append(f"its second chunk of samples, {chunk.size:,} bytes, is not heard")
    if layout.tag in _MPEG:
        return _mpeg(data[samples.body : end], behind, limits, warnings)
    size = end - samples.body
    if b"ds64" in head:
        ds64 = head[b"ds64"].body
        fields = [(ds64, "<Q", end - start - 8), (ds64 + 8, "<Q", size)]
        fields.append((start, "<I", int.from_bytes(b"RF64", "little")))  # not BW64, its successor
    else:
        fields = [(start + 4, order + "I", end - start - 8), (samples.body - 4, order + "I", size)]
    payload = with_fields(data, start, end, fields)
    return Recording(
        "WAV",
        payload,
        behind,
        bytes_per_second=bytes_per_second,
        warnings=tuple(warnings),
    )


def _mpeg(samples: bytes, end: int, limits: AudioLimits, warnings: list[str]) -> Recording:
    """The MP3 whose frames are a WAV file's samples."""
    start = first_frame(samples, 0)
    if start is None:
        raise cut_short("WAV", "it announces MP3, and holds no whole frame of it")
    recording = open_mpeg(samples, start, limits)
    left = len(samples) - recording.end + start
    if left:
        warnings.append(f"{left:,} bytes of its samples are not MP3 and were not read")
    warnings += recording.warnings
    return replace(recording, container="MP3 in WAV", end=end, warnings=tuple(warnings))


def _sample_format(data: bytes, chunk: Chunk, order: str) -> SampleFormat:
    body = data[chunk.body : chunk.body + min(chunk.size, 40)]
    if len(body) < 16:
        raise cut_short("WAV", f"its format chunk has {len(body)} bytes of at least 16")
    layout = SampleFormat(*struct.unpack(order + "HHI6xH", body[:16]))
    if layout.tag == _EXTENSIBLE and len(body) >= 26:
        layout = layout._replace(tag=int(struct.unpack_from(order + "H", body, 24)[0]))
    return layout


def _bytes_per_second(layout: SampleFormat) -> int:
    """Of samples that are of one size; 0 for others, of which the header is often wrong."""
    sample_bytes = (layout.bits + 7) // 8
    return layout.rate_hz * layout.channels * sample_bytes if layout.tag in _ONE_SIZE else 0


def _check_codec(layout: SampleFormat) -> None:
    bits = _BITS.get(layout.tag)
    if bits is not None and layout.bits not in bits:
        raise UnsupportedAudio(
            f"the audio is WAV with {_READ[layout.tag]} samples of {layout.bits} bits, which is not"
            f" supported; {bits[0]} to {bits[-1]} bits are: {CONVERT}"
        )
    if layout.tag in _READ or layout.tag in _MPEG:
        return
    name = _NOT_READ.get(layout.tag, "one of an unknown name")
    raise UnsupportedAudio(
        f"the audio is WAV with a codec that is not supported: {name} (format tag"
        f" {layout.tag:04X} hex); PCM, float, A-law, mu-law, ADPCM, GSM 6.10 and MP3 are: {CONVERT}"
    )


def _announced(data: bytes, samples: Chunk, ds64: Chunk | None) -> int:
    """Bytes of samples by the header, LEFT_OPEN if it does not say."""
    size = samples.size
    if ds64 and size == 0xFFFFFFFF and min(ds64.size, len(data) - ds64.body) >= 16:
        (size,) = struct.unpack_from("<Q", data, ds64.body + 8)
        size = LEFT_OPEN if size >= 1 << 63 else size
    elif size >= _UNKNOWN_SIZES and samples.body + size > len(data):
        size = LEFT_OPEN
    return int(size)
