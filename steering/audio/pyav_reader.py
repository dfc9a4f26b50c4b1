"""FFmpeg, through PyAV: the reader of what phones and browsers record, behind the extra `av`.

FFmpeg is large, and its demuxers have been broken into. So it gets a container that was found out
before and never guesses one; it opens no other file and no address, whatever a file refers to; only
the decoders below ever run; and a clip ends where the limits do.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from steering.audio.limits import CONVERT, AudioLimits, check_layout
from steering.audio.recording import Block, Findings, Recording, damaged
from steering.errors import AudioError, UnsupportedAudio

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

_DECODERS = (
    *("aac", "alac", "opus", "vorbis", "flac", "mp3", "mp3float", "amrnb", "amrwb"),
    *("pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le"),
    *("pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw"),
)
_OPTIONS = {
    "protocol_whitelist": "none",  # there is no such protocol
    "codec_whitelist": ",".join(_DECODERS),
    "max_streams": "32",
}
_TOLD_SECONDS = 0.1  # a shorter gap is rounding
_PRIMING_SAMPLES = 3_072  # at most, which an encoder puts in front and some headers count
_LENGTH_IN_HEADER = ("mp4", "matroska", "caf")


def is_installed() -> bool:
    """Whether the extra is there. Loads it."""
    try:
        import av
    except ImportError:
        return False
    av.logging.set_level(None)  # what it thinks of files is nobody's business
    return True


def blocks(recording: Recording, limits: AudioLimits, findings: Findings) -> Iterator[Block]:
    """The samples of a recording that are kept, decoded as they are taken.

    Raises UnsupportedAudio for another codec, and where the extra is not installed; AudioError for
    a damaged file, and for channels or a rate outside the limits.
    """
    if not is_installed():
        raise UnsupportedAudio(
            f"the audio is {recording.container}, which is read with the extra `av`, not installed"
            f" here: `pip install 'allears[av]'` where the server runs, or {CONVERT}"
        )
    import av

    options = {**_OPTIONS, "format_whitelist": recording.demuxer}
    try:
        with av.open(
            io.BytesIO(recording.payload),
            "r",
            format=recording.demuxer,
            container_options=options,
            **_lenient(av.__version__),
            io_open=_refuse,
        ) as container:
            yield from _decoded(container, recording, limits, findings)
    except (av.error.FFmpegError, PermissionError) as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from None
        raise damaged(recording.container, len(recording.payload)) from None


def _lenient(version: str) -> dict[str, Any]:
    """Before PyAV 19 a tag that is not UTF-8 is an error if nothing is said of it."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


def _refuse(*_: Any) -> NoReturn:
    """What a file refers to is not opened."""
    raise PermissionError


def _decoded(
    container: InputContainer, recording: Recording, limits: AudioLimits, findings: Findings
) -> Iterator[Block]:
    """The first sound track as far as it is kept, and what of it could not be had."""
    stream = _sound_track(container, recording, limits, findings.notes)
    tally = _Tally()
    for frame in _frames(container, stream, tally):
        samples = _floats(frame)
        check_layout(samples.shape[1], frame.sample_rate, limits)
        kept = samples[: int(min(len(samples), tally.seconds_left(limits) * frame.sample_rate))]
        if len(kept):
            yield Block(frame.sample_rate, kept)
        if len(kept) < len(samples):
            cut = (len(samples) - len(kept)) / frame.sample_rate
            findings.seconds_behind = cut + _seconds_behind(container, stream, tally, limits)
            return
        tally.add(frame)
    if not tally.heard:
        raise damaged(recording.container, len(recording.payload))
    findings.notes += tally.notes(_announced_seconds(container, stream, recording))


def _seconds_behind(
    container: InputContainer, stream: AudioStream, tally: _Tally, limits: AudioLimits
) -> float:
    """Seconds of the packets that come next, which are not decoded."""
    seconds = 0.0
    for packet in container.demux(stream):
        if packet.duration and packet.time_base:
            seconds += float(packet.duration * packet.time_base)
        if tally.heard + seconds > limits.counted_seconds:
            break
    return seconds


def _sound_track(
    container: InputContainer, recording: Recording, limits: AudioLimits, notes: list[str]
) -> AudioStream:
    tracks = container.streams.audio
    if not tracks:
        raise AudioError(f"the {recording.container} file holds no sound; send one that does")
    context = tracks[0].codec_context
    name = context.codec.name if context else "one that FFmpeg does not know"
    if name not in _DECODERS:
        raise UnsupportedAudio(
            f"the audio is {recording.container} with a codec that is not supported: {name};"
            f" {CONVERT}"
        )
    if len(tracks) > 1:
        notes.append(f"it holds {len(tracks)} sound tracks; the first is heard")
    check_layout(context.channels, context.sample_rate, limits)
    context.thread_type, context.thread_count = "NONE", 1  # each takes address space
    return tracks[0]


@dataclass(slots=True)
class _Tally:
    """How much was heard, and what was not."""

    rate_hz: int = 1
    heard: float = 0.0  # seconds
    first: float | None = None  # second of the first frame, by its timestamp
    end: float = 0.0  # second at which the last frame ends, by its timestamp
    damaged_packets: int = 0
    damaged_seconds: float = 0.0
    stopped: bool = False  # by an error of the container

    def seconds_left(self, limits: AudioLimits) -> float:
        """Seconds of those to come that are kept."""
        return limits.kept_seconds - self.heard

    def add(self, frame: AudioFrame) -> None:
        """Count a frame that was heard."""
        seconds = frame.samples / frame.sample_rate
        self.rate_hz = frame.sample_rate
        self.heard += seconds
        if frame.time is not None:
            self.first = frame.time if self.first is None else self.first
            self.end = max(self.end, frame.time + seconds)

    def damage(self, packet: Packet[AudioStream]) -> None:
        """Count a packet that could not be decoded."""
        self.damaged_packets += 1
        if packet.duration and packet.time_base:
            self.damaged_seconds += float(packet.duration * packet.time_base)

    def notes(self, announced: float) -> Iterator[str]:
        """What was not heard, of so many seconds that the header announces; 0 for unknown."""
        if self.damaged_packets:
            yield (
                f"{self.damaged_packets:,} of its packets ({self.damaged_seconds:.2f} s) are"
                " damaged and were not heard"
            )
        gap = self.end - (self.first or 0.0) - self.heard
        if gap - self.damaged_seconds > _TOLD_SECONDS:
            yield f"its timestamps leave gaps of {gap:.2f} s in all, for which no sound is there"
        missing = announced - max(self.heard, self.end - (self.first or 0.0))
        if self.stopped or missing > max(_TOLD_SECONDS, _PRIMING_SAMPLES / self.rate_hz):
            whole = f"of {announced:.2f} s that its header announces, " if announced else ""
            yield f"{whole}{self.heard:.2f} s could be read: it is damaged or cut short"


def _frames(container: InputContainer, stream: AudioStream, tally: _Tally) -> Iterator[AudioFrame]:
    """The frames that can be decoded; others are counted."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            if error.errno == errno.ENOMEM:
                raise
            tally.stopped = True
            return
        if packet is None:
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if error.errno == errno.ENOMEM:
                raise
            tally.damage(packet)
            continue
        yield from (frame for frame in frames if isinstance(frame, av.AudioFrame))


def _floats(frame: AudioFrame) -> NDArray[np.float32]:
    """(S, channels) from -1 to 1, of whatever form FFmpeg's samples have."""
    samples: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    floats = np.ascontiguousarray(samples.T, np.float32)
    if samples.dtype.kind == "u":
        floats -= 128
    if samples.dtype.kind in "iu":
        floats /= np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return floats


def _announced_seconds(
    container: InputContainer, stream: AudioStream, recording: Recording
) -> float:
    """The length by the header; 0 where there is none, and FFmpeg would guess."""
    if recording.demuxer not in _LENGTH_IN_HEADER:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1 and container.duration is not None
    return (container.duration or 0) / 1e6 if alone else 0.0
