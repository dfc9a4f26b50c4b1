"""Audio that broke other servers: far larger than its file, forged, or damaged on purpose."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[3]
QUESTION = "What is this?"


# ---- audio that is far larger than its file


def ogg(pages: NDArray[np.uint8]) -> bytes:
    """(N, bytes) Ogg pages of one length, with their checksums, all made side by side."""
    table = np.arange(256, dtype=np.uint32) << np.uint32(24)
    for _ in range(8):
        carry = np.where(table >> np.uint32(31), np.uint32(0x04C11DB7), np.uint32(0))
        table = (table << np.uint32(1)) ^ carry
    crc = np.zeros(len(pages), np.uint32)
    for column in pages.T:
        crc = (crc << np.uint32(8)) ^ table[(crc >> np.uint32(24)) ^ column]
    pages[:, 22:26] = crc.astype("<u4").view(np.uint8).reshape(-1, 4)
    return pages.tobytes()


def page(packets: Sequence[bytes], *, flags: int, number: int) -> NDArray[np.uint8]:
    """(1, bytes) one Ogg page without position and checksum."""
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, 0, 7, number, 0, len(packets))
    data = head + bytes(len(packet) for packet in packets) + b"".join(packets)
    return np.frombuffer(data, np.uint8)[None].copy()


def opus_bomb(size: int, announced_seconds: float | None) -> tuple[bytes, float]:
    """Up to `size` bytes of Opus and its seconds; the last page may announce other ones.

    Every packet is 2 bytes for six empty frames of 20 ms.
    """
    head = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 0, 48_000, 0, 0)
    start = ogg(page([head], flags=2, number=0))
    start += ogg(page([b"OpusTags" + bytes(8)], flags=0, number=1))
    full_page = page([bytes([31 << 3 | 3, 6])] * 255, flags=0, number=0)
    count = (size - len(start)) // full_page.shape[1]
    pages = np.tile(full_page, (count, 1))
    granules = (np.arange(count, dtype="<i8") + 1) * 255 * 5_760
    seconds = float(granules[-1]) / 48_000
    if announced_seconds is not None:
        granules[-1] = round(announced_seconds * 48_000)
    pages[:, 6:14] = granules.view(np.uint8).reshape(count, 8)
    pages[:, 18:22] = (np.arange(count, dtype="<u4") + 2).view(np.uint8).reshape(count, 4)
    pages[-1, 5] = 4
    return start + ogg(pages), seconds


DECODED = """
import json, pathlib, resource, sys
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.errors import AudioError
small, data = (pathlib.Path(path).read_bytes() for path in sys.argv[1:3])
limits = AudioLimits(**json.loads(sys.argv[3]))
unit = 1 if sys.platform == "darwin" else 1024
def held():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
decode(small, rate_hz=16_000, limits=limits)
before = held()
try:
    said = decode(data, rate_hz=16_000, limits=limits).submitted_seconds
except AudioError as error:
    said = type(error).__name__
print(json.dumps([said, held() - before]))
"""


CUT = {"max_seconds": math.inf, "kept_seconds": 30.0}


def decoded_alone(small: bytes, data: bytes, folder: Path, **limits: float) -> tuple[Any, int]:
    """Seconds or error of a clip in a process of its own, and how far its memory grew, in bytes."""
    for name, some in (("small", small), ("large", data)):
        (folder / name).write_bytes(some)
    words = [sys.executable, "-c", DECODED, str(folder / "small"), str(folder / "large")]
    words.append(json.dumps(limits))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    said, grown = json.loads(done.stdout)
    return said, grown


@pytest.mark.parametrize("announced_seconds", [None, 29.0, 0.5])
def test_25_mb_of_opus_do_not_become_gigabytes(
    server: Any, make_sound: Any, tmp_path: Path, announced_seconds: float | None
) -> None:
    """Eleven days in 25 MB; memory is that of the whole process, libsndfile's included."""
    data, seconds = opus_bomb(25_000_000, announced_seconds)
    assert len(data) > 24_900_000
    assert seconds * 48_000 * 4 > 180e9  # bytes as float32
    ordinary = make_sound(29, rate_hz=48_000)
    said, grown = decoded_alone(ordinary, data, tmp_path)
    assert said == "AudioTooLarge"  # whatever it announces
    assert grown < 10e6  # beyond what an ordinary clip of 29 s takes
    said, grown = decoded_alone(ordinary, data, tmp_path, **CUT)
    assert said == pytest.approx(4 * 3_600, rel=0.01), "not counted any further"
    assert grown < 10e6
    files = {"audio": ("x.opus", data, "audio/ogg")}
    response = server.post("/v1/audio-chat", files=files, data={"question": QUESTION})
    assert response.status_code == 200, response.text
    assert response.json()["audio"][0]["truncated"]
    assert "longer than 4 hours" in "".join(response.json()["warnings"])


def test_a_forged_rate_is_refused_or_counted(start: Any, make_sound: Any) -> None:
    """40 s of samples are too long at their own rate, and at no other are they 40 s to us."""
    long = bytearray(make_sound(40))
    with start(max_audio_seconds=30.0) as server:
        for rate_hz, status in ((16_000, 413), (192_000, 200), (655_350, 400), (2**32 - 1, 400)):
            struct.pack_into("<I", long, 24, rate_hz)
            body = {"data": base64.b64encode(long).decode()}
            response = server.chat(audio=body, question=QUESTION, max_tokens=1)
            assert response.status_code == status, response.text
            if status == 200:
                heard = response.json()["audio"][0]
                assert heard["submitted_seconds"] == pytest.approx(40 * 16_000 / rate_hz, abs=0.01)


def silence(muxer: str, encoder: str, seconds: int) -> bytes:
    """A file of silence, as phones and browsers record."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=muxer) as output:
        stream = output.add_stream(encoder, rate=8_000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, seconds * 8_000), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8_000, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            output.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("kind", [("ipod", "aac"), ("webm", "libopus")])
def test_minutes_in_few_bytes_are_cut_or_refused_where_the_limit_is(
    server: Any, make_sound: Any, tmp_path: Path, kind: tuple[str, str]
) -> None:
    small, data = silence(*kind, 29), silence(*kind, 600)
    assert len(data) < 400_000  # as samples: 19 MB
    said, grown = decoded_alone(small, data, tmp_path)
    assert said == "AudioTooLarge"
    assert grown < 2e6
    said, grown = decoded_alone(small, data, tmp_path, **CUT)
    assert said == pytest.approx(600, abs=1)
    assert grown < 2e6
    body = {"data": base64.b64encode(data).decode()}
    started = time.monotonic()
    cut = server.chat(audio=body, question=QUESTION, max_tokens=1)
    assert cut.status_code == 200, cut.text
    assert cut.json()["audio"][0]["submitted_seconds"] == pytest.approx(600, abs=1)
    response = server.chat(audio=body, question=QUESTION, max_tokens=1, long_audio="window")
    assert response.status_code == 413, response.text
    assert time.monotonic() - started < 10


# ---- the decoders: which, where, and that they keep their words to themselves

FOREIGN = ("av", "ffmpeg", "torchcodec", "torchaudio", "librosa", "audioread", "pydub", "decord")
LISTENED = """
import json, sys
import server.cli, server.app
from steering.audio.decode import read_clip
from steering.audio.limits import AudioLimits
from steering.model.loading import load
for path in sys.argv[2:]:
    read_clip(path, rate_hz=16_000, limits=AudioLimits())
load(sys.argv[1], device="cpu")
libraries = []
if sys.platform == "linux":
    libraries = sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
print(json.dumps([sorted({name.split(".")[0] for name in sys.modules}), libraries]))
"""


@pytest.mark.slow
def test_no_ffmpeg_is_in_the_process(
    checkpoint_folder: Path, make_sound: Any, tmp_path: Path
) -> None:
    """All that a server imports and maps when it has loaded a model, and libsndfile's formats."""
    for container in ("WAV", "FLAC", "OGG", "MP3"):
        (tmp_path / container).write_bytes(make_sound(container=container))
    words = [sys.executable, "-c", LISTENED, str(checkpoint_folder)]
    words += map(str, tmp_path.iterdir())
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    modules, libraries = json.loads(done.stdout)
    assert {"soundfile", "transformers", "uvicorn"} <= set(modules)
    assert not set(FOREIGN) & set(modules)
    mapped = [Path(path).name for path in libraries]
    assert any("sndfile" in name for name in mapped) or not mapped
    assert not [name for name in mapped if re.match(r"lib(av|sw)[a-z]+[.-]", name)]
    locked = (ROOT / "lock" / "serve.txt").read_text()
    others = "|".join(FOREIGN[1:])  # but PyAV, for the processes that decode
    assert not re.search(rf"^({others})==", locked, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ffmpeg_runs_in_the_decoding_processes_only(
    serve_process: Any, checkpoint_folder: Path, profile_folder: Path, tmp_path: Path
) -> None:
    sound = base64.b64encode(silence("ipod", "aac", 40)).decode()
    body = {"audio": {"data": sound}, "question": QUESTION, "long_audio": "window"}
    with serve_process(checkpoint_folder, profile_folder, tmp_path / "log") as (process, url):
        response = httpx.post(f"{url}/v1/listening-score", json=body, timeout=60)
        assert response.status_code == 200, response.text
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libavformat" not in maps
        children = psutil.Process(process.pid).children()
        mapped = [Path(f"/proc/{child.pid}/maps").read_text() for child in children]
        assert any("libavformat" in text for text in mapped)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_the_decoders_words_and_addresses_stay_inside(
    server: Any, make_sound: Any, caplog: pytest.LogCaptureFixture, container: str
) -> None:
    sound = make_sound(container=container)
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(20):
        damaged = bytearray(sound[: rng.integers(20, len(sound))])
        for place in rng.integers(4, min(len(damaged), 200), 12):
            damaged[place] = rng.integers(256)
        body = {"data": base64.b64encode(damaged).decode()}
        response = server.chat(audio=body, question=QUESTION, max_tokens=1)
        assert response.status_code in (200, 400, 413)
        refused += response.status_code != 200
        for said in (response.text, caplog.text):
            assert not re.search(r"0x[0-9a-f]{4,}|object at|libsndfile|SoundFile|BytesIO", said)
    assert refused
