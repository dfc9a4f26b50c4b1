"""AIFF, CAF, AU and W64: files of samples with a header, as Apple, Sun and Sony have them."""

from __future__ import annotations

import struct

from steering.audio.chunks import (
    LEFT_OPEN,
    cut_short,
    end_of_chunks,
    end_of_samples,
    head_chunks,
    with_fields,
)
from steering.audio.limits import CONVERT, AudioLimits, check_layout
from steering.audio.recording import Recording
from steering.errors import UnsupportedAudio

W64_MARK = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_SAMPLES = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_W64_FORMAT = bytes.fromhex("666d7420f3acd3118cd100c04f8edb8a")
_W64_HEAD_BYTES = 65_536
_AIFF_READ = {
    b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"42ni", b"23ni", b"fl32", b"FL32",
    b"fl64", b"FL64", b"ulaw", b"alaw", b"ULAW", b"ALAW", b"ima4", b"GSM ", b"DWVW",
}  # fmt: skip
_CAF_READ = {b"lpcm", b"alac", b"ulaw", b"alaw"}
_CAF_PYAV = {b"aac ", b"aach", b"aacp", b"opus", b"flac"}
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}  # of a sample, by encoding
_AU_READ = {*_AU_BYTES, 23, 25, 26}


def open_aiff(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The AIFF or AIFF-C file at `start`, with a size of its samples that is right."""
    head = head_chunks(data, start + 12, b"SSND", ">I")
    if b"COMM" not in head or b"SSND" not in head:
        raise cut_short("AIFF", f"it has no {'SSND' if b'COMM' in head else 'COMM'} chunk")
    comm, sound = head[b"COMM"], head[b"SSND"]
    if comm.size < 18 or max(comm.body + 18, sound.body + 8) > len(data):
        raise cut_short("AIFF", "it ends in its header")
    channels, frames, bits, exponent, mantissa = struct.unpack_from(">HIHHQ", data, comm.body)
    shift = 16_383 + 63 - exponent  # of a float of 80 bits
    rate_hz = mantissa >> shift if shift >= 0 else 2**31
    kind = data[comm.body + 18 : comm.body + 22] if data[start + 8 : start + 12] == b"AIFC" else b""
    if kind and kind not in _AIFF_READ:
        raise _unsupported("AIFF", kind.decode("latin-1").strip())
    check_layout(channels, rate_hz, limits)
    frame_bytes = channels * ((bits + 7) // 8)
    announced = max(0, sound.size - 8)
    if kind in (b"", b"NONE", b"sowt") and announced < frames * frame_bytes:
        announced = frames * frame_bytes
    end, warning = end_of_samples(data, sound.body + 8, announced, ">I", rate_hz * frame_bytes)
    fields = [(start + 4, ">I", end - start - 8), (sound.body - 4, ">I", end - sound.body)]
    payload = with_fields(data, start, end, fields)
    behind = end_of_chunks(data, end, ">I")
    return Recording(
        "AIFF",
        payload,
        behind,
        bytes_per_second=rate_hz * frame_bytes,
        warnings=(warning,) if warning else (),
    )


def open_caf(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The CAF file at `start`, with a size of its samples that is right."""
    head = head_chunks(data, start + 8, b"data", ">q")
    if b"desc" not in head or b"data" not in head:
        raise cut_short("CAF", f"it has no {'data' if b'desc' in head else 'desc'} chunk")
    desc, samples = head[b"desc"], head[b"data"]
    if (whole := min(desc.size, len(data) - desc.body)) < 32:
        raise cut_short("CAF", f"its desc chunk has {whole} bytes of 32")
    rate_hz, kind, _, packet_bytes, packet_frames, channels, _ = struct.unpack_from(
        ">d4sIIIII", data, desc.body
    )
    check_layout(channels, int(min(max(rate_hz, 0), 1e9)) if rate_hz == rate_hz else 0, limits)
    bytes_per_second = rate_hz * packet_bytes / max(packet_frames, 1)
    edits = 4  # bytes of a count of edits, in front of the samples
    announced = max(0, samples.size - edits) if samples.size >= 0 else LEFT_OPEN
    end, warning = end_of_samples(data, samples.body + edits, announced, ">q", bytes_per_second)
    if samples.size == LEFT_OPEN:  # as the format allows, of the last chunk
        warning = None
    behind = end_of_chunks(data, end, ">q")
    warnings = (warning,) if warning else ()
    payload = with_fields(data, start, behind, [(samples.body - 8, ">q", end - samples.body)])
    if kind in _CAF_PYAV:
        return Recording("CAF", payload, behind, "pyav", "caf", warnings=warnings)
    if kind not in _CAF_READ:
        raise _unsupported("CAF", kind.decode("latin-1").strip())
    return Recording(
        "CAF",
        payload,
        behind,
        demuxer="caf" if kind == b"alac" else "",  # of which libsndfile knows one form
        bytes_per_second=bytes_per_second,
        warnings=warnings,
    )


def open_au(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The AU file at `start`, with a size of its samples that is right."""
    if len(data) < start + 24:
        raise cut_short("AU", "it ends in its header")
    body, announced, encoding, rate_hz, channels = struct.unpack_from(">IIIII", data, start + 4)
    check_layout(channels, rate_hz, limits)
    if encoding not in _AU_READ:
        raise _unsupported("AU", f"encoding {encoding}")
    if not 24 <= body <= len(data) - start:
        raise cut_short("AU", f"its samples begin at byte {body:,} of {len(data) - start:,}")
    left_open = announced == 0xFFFFFFFF  # as the format allows
    bytes_per_second = rate_hz * channels * _AU_BYTES.get(encoding, 1)
    end, warning = end_of_samples(
        data, start + body, LEFT_OPEN if left_open else announced, ">I", bytes_per_second
    )
    payload = with_fields(data, start, end, [(start + 8, ">I", end - start - body)])
    warnings = (warning,) if warning and not left_open else ()
    return Recording("AU", payload, end, bytes_per_second=bytes_per_second, warnings=warnings)


def open_w64(data: bytes, start: int, limits: AudioLimits) -> Recording:
    """The W64 file at `start`, with a size of its samples that is right."""
    chunk = data.find(_W64_SAMPLES, start, start + _W64_HEAD_BYTES)
    layout = data.find(_W64_FORMAT, start, start + _W64_HEAD_BYTES)
    if chunk < 0 or layout < 0 or chunk + 24 > len(data):
        raise cut_short("W64", f"it has no {'data' if layout >= 0 else 'format'} chunk")
    announced = int.from_bytes(data[chunk + 16 : chunk + 24], "little") - 24
    bytes_per_second = int.from_bytes(data[layout + 32 : layout + 36], "little")
    end, warning = end_of_samples(data, chunk + 24, max(0, announced), "<I", bytes_per_second)
    fields = [(start + 16, "<Q", end - start), (chunk + 16, "<Q", end - chunk)]
    payload = with_fields(data, start, end, fields)
    return Recording(
        "W64",
        payload,
        len(data) if end % 8 and len(data) - end < 8 else end,
        bytes_per_second=bytes_per_second,
        warnings=(warning,) if warning else (),
    )


def _unsupported(container: str, codec: str) -> UnsupportedAudio:
    return UnsupportedAudio(
        f"the audio is {container} with a codec that is not supported: {codec!a}; {CONVERT}"
    )
