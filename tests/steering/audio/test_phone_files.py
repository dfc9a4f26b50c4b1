"""What phones and browsers record, and what a demuxer as large as FFmpeg's may not do."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from steering.audio import pyav_reader
from steering.audio.limits import AudioLimits
from steering.audio.phone_files import open_adts, open_amr, open_matroska, open_mp4
from steering.errors import AudioError, AudioTooLarge, UnsupportedAudio
from tests.steering.audio.files import heard, id3, noise

KINDS = {  # muxer and encoder
    "M4A, AAC": ("ipod", "aac"),
    "M4A, ALAC": ("ipod", "alac"),
    "MP4, MP3": ("mp4", "libmp3lame"),
    "MOV, PCM": ("mov", "pcm_s16le"),
    "WebM, Opus": ("webm", "libopus"),
    "Matroska, AAC": ("matroska", "aac"),
    "AAC": ("adts", "aac"),
    "3GP": ("3gp", "aac"),
}


def muxed(
    muxer: str,
    encoder: str,
    seconds: float = 2.0,
    *,
    rate_hz: int = 48_000,
    channels: int = 1,
    samples: NDArray[Any] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A file with noise of so many seconds."""
    if samples is None:
        samples = noise(seconds, rate_hz=rate_hz, channels=channels)
    file = io.BytesIO()
    with av.open(file, "w", format=muxer, container_options=options or {}) as output:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
        stream = output.add_stream(encoder, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        packed = (samples * 32_767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
        frame.sample_rate, frame.pts = rate_hz, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return file.getvalue()


def amr(seconds: float = 2.0) -> bytes:
    """Frames of 12.2 kbit/s that hold some bits: there is no encoder."""
    rng = np.random.default_rng(0)
    return b"#!AMR\n" + b"".join(b"\x3c" + rng.bytes(31) for _ in range(round(seconds * 50)))


WHOLE = {**{name: muxed(*kind) for name, kind in KINDS.items()}, "AMR": amr()}


@pytest.mark.parametrize("name", WHOLE)
def test_they_are_heard(name: str) -> None:
    clip = heard(WHOLE[name])
    assert clip.submitted_seconds == pytest.approx(2.0, abs=0.1)
    assert clip.submitted_rate_hz == (8_000 if name == "AMR" else 48_000)
    assert np.sqrt((clip.samples**2).mean()) > 0.05
    assert not clip.warnings


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_rates_and_channels_are_heard(rate_hz: int, channels: int) -> None:
    for kind in ("M4A, AAC", "MOV, PCM"):
        clip = heard(muxed(*KINDS[kind], rate_hz=rate_hz, channels=channels))
        assert (clip.submitted_rate_hz, clip.channels) == (rate_hz, channels)
        assert clip.submitted_seconds == pytest.approx(2.0, abs=0.1)


def test_samples_come_through_as_they_are() -> None:
    samples = noise(1.0, rate_hz=16_000, channels=2)
    expected = ((samples * 32_767).astype(np.int16) / np.float32(32_768)).mean(axis=1)
    for muxer, encoder in (("mov", "pcm_s16le"), ("ipod", "alac"), ("mov", "pcm_s24le")):
        clip = heard(muxed(muxer, encoder, rate_hz=16_000, samples=samples))
        np.testing.assert_allclose(clip.samples, expected, atol=1e-6)


def test_a_file_written_for_a_stream_is_heard() -> None:
    """As browsers do it: no length, no index, fragments."""
    live = muxed("webm", "libopus", options={"live": "1"})
    fragments = muxed("mp4", "aac", options={"movflags": "frag_keyframe+empty_moov"})
    for data in (live, fragments):
        assert heard(data).submitted_seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_file_is_told_or_refused(name: str) -> None:
    data = WHOLE[name]
    try:
        clip = heard(data[: len(data) * 2 // 3])
    except AudioError as error:
        assert "cut short" in str(error)
    else:
        assert clip.submitted_seconds < 1.8
        assert clip.warnings


def test_an_mp4_without_its_index_is_refused_as_such() -> None:
    with pytest.raises(AudioError, match="moov"):
        heard(WHOLE["M4A, AAC"][:5_000])


def test_damaged_packets_are_told() -> None:
    data = bytearray(muxed("mov", "libmp3lame"))
    start = data.index(b"mdat") + 3_000
    data[start : start + 3_000] = bytes(3_000)
    clip = heard(bytes(data))
    assert clip.submitted_seconds < 1.95
    assert "damaged" in clip.warnings[0]


@pytest.mark.parametrize("name", ["M4A, AAC", "WebM, Opus", "AAC"])
def test_files_one_behind_the_other_are_heard(name: str) -> None:
    clip = heard(WHOLE[name] + WHOLE[name])
    assert clip.submitted_seconds == pytest.approx(4.0, abs=0.2)


def test_tags_in_front_and_behind_are_no_sound() -> None:
    for name in ("AAC", "M4A, AAC"):
        clip = heard(id3(300) + WHOLE[name] + b"TAG" + bytes(125))
        assert clip.submitted_seconds == pytest.approx(2.0, abs=0.1)
        assert not clip.warnings


@pytest.mark.parametrize("name", ["M4A, AAC", "WebM, Opus"])
def test_tags_that_are_not_text_are_no_matter(name: str) -> None:
    encoder = WHOLE[name].index(b"Lavf")  # FFmpeg's own tag
    clip = heard(WHOLE[name][:encoder] + b"\xff\xfe\xff\xc0" + WHOLE[name][encoder + 4 :])
    assert clip.submitted_seconds == pytest.approx(2.0, abs=0.1)


# ---- limits


@pytest.mark.parametrize("name", ["M4A, AAC", "WebM, Opus", "AAC", "AMR"])
def test_more_seconds_than_allowed_are_refused(name: str) -> None:
    with pytest.raises(AudioTooLarge, match=r"longer than the 1\.5 s"):
        heard(WHOLE[name], limits=AudioLimits(max_seconds=1.5))


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_kept_is_what_would_be_heard_and_all_is_counted(name: str) -> None:
    whole = heard(WHOLE[name])
    start = heard(WHOLE[name], limits=AudioLimits(max_seconds=math.inf, kept_seconds=1.0))
    assert start.submitted_seconds == pytest.approx(whole.submitted_seconds, abs=0.1)
    assert start.seconds == pytest.approx(1.0, abs=0.001)
    np.testing.assert_array_equal(start.samples[:8_000], whole.samples[:8_000])
    assert start.warnings == whole.warnings


def test_a_length_that_lies_is_no_matter() -> None:
    data = muxed("ipod", "aac", 20.0)
    lying = bytearray(data)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.index(box)
        duration = at + (24 if box == b"tkhd" else 20)
        lying[duration : duration + 4] = (1).to_bytes(4, "big")
    with pytest.raises(AudioTooLarge):
        heard(bytes(lying), limits=AudioLimits(max_seconds=5.0))


def test_rates_and_channels_outside_the_limits_are_refused() -> None:
    with pytest.raises(AudioError, match="rate is 8000"):
        heard(WHOLE["AMR"], limits=AudioLimits(min_rate_hz=16_000))
    with pytest.raises(AudioError, match="6 channels"):
        heard(muxed("ipod", "aac", channels=6), limits=AudioLimits(max_channels=2))


# ---- what FFmpeg may not do


def test_other_codecs_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedAudio, match="not supported: ac3"):
        heard(muxed("mp4", "ac3"))


def test_a_video_without_sound_is_refused_as_such() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = 64
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="holds no sound"):
        heard(file.getvalue())


def boxes_grown(data: bytearray, at: int, more: int) -> None:
    """Add to the sizes of the boxes that a byte is in."""
    start, end = 0, len(data)
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        if start <= at < start + size:
            data[start : start + 4] = (size + more).to_bytes(4, "big")
            if bytes(data[start + 4 : start + 8]) not in (
                b"moov",
                b"trak",
                b"mdia",
                b"minf",
                b"dinf",
            ):
                return
            start, end = start + 8, start + size
        else:
            start += size


def with_reference(data: bytes, target: str) -> bytes:
    """A MOV whose samples are said to be in another file, by a record of the Macintosh's."""
    path = target.encode() + b"\0" * (len(target) % 2)
    record = bytes(4 + 10 + 28 + 12 + 64 + 16 + 4 + 16)
    record += b"\0\x02" + len(path).to_bytes(2, "big") + path + b"\xff\xff\0\0" + bytes(40)
    changed = bytearray(data)
    at = data.index(b"dref") + 12  # the box of the one reference there is
    size = int.from_bytes(data[at : at + 4], "big")
    box = (8 + len(record)).to_bytes(4, "big") + b"alis" + record
    boxes_grown(changed, at, len(box) - size)
    changed[at : at + size] = box
    return bytes(changed)


def test_no_other_file_and_no_address_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*given: Any) -> None:
        asked.append(given)
        raise PermissionError

    monkeypatch.setattr(pyav_reader, "_refuse", refuse)
    for target in ("/etc/passwd", "http://127.0.0.1:9/x", "concat:/etc/passwd"):
        forged = with_reference(WHOLE["MOV, PCM"], target)
        try:
            heard(forged)
        except AudioError as error:
            assert "passwd" not in str(error)
    assert not asked

    follow = {"enable_drefs": "1", "use_absolute_path": "1"}  # the file is forged well
    with pytest.raises(PermissionError):
        av.open(io.BytesIO(forged), format="mov", container_options=follow, io_open=refuse)
    assert asked


def test_a_demuxer_is_never_guessed() -> None:
    """A playlist in the clothes of an MP4, for instance."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    for data in (
        b"\0\0\0\x14ftypM4A \0\0\0\0isom" + playlist,
        b"\0\0\0\x08free" + playlist,
        b"\x1a\x45\xdf\xa3" + playlist,
        b"#!AMR\n" + playlist,
    ):
        with pytest.raises(AudioError):
            heard(data)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for name in WHOLE:
        with pytest.raises(UnsupportedAudio, match=r"pip install 'allears\[av\]'"):
            heard(WHOLE[name])


# ---- where files end


def test_boxes_and_frames_are_followed() -> None:
    limits = AudioLimits()
    mp4, webm = WHOLE["M4A, AAC"], WHOLE["WebM, Opus"]
    assert open_mp4(mp4 + mp4, 0, limits).end == len(mp4)
    assert open_matroska(webm + webm, 0, limits).end == len(webm)
    aac = WHOLE["AAC"]
    torn = open_adts(aac[:500] + b"junk" * 30 + aac[500:], 0, limits)
    assert torn.end == len(aac) + 120
    assert "between its frames" in torn.warnings[0]
    amr = open_amr(WHOLE["AMR"][:-5], 0, limits)
    assert "cut short" in amr.warnings[0]
    with pytest.raises(UnsupportedAudio, match="several channels"):
        open_amr(b"#!AMR_MC1.0\n" + bytes(99), 0, limits)
