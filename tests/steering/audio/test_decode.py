from __future__ import annotations

import base64
import io
import math
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from steering.audio.clip import Clip
from steering.audio.decode import check_clip, decode, read_clip
from steering.audio.limits import AudioLimits
from steering.errors import AudioError, AudioTooLarge

RATE_HZ = 16_000
LIMITS = AudioLimits()
Floats = NDArray[np.float32]


def sine(
    rate_hz: int, *, hz: float = 440.0, amplitude: float = 0.5, seconds: float = 1.0
) -> Floats:
    time = np.arange(round(rate_hz * seconds)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def encode(
    samples: NDArray[np.generic],
    rate_hz: int = RATE_HZ,
    *,
    container: str = "WAV",
    subtype: str | None = None,
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    return file.getvalue()


def heard(data: bytes, *, limits: AudioLimits = LIMITS) -> Clip:
    return decode(data, rate_hz=RATE_HZ, limits=limits)


def amplitude_at(samples: Floats, hz: float) -> float:
    """Amplitude of the sine of `hz` in the middle half of `samples`, by correlation."""
    middle = samples[len(samples) // 4 : -(len(samples) // 4)]
    time = np.arange(len(middle)) / RATE_HZ
    turning = np.exp(-2j * np.pi * hz * time) * np.hanning(len(middle))
    return float(2 * abs((middle * turning).sum()) / np.hanning(len(middle)).sum())


# ---- what is heard


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAVEX", "PCM_24"),
        ("RF64", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_known_sine_is_heard(container: str, subtype: str, rate_hz: int, channels: int) -> None:
    if subtype == "OPUS" and rate_hz in (22_050, 44_100):
        rate_hz = 24_000  # Opus has no such rates
    tone = np.repeat(sine(rate_hz)[:, None], channels, axis=1)
    clip = heard(encode(tone, rate_hz, container=container, subtype=subtype))

    assert (clip.sample_rate_hz, clip.submitted_rate_hz) == (RATE_HZ, rate_hz)
    assert clip.channels == channels
    assert clip.submitted_seconds == pytest.approx(1.0, abs=1e-6)
    assert len(clip.samples) == pytest.approx(RATE_HZ, abs=2)
    assert clip.samples.dtype == np.float32
    assert clip.samples.flags.c_contiguous
    assert clip.samples.flags.writeable
    spectrum = np.abs(np.fft.rfft(clip.samples * np.hanning(len(clip.samples))))
    assert spectrum.argmax() * clip.sample_rate_hz / len(clip.samples) == pytest.approx(440, abs=2)
    lossy = container in ("OGG", "MP3")
    assert amplitude_at(clip.samples, 440) == pytest.approx(0.5, rel=0.05 if lossy else 0.002)


def test_channels_are_averaged() -> None:
    left, right = sine(RATE_HZ, hz=440, amplitude=0.6), sine(RATE_HZ, hz=1_000, amplitude=0.2)
    clip = heard(encode(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_array_equal(clip.samples, (left + right) / 2)


def test_opposite_channels_do_not_cancel() -> None:
    tone = sine(44_100)
    clip = heard(encode(np.stack([tone, -tone], axis=1), 44_100, subtype="FLOAT"))
    assert amplitude_at(clip.samples, 440) == pytest.approx(0.5, rel=0.01)
    assert "cancel" in clip.warnings[0]


def test_the_mean_is_what_is_resampled() -> None:
    both = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2)).astype(np.float32)
    clip = heard(encode(both, 44_100, subtype="FLOAT"))
    expected = soxr.resample(both.mean(axis=1), 44_100, RATE_HZ)
    np.testing.assert_array_equal(clip.samples, expected)


def test_nothing_above_half_the_rate_folds_back() -> None:
    clip = heard(encode(sine(48_000, hz=11_000), 48_000, subtype="FLOAT"))
    assert amplitude_at(clip.samples, 5_000) < 1e-4


@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3"])
def test_blocks_join_without_a_seam(container: str) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 200_000).astype(np.float32)
    data = encode(samples, container=container)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_allclose(heard(data).samples, whole, atol=1e-6)


def test_silence_is_audio() -> None:
    clip = heard(encode(np.zeros(16_000, np.int16)))
    assert clip.seconds == 1.0
    assert not clip.samples.any()


def test_floats_that_hold_integers_are_scaled_down() -> None:
    clip = heard(encode(sine(RATE_HZ, amplitude=32_767.0), subtype="FLOAT"))
    np.testing.assert_allclose(clip.samples, sine(RATE_HZ, amplitude=1.0), atol=1e-4)
    assert "divided by 32,768" in clip.warnings[0]


def test_exactly_the_longest_clip_is_heard() -> None:
    assert heard(encode(np.zeros(16_000 * 30, np.int16))).submitted_seconds == 30.0


def test_threads_hear_the_same() -> None:
    data = [encode(sine(RATE_HZ, hz=200.0 * n), container="FLAC") for n in range(1, 9)]
    expected = [heard(file).samples for file in data]
    with ThreadPoolExecutor(4) as pool:
        for clip, samples in zip(pool.map(heard, data), expected, strict=True):
            np.testing.assert_array_equal(clip.samples, samples)


# ---- files


def test_a_file_is_read_by_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "really_flac.mp3"
    path.write_bytes(encode(sine(RATE_HZ), container="FLAC"))
    clip = read_clip(path, rate_hz=RATE_HZ, limits=LIMITS)
    assert amplitude_at(clip.samples, 440) == pytest.approx(0.5, rel=0.01)


def test_what_was_not_heard_of_a_file_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(encode(sine(RATE_HZ))[:-8_000])
    for _ in range(2):
        assert read_clip(path, rate_hz=RATE_HZ, limits=LIMITS).warnings
        check_clip(path, LIMITS)
    (record,) = caplog.records
    assert f"{path}: its header announces 1.00 s" in record.getMessage()


def test_a_file_error_names_the_file(tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.wav", tmp_path / "text.wav"
    text.write_text("a shopping list")
    for path in (missing, text, tmp_path):
        with pytest.raises(AudioError, match=path.name):
            read_clip(path, rate_hz=RATE_HZ, limits=LIMITS)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        file.truncate(200_000_000)  # sparse
    assert peak_bytes(AudioTooLarge, lambda: read_clip(path, rate_hz=RATE_HZ, limits=LIMITS)) < 2e6


@pytest.mark.system
@pytest.mark.parametrize("folder", ["alsa", "freedesktop/stereo"])
def test_sounds_of_a_real_system_are_heard(folder: str) -> None:
    paths = [p for p in sorted(Path("/usr/share/sounds", folder).glob("*.*")) if p.is_file()]
    if not paths:
        pytest.skip(f"no sounds in /usr/share/sounds/{folder}")
    for path in paths:
        clip = read_clip(path, rate_hz=RATE_HZ, limits=LIMITS)
        assert clip.seconds == pytest.approx(clip.submitted_seconds, abs=1e-3), path
        assert 0.01 < np.abs(clip.samples).max() < 1.5, path


# ---- what is refused

WAV = encode(sine(RATE_HZ))
FLAC = encode(sine(RATE_HZ), container="FLAC")
VORBIS = encode(sine(RATE_HZ), container="OGG", subtype="VORBIS")
OPUS = encode(sine(RATE_HZ), container="OGG", subtype="OPUS")
MP3 = encode(sine(RATE_HZ), container="MP3")
ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
NOISE = np.random.default_rng(0).bytes(20_000)


def with_value(value: float) -> bytes:
    samples = sine(RATE_HZ)
    samples[12_000] = value
    return encode(np.stack([sine(RATE_HZ), samples], axis=1), subtype="FLOAT")


def wav_field(offset: int, code: str, value: int) -> bytes:
    """The WAV file with one header field replaced."""
    changed = bytearray(WAV)
    struct.pack_into(code, changed, offset, value)
    return bytes(changed)


def flac_field(*, frames: int | None = None, rate_hz: int | None = None) -> bytes:
    """The FLAC file with the frame count or the rate of its header replaced."""
    info = int.from_bytes(FLAC[18:26], "big")  # 20 bits rate, 3 channels, 5 depth, 36 frames
    if frames is not None:
        info = info >> 36 << 36 | frames
    if rate_hz is not None:
        info = info & (1 << 44) - 1 | rate_hz << 44
    return FLAC[:18] + info.to_bytes(8, "big") + FLAC[26:]


REFUSED = {
    "nothing": b"",
    "one byte": b"\xff",
    "zeros": bytes(20_000),
    "noise": NOISE,
    "text": b"What animal is this? " * 50,
    "an MP3 mark, then noise": b"\xff\xfb\x90\x00" + NOISE,
    "a FLAC mark, then noise": b"fLaC" + NOISE,
    "an OGG mark, then noise": b"OggS" + NOISE,
    "a WAV mark, then noise": b"RIFF\x00\x10\x00\x00WAVE" + NOISE,
    "VOC": encode(sine(RATE_HZ), container="VOC", subtype="PCM_16"),
    "WAV cut in its header": WAV[:20],
    "FLAC cut in its header": FLAC[:60],
    "Vorbis cut in its header": VORBIS[:60],
    "Vorbis cut in half": VORBIS[: len(VORBIS) // 2],
    "Opus cut in half": OPUS[: len(OPUS) // 2],
    "MP3 cut in its header": MP3[:60],
    "FLAC damaged in the middle": FLAC[:5_000] + bytes(100) + FLAC[5_100:],
    "no samples": encode(np.zeros(0, np.int16)),
    "one sample": encode(np.zeros(1, np.int16)),
    "10 ms": encode(np.zeros(160, np.int16)),
    "NaN": with_value(np.nan),
    "infinity": with_value(-np.inf),
    "a float beyond sense": with_value(1e30),
    "a double beyond a float": encode(np.full(16_000, 1e300), subtype="DOUBLE"),
    "9 channels": encode(np.zeros((16_000, 9), np.int16)),
    "32 channels": encode(np.zeros((16_000, 32), np.int16)),
    "no channels": wav_field(22, "<H", 0),
    "65535 channels": wav_field(22, "<H", 65_535),
    "rate 0": wav_field(24, "<I", 0),
    "rate 1": wav_field(24, "<I", 1),
    "rate 2 GHz": wav_field(24, "<I", 2**31 - 1),
    "rate 4 GHz": wav_field(24, "<I", 2**32 - 1),
    "FLAC at 655350 Hz": flac_field(rate_hz=655_350),
}
HEARD = {
    "AIFF": encode(sine(RATE_HZ), container="AIFF"),
    "AU": encode(sine(RATE_HZ), container="AU"),
    "CAF": encode(sine(RATE_HZ), container="CAF"),
    "W64": encode(sine(RATE_HZ), container="W64"),
    "a tag, then AIFF": ID3 + encode(sine(RATE_HZ), container="AIFF"),
    "a tag, then WAV": ID3 + WAV,
    "FLAC of unknown length": flac_field(frames=0),
    "FLAC that says it is shorter": flac_field(frames=8_000),
}
HEARD_WITH_A_WARNING = {
    "FLAC that says it is longer": flac_field(frames=20_000),
    "FLAC that says it is very long": flac_field(frames=2**36 - 1),
    "a WAV that says it is empty": wav_field(40, "<I", 0),
    "a WAV that says it is longer": wav_field(40, "<I", 100_000),
}


@pytest.mark.parametrize("data", HEARD.values(), ids=HEARD.keys())
def test_what_other_programs_write_is_heard(data: bytes) -> None:
    clip = heard(data)
    assert clip.submitted_seconds == 1.0
    assert amplitude_at(clip.samples, 440) == pytest.approx(0.5, rel=0.01)
    assert not clip.warnings


@pytest.mark.parametrize("data", HEARD_WITH_A_WARNING.values(), ids=HEARD_WITH_A_WARNING.keys())
def test_a_header_that_lies_is_told(data: bytes) -> None:
    clip = heard(data)
    assert clip.submitted_seconds == 1.0
    assert amplitude_at(clip.samples, 440) == pytest.approx(0.5, rel=0.01)
    assert "announces" in clip.warnings[0]


def test_flac_cut_in_half_is_heard_as_far_as_it_goes() -> None:
    clip = heard(FLAC[: len(FLAC) // 2])
    assert 0.2 < clip.submitted_seconds < 0.5
    assert "cut short" in clip.warnings[0]


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_can_not_be_heard_is_refused(data: bytes) -> None:
    with pytest.raises(AudioError) as caught:
        heard(data)
    message = str(caught.value)
    assert len(message) > 40
    for inside in ("libsndfile", "BytesIO", "object at", "Error in", "Error :"):
        assert inside not in message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "0 bytes"),
        (base64.b64encode(WAV), "base64"),
        (b'{"data": "UklGRg=="}', "JSON"),
        (b"<!doctype html><title>404</title>", "HTML"),
        (b"data:audio/wav;base64,UklGRg==", "data:"),
        (b"\x00\x00\x00\x20ftypM4A " + NOISE, "moov"),
        (b"\x1a\x45\xdf\xa3" + NOISE, "WebM"),
        (encode(sine(RATE_HZ), container="VOC", subtype="PCM_16"), "VOC"),
        (encode(np.zeros((16_000, 32), np.int16)), "32 channels"),
        (flac_field(rate_hz=655_350), "655350 Hz"),
        (with_value(np.nan), "0.750 s"),
        (with_value(np.inf), "inf"),
        (FLAC[:100], "cut short"),
        (OPUS[: len(OPUS) // 2], "cut short"),
        (encode(np.zeros(16_000 * 31, np.int16)), "31.00 s"),
    ],
)
def test_the_message_names_what_was_seen(data: bytes, word: str) -> None:
    with pytest.raises(AudioError, match=word):
        heard(data)


def test_more_bytes_than_allowed_are_too_large() -> None:
    with pytest.raises(AudioTooLarge, match=f"{len(WAV):,}"):
        heard(WAV, limits=AudioLimits(max_bytes=len(WAV) - 1))
    heard(WAV, limits=AudioLimits(max_bytes=len(WAV)))


def test_channels_and_rate_are_not_a_matter_of_size() -> None:
    for data in (encode(np.zeros((16_000, 9), np.int16)), flac_field(rate_hz=655_350)):
        with pytest.raises(AudioError) as caught:
            heard(data)
        assert not isinstance(caught.value, AudioTooLarge)


# ---- headers that lie


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1, 0x7FFFF000, 10_000_000])
def test_a_wav_that_promises_more_is_heard_as_far_as_it_goes(size: int) -> None:
    """Programs that write WAV to a pipe leave such a size behind."""
    clip = heard(wav_field(40, "<I", size))
    assert clip.submitted_seconds == 1.0


def test_a_wav_cut_short_says_how_much_there_was() -> None:
    clip = heard(WAV[: 44 + 16_000])
    assert clip.submitted_seconds == clip.seconds == pytest.approx(0.5, abs=0.001)


def test_a_damaged_mp3_is_heard_around_the_damage() -> None:
    clip = heard(MP3[:1_200] + bytes(50) + MP3[1_250:])
    assert clip.seconds == pytest.approx(1.0, abs=0.1)


def test_a_forged_rate_does_not_pass_the_limit_on_seconds() -> None:
    """40 s at 16 kHz, said to be 192 kHz, is 3.3 s of audio; at 655 kHz it is refused."""
    long = encode(np.zeros(16_000 * 40, np.int16))
    with pytest.raises(AudioTooLarge):
        heard(long)
    forged = bytearray(long)
    struct.pack_into("<I", forged, 24, 192_000)
    assert heard(bytes(forged)).seconds == pytest.approx(40 / 12, abs=0.001)
    struct.pack_into("<I", forged, 24, 655_350)
    with pytest.raises(AudioError):
        heard(bytes(forged))


def peak_bytes(expected: type[AudioError] | None, call: Callable[[], Clip]) -> int:
    """Bytes that Python and numpy held at most while `call` ran."""
    tracemalloc.start()
    try:
        if expected is None:
            call()
        else:
            with pytest.raises(expected):
                call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def flac_silence(*, hours: float) -> bytes:
    file = io.BytesIO()
    left, block = round(hours * 3_600 * 4_000), np.zeros(2**20, np.int16)
    with soundfile.SoundFile(file, "w", 4_000, 1, format="FLAC") as writer:
        while left > 0:
            writer.write(block[:left])
            left -= len(block)
    return file.getvalue()


def ogg_crc(page: bytearray) -> int:
    crc = 0
    for byte in page:
        crc = crc << 8 & 0xFFFFFFFF ^ OGG_CRC[crc >> 24 ^ byte]
    return crc


def ogg_crc_of(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = crc << 1 ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc


OGG_CRC = [ogg_crc_of(byte) for byte in range(256)]


def ogg_page(packets: list[bytes], *, flags: int, granule: int, number: int) -> bytes:
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, 7, number, 0, len(packets))
    page = bytearray(head + bytes(len(packet) for packet in packets) + b"".join(packets))
    struct.pack_into("<I", page, 22, ogg_crc(page))
    return bytes(page)


def opus_silence(*, hours: float, announced_hours: float | None = None) -> bytes:
    """Packets of 2 bytes for 120 ms each; the last page may announce another length."""
    count = round(hours * 3_600 / 0.12)
    head = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 0, 48_000, 0, 0)
    pages = [
        ogg_page([head], flags=2, granule=0, number=0),
        ogg_page([b"OpusTags" + bytes(8)], flags=0, granule=0, number=1),
    ]
    packet = bytes([31 << 3 | 3, 6])  # six empty frames of 20 ms
    for first in range(0, count, 255):
        some = min(255, count - first)
        granule, last = (first + some) * 5_760, first + some == count
        if last and announced_hours is not None:
            granule = round(announced_hours * 3_600 * 48_000)
        pages.append(ogg_page([packet] * some, flags=4 * last, granule=granule, number=len(pages)))
    return b"".join(pages)


def test_the_opus_we_forge_is_opus() -> None:
    assert heard(opus_silence(hours=20 / 3_600)).submitted_seconds == pytest.approx(20, abs=0.12)


@pytest.mark.parametrize("bomb", [flac_silence, opus_silence])
def test_hours_of_silence_are_refused_before_they_are_decoded(
    bomb: Callable[..., bytes],
) -> None:
    data = bomb(hours=3)
    assert len(data) < 400_000  # as samples: 172 MB and 2 GB
    assert peak_bytes(AudioTooLarge, lambda: heard(data)) < 1e6


def test_hours_that_announce_a_second_are_hours() -> None:
    data = opus_silence(hours=3, announced_hours=1 / 3_600)
    assert peak_bytes(AudioTooLarge, lambda: heard(data)) < 4e6


def test_no_header_makes_us_hold_more_than_the_limits_say() -> None:
    """The worst that passes: the longest clip at the highest rate, with the most channels."""
    limits = AudioLimits(max_seconds=2.0)
    data = encode(np.zeros((2 * 192_000, 8), np.int16), 192_000, container="FLAC")
    blocks = 3 * 65_536 * 8 * 4  # one block, its magnitudes, and room
    held = peak_bytes(None, lambda: heard(data, limits=limits))
    assert held < limits.max_decoded_bytes + blocks


@pytest.mark.parametrize("seed", range(8))
def test_mutated_files_are_heard_or_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for source in (WAV, FLAC, VORBIS, OPUS, MP3, with_value(0.0)):
        for _ in range(12):
            data = bytearray(source)
            for _ in range(rng.integers(1, 8)):
                data[rng.integers(len(data) if rng.random() < 0.3 else 120)] = rng.integers(256)
            try:
                clip = heard(bytes(data[: rng.integers(len(data) // 2, len(data) + 1)]))
            except AudioError:
                continue
            assert np.isfinite(clip.samples).all()
            assert clip.submitted_seconds <= LIMITS.max_seconds


# ---- a clip of which only the start is kept


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "OPUS", "MP3", "AIFF", "W64"])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 48_000])
def test_what_is_kept_is_what_would_be_heard_and_all_is_counted(
    container: str, rate_hz: int
) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * rate_hz).astype(np.float32)
    opus = container == "OPUS"
    name, subtype = ("OGG", "OPUS") if opus else (container, None)
    data = encode(samples, rate_hz, container=name, subtype=subtype)
    whole = heard(data)
    start = heard(data, limits=replace(LIMITS, kept_seconds=2.0))
    assert start.submitted_seconds == pytest.approx(whole.submitted_seconds, abs=1e-6)
    assert len(start.samples) == pytest.approx(2 * RATE_HZ, abs=1)
    sure = RATE_HZ  # beyond, the resampler hears where it was cut
    np.testing.assert_array_equal(start.samples[:sure], whole.samples[:sure])
    assert start.warnings == whole.warnings


def test_files_one_behind_the_other_are_counted_and_kept_as_one() -> None:
    data = encode(sine(RATE_HZ), container="MP3") + encode(sine(8_000), 8_000, container="MP3")
    whole = heard(data)
    start = heard(data, limits=replace(LIMITS, kept_seconds=0.5))
    assert start.submitted_seconds == pytest.approx(whole.submitted_seconds, abs=1e-6)
    assert len(start.samples) == RATE_HZ / 2
    assert "2 recordings" in start.warnings[-1] and "heard" not in start.warnings[-1]


def test_the_limit_holds_for_all_that_is_counted() -> None:
    data = encode(np.repeat(sine(RATE_HZ), 4))
    with pytest.raises(AudioTooLarge, match=r"4\.00 s long; at most 3 s"):
        heard(data, limits=AudioLimits(max_seconds=3.0, kept_seconds=1.0))


@pytest.mark.parametrize("bomb", [flac_silence, opus_silence], ids=["FLAC", "Opus"])
def test_hours_are_cut_in_memory_for_what_is_kept(bomb: Callable[..., bytes]) -> None:
    limits = AudioLimits(max_seconds=math.inf, kept_seconds=2.0)
    data = bomb(hours=3)
    assert peak_bytes(None, lambda: heard(data, limits=limits)) < 4e6
    clip = heard(data, limits=limits)
    assert clip.submitted_seconds == pytest.approx(3 * 3_600, abs=1)
    assert clip.seconds == pytest.approx(2.0, abs=0.01)
    weeks = bomb(hours=6)
    clip = heard(weeks, limits=limits)
    assert 4 * 3_600 < clip.submitted_seconds < 4.01 * 3_600
    assert clip.warnings == ("it is longer than 4 hours; how much was not counted",)
