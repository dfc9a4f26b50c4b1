"""Decoders that hang, die, run away or lie, for real: each fault is done in a process."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from server.audio.decode_pool import DecodeLimits, DecodePool
from server.errors import EngineStopped, QueueFull, QueueTimeout
from steering.audio.clip import Clip
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.errors import AudioError, AudioTooLarge, UnsupportedAudio

RATE_HZ = 16_000
LIMITS = AudioLimits()
FAULTY = (sys.executable, "-P", str(Path(__file__).with_name("faulty_decoder.py")))
BOUNDS = DecodeLimits(workers=1, timeout_seconds=1.0, waiting_requests=4, waiting_seconds=20.0)


class Trial:
    """A decoder, and what it counted."""

    def __init__(self, bounds: DecodeLimits = BOUNDS, program: tuple[str, ...] = FAULTY) -> None:
        self.counted: list[str] = []
        self.decoder = DecodePool(bounds, self.counted.append, program)

    def run(self, work: Callable[[Trial], Awaitable[Any]]) -> Any:
        async def tried() -> Any:
            try:
                return await work(self)
            finally:
                await self.decoder.close()

        return asyncio.run(tried())

    async def heard(self, data: bytes, limits: AudioLimits = LIMITS) -> Clip:
        return await self.decoder.decode(data, rate_hz=RATE_HZ, limits=limits)


def with_fault(sound: bytes, name: str) -> bytes:
    """The WAV file with a chunk that asks the decoder for a fault."""
    text = f"FAULT:{name}".encode()
    return sound + b"LIST" + len(text).to_bytes(4, "little") + text + bytes(len(text) % 2)


def children_of(pid: int) -> list[psutil.Process]:
    return list(psutil.Process(pid).children())


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# ---- what it gives


def test_it_hears_what_steering_hears(make_sound: Callable[..., bytes]) -> None:
    sounds = [make_sound(0.5), make_sound(1.0, container="MP3", channels=2, rate_hz=44_100)]
    sounds.append(make_sound(0.5)[:-8_000])  # of which the warnings come along

    async def work(trial: Trial) -> None:
        for data in sounds:
            here = decode(data, rate_hz=RATE_HZ, limits=LIMITS)
            there = await trial.heard(data)
            np.testing.assert_array_equal(there.samples, here.samples)
            assert there.samples.flags.writeable
            for name in ("sample_rate_hz", "submitted_seconds", "submitted_rate_hz", "channels"):
                assert getattr(there, name) == getattr(here, name)
            assert there.warnings == here.warnings
        assert "cut short" in there.warnings[0]

    trial = Trial()
    trial.run(work)
    assert trial.counted == ["heard", "heard", "heard"]


def test_errors_are_those_of_steering(sound: bytes) -> None:
    async def work(trial: Trial) -> None:
        for data, limits, kind in [
            (b"a shopping list", LIMITS, AudioError),
            (sound[:20], LIMITS, AudioError),
            (sound, AudioLimits(max_seconds=0.5), AudioTooLarge),
            (b"wvpk" + bytes(99), LIMITS, UnsupportedAudio),
        ]:
            with pytest.raises(kind) as there:
                await trial.heard(data, limits)
            with pytest.raises(kind) as here:
                decode(data, rate_hz=RATE_HZ, limits=limits)
            assert str(there.value) == str(here.value)
            assert type(there.value) is type(here.value)

    trial = Trial()
    trial.run(work)
    assert trial.counted == ["refused"] * 4


# ---- faults


@pytest.mark.parametrize(
    ("fault", "result", "word"),
    [
        ("hang", "timeout", "took longer than 1 s"),
        ("hang_in_c", "timeout", "took longer than 1 s"),
        ("segfault", "crashed", "broke down"),
        ("abort", "crashed", "broke down"),
        ("exit", "crashed", "broke down"),
        ("killed", "crashed", "broke down"),
        ("not_finite", "crashed", "broke down"),
        ("too_long", "crashed", "broke down"),
        ("huge", "memory", "too much memory"),
        ("runaway", "memory", "too much memory"),
        ("bug", "failed", "can't be decoded"),
    ],
)
def test_a_fault_is_an_error_of_its_clip_alone(
    sound: bytes, fault: str, result: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(trial: Trial) -> None:
        await trial.heard(sound)
        started = time.monotonic()
        with pytest.raises(AudioError, match=word) as caught:
            await trial.heard(with_fault(sound, fault))
        assert time.monotonic() - started < 10
        assert "0x" not in str(caught.value)
        assert "secret" not in str(caught.value)
        np.testing.assert_array_equal(
            (await trial.heard(sound)).samples,
            decode(sound, rate_hz=RATE_HZ, limits=LIMITS).samples,
        )

    trial = Trial()
    trial.run(work)
    assert trial.counted == ["heard", result, "heard"]
    assert "secret" not in caplog.text


def test_what_libraries_print_goes_nowhere(sound: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    trial = Trial()
    clip = trial.run(lambda trial: trial.heard(with_fault(sound, "loud")))
    assert clip.seconds == 1.0
    assert "mpg123" not in "".join(capfd.readouterr())


def test_a_process_killed_at_work_costs_no_answer(sound: bytes) -> None:
    """As by the system when memory is short: it was not the file's fault."""

    async def work(trial: Trial) -> Clip:
        await trial.heard(sound)
        asked = asyncio.create_task(trial.heard(with_fault(sound, "slow")))
        await asyncio.sleep(0.2)
        (pid,) = trial.decoder.pids
        os.kill(pid, signal.SIGKILL)
        clip = await asked
        assert trial.decoder.pids != (pid,)
        return clip

    trial = Trial(replace(BOUNDS, timeout_seconds=20.0))
    assert trial.run(work).seconds == 1.0
    assert trial.counted == ["heard", "heard"]


def test_a_process_killed_while_idle_is_started_again(sound: bytes) -> None:
    async def work(trial: Trial) -> None:
        await trial.heard(sound)
        (pid,) = trial.decoder.pids
        os.kill(pid, signal.SIGKILL)
        await trial.heard(sound)

    trial = Trial()
    trial.run(work)
    assert trial.counted == ["heard", "heard"]


def test_who_hangs_up_leaves_a_process_that_works(sound: bytes) -> None:
    async def work(trial: Trial) -> None:
        await trial.heard(sound)
        before = trial.decoder.pids
        asked = asyncio.create_task(trial.heard(with_fault(sound, "slow")))
        await asyncio.sleep(0.1)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await trial.heard(sound)
        assert trial.decoder.pids == before

    Trial().run(work)


def test_who_waits_too_long_or_as_one_too_many_is_told(sound: bytes) -> None:
    slow = with_fault(sound, "slow")

    async def work(trial: Trial) -> list[Any]:
        await trial.heard(sound)
        asked = [trial.heard(slow) for _ in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    limits = DecodeLimits(workers=1, timeout_seconds=20, waiting_requests=2, waiting_seconds=0.8)
    results = [type(result) for result in Trial(limits).run(work)]
    assert results in (
        [Clip, Clip, QueueTimeout, QueueFull],
        [Clip, QueueTimeout, QueueTimeout, QueueFull],  # on a machine that is busy
    )


def test_a_program_that_does_not_start_is_our_fault(
    sound: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    broken = (sys.executable, "-c", "import no_such_module")
    with pytest.raises(EngineStopped):
        Trial(program=broken).run(lambda trial: trial.heard(sound))
    assert "can't be decoded" in caplog.text


# ---- what a process sees and loads


def test_a_process_sees_no_secret(sound: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLEARS_API_KEYS", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")

    async def work(trial: Trial) -> dict[str, str]:
        await trial.heard(sound)
        (pid,) = trial.decoder.pids
        return dict(psutil.Process(pid).environ())

    seen = Trial().run(work)
    assert "hush" not in seen.values()
    assert seen["OMP_NUM_THREADS"] == "1"


def python(code: str) -> str:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.stdout


def test_a_process_loads_no_model_and_no_web(tmp_path: Path) -> None:
    """Run as the program it is; without jobs it ends once it has decoded its warm-up."""
    modules = tmp_path / "modules"
    python(
        "import pathlib, runpy, sys\n"
        "runpy.run_module('server.audio.decode_process', run_name='__main__')\n"
        f"pathlib.Path({str(modules)!r}).write_text(' '.join(sys.modules))"
    )
    loaded = set(modules.read_text().split())
    assert {"numpy", "soundfile"} <= loaded
    unwanted = {"torch", "transformers", "fastapi", "starlette", "pydantic", "httpx"}
    assert not unwanted & loaded


@pytest.mark.slow
def test_the_server_imports_where_nothing_can_decode() -> None:
    missing = "import sys; sys.modules.update(soundfile=None, soxr=None); "
    output = python(
        missing
        + "import server.app, server.engine, steering.transformers_hooks.hooks; print('imported')"
    )
    assert output == "imported\n"


# ---- in a server


def sent(data: bytes) -> dict[str, Any]:
    audio = {"data": base64.b64encode(data).decode()}
    return {"audio": audio, "question": "What is it?", "max_tokens": 1}


@pytest.fixture
def faulty_server(start: Callable[..., Any]) -> Iterator[Any]:
    """A server with two processes that heed the faults that a file asks for."""
    with start(decode_timeout_seconds=5.0, queue_timeout_seconds=30.0) as server:
        deployment = server.deployment
        server.run(deployment.decode_pool.close()).result(20)
        own = deployment.decode_pool
        deployment.decode_pool = DecodePool(own.limits, own._count, FAULTY)
        yield server


def test_others_are_answered_while_a_decoder_hangs(faulty_server: Any, sound: bytes) -> None:
    server = faulty_server
    assert server.chat(**sent(sound)).status_code == 200
    hanging = server.begin("POST", "/v1/audio-chat", json=sent(with_fault(sound, "hang_in_c")))
    for _ in range(5):
        started = time.monotonic()
        assert server.get("/livez").status_code == 200
        assert time.monotonic() - started < 2
        assert server.chat(**sent(sound)).status_code == 200
    assert not hanging.done()
    refused = hanging.result(20)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_audio"
    assert refused.json()["error"]["message"].startswith("audio.0: decoding the audio's")
    assert server.metric("allears_decodes_total", result="timeout") == 1


def test_a_decoder_that_dies_is_a_400_and_counted(faulty_server: Any, sound: bytes) -> None:
    for fault, result in (("segfault", "crashed"), ("runaway", "memory"), ("bug", "failed")):
        refused = faulty_server.chat(**sent(with_fault(sound, fault)))
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "invalid_audio"
        assert faulty_server.metric("allears_decodes_total", result=result) == 1
        assert faulty_server.chat(**sent(sound)).status_code == 200


def test_what_was_not_heard_is_in_the_warnings(
    server: Any, make_sound: Callable[..., bytes]
) -> None:
    cut = make_sound(2.0)[:-32_000]
    encoded = [{"data": base64.b64encode(data).decode()} for data in (make_sound(1.0), cut)]
    for path in ("/v1/audio-chat", "/v1/listening-score"):
        response = server.post(path, json={"audio": encoded, "question": "What is it?"})
        assert response.status_code == 200
        (warning,) = response.json()["warnings"]
        assert warning.startswith("clip 1: its header announces 2.00 s")


def test_a_format_that_is_not_read_is_a_415(server: Any) -> None:
    refused = server.chat(**sent(b"wvpk" + bytes(99)))
    assert refused.status_code == 415
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_audio", "audio")
    assert "audio.0: the audio is of a format that is not supported" in error["message"]
    assert "WavPack" in error["message"]


def test_digital_silence_is_answered_with_a_verdict_and_a_warning(
    server: Any, make_sound: Callable[..., bytes]
) -> None:
    response = server.chat(**sent(make_sound(1.0, amplitude=0.0)))
    assert response.status_code == 200
    body = response.json()
    assert body["listening"]["verdict"] in ("not_listening", "partly_listening", "listening")
    assert "digital silence" in body["warnings"][0]


@pytest.mark.slow
def test_no_process_outlives_a_killed_server(
    serve_process: Callable[..., Any],
    checkpoint_folder: Path,
    profile_folder: Path,
    sound: bytes,
    make_sound: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with serve_process(checkpoint_folder, profile_folder, log) as (process, url):
        cut = make_sound(2.0, container="MP3")[:4_000]  # mpg123 prints a warning about it
        for data in (sound, cut):
            httpx.post(f"{url}/v1/audio-chat", json=sent(data), timeout=30)
        pids = [child.pid for child in children_of(process.pid)]
        assert len(pids) == 2
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        wait_until(lambda: all(gone(pid) for pid in pids))
    assert "Xing" not in log.read_text()


@pytest.mark.slow
def test_a_process_that_hangs_does_not_outlive_a_killed_server(
    tmp_path: Path, sound: bytes
) -> None:
    """Nobody is there to end it: its own alarm does, in the middle of a loop in C."""
    file, hangs = tmp_path / "hanging.wav", tmp_path / "hangs"
    file.write_bytes(with_fault(sound, "hang_in_c"))
    code = (
        "import asyncio, pathlib; from server.audio.decode_pool import DecodeLimits, DecodePool;"
        "from steering.audio.decode import AudioLimits\n"
        "async def main():\n"
        f"    pool = DecodePool(DecodeLimits(1, 3.0, 1, 1.0), print, {(*FAULTY, str(hangs))!r})\n"
        f"    data = pathlib.Path({str(file)!r}).read_bytes()\n"
        "    await pool.decode(data, rate_hz=16000, limits=AudioLimits())\n"
        "asyncio.run(main())"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as parent:
        try:
            wait_until(hangs.exists)
            (child,) = children_of(parent.pid)
        finally:
            parent.kill()
    assert not gone(child.pid)
    wait_until(lambda: gone(child.pid), 20)
