"""A server that makes its own profile at first start."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from server import cli
from server.app import create_app
from server.loading import load_runtime
from server.settings import Settings
from steering.calibration import auto
from steering.errors import ModelError
from steering.model import memory_plan
from steering.model.checkpoint import DEMO_WEIGHTS
from tests.server.conftest import Server

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ITEMS = 40
PATIENCE_SECONDS = 300.0  # this is work, and the machine may have other work
QUESTION = "Which sound is this?"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's checkpoint in a folder for which no profile is shipped."""
    folder = tmp_path_factory.mktemp("copied") / "mine"
    shutil.copytree(DEMO_WEIGHTS, folder)
    return folder


def own(checkpoint: Path, cache: Path) -> Server:
    settings = Settings(model=str(checkpoint), cache=cache, calibration_items=ITEMS, device="cpu")
    return Server(create_app(settings))


def reasons_until_ready(server: Server) -> list[str]:
    """The texts of /readyz, without repetition, until it was 200; the last is its reason."""
    said: list[str] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        response = server.get("/readyz")
        body = response.json()
        text = body.get("reason", "") if response.is_success else body["error"]["message"]
        if text not in said[-1:]:
            said.append(text)
        if response.is_success:
            return said
        assert body["error"]["code"] == "loading"
        assert int(response.headers["retry-after"]) > 0
        time.sleep(0.02)
    raise AssertionError(said)


def test_random_weights_are_served_bare_with_the_reason_everywhere(
    small_checkpoint: Path,
    tmp_path: Path,
    audio: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "allears")
    with own(small_checkpoint, tmp_path).started(ready=False) as server:
        *before, reason = reasons_until_ready(server)
        asked = {"audio": audio, "question": QUESTION, "max_tokens": 2}
        answers = [
            server.chat(**asked, **more).json()
            for more in ({}, {"steer": True}, {"steer": True, "steering": {"strength": 0.5}})
        ]
        heard = server.get("/listening-score").json()
    assert any(re.match(r"calibrating: \d+ of \d+ items", text) for text in before)
    assert "no gain" in reason and "strength 0" in reason
    assert [body["steering"]["reason"] for body in answers] == [reason] * 3
    assert [body["steering"]["applied"] for body in answers] == [False] * 3
    assert reason in caplog.text
    assert heard["steered_fraction"] == 0
    with own(small_checkpoint, tmp_path).started(ready=False) as server:
        said = reasons_until_ready(server)
    assert said[-1] == reason and not any("items" in text for text in said[:-1]), "it is kept"


def test_an_uncalibrated_model_is_calibrated_once(
    copied: Path, tmp_path: Path, audio: dict[str, str]
) -> None:
    assert "not made yet" in doctor(copied, tmp_path)
    for start in ("first", "second"):
        with own(copied, tmp_path).started(ready=False) as server:
            said = reasons_until_ready(server)
            profile = server.get("/listening-score").json()["profile"]
            body = server.chat(audio=audio, question=QUESTION, max_tokens=2, steer=True).json()
        assert any("items" in text for text in said) == (start == "first")
        assert profile["calibrated_on"] == "synthetic"
        assert "/" not in profile["name"], "no path of the server"
        assert said[-1] == (body["steering"]["reason"] or "")
        assert body["listening"]["score"] is not None
    assert "calibrated on synthetic" in doctor(copied, tmp_path)


def doctor(checkpoint: Path, cache: Path) -> str:
    """The finding of `allears doctor` about the profile."""
    words = ["doctor", "--json", "--model", str(checkpoint)]
    env = {"ALLEARS_CACHE": str(cache), "ALLEARS_CALIBRATION_ITEMS": str(ITEMS)}
    result = CliRunner().invoke(cli.app, words, env=env, catch_exceptions=False)
    assert result.exit_code == 0
    return str({c["name"]: c["found"] for c in json.loads(result.stdout)}["profile"])


def test_a_model_too_large_for_this_cpu_is_ready_at_once_and_says_how_to_calibrate_elsewhere(
    copied: Path,
    tmp_path: Path,
    audio: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "MOST_PARAMETERS_ON_A_CPU", 1_000_000)
    caplog.set_level(logging.INFO, "allears")
    with own(copied, tmp_path).started(ready=False) as server:
        *before, reason = reasons_until_ready(server)
        body = server.chat(audio=audio, question=QUESTION, max_tokens=2, steer=True).json()
    assert not any("calibrating" in text for text in before)
    assert "allears calibrate" in reason and "allears profile pull" in reason
    assert body["steering"]["reason"] == reason
    assert body["listening"]["score"] is None
    assert reason in caplog.text
    assert reason in doctor(copied, tmp_path)


def test_room_for_rows_is_looked_for_before_a_profile_is_made(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=str(copied), cache=tmp_path, device="cpu", max_batch_rows=1024)
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 2_000_000_000)
    with pytest.raises(ModelError, match="ALLEARS_MAX_BATCH_ROWS"):
        load_runtime(settings, on_progress=never)
    assert not list(tmp_path.iterdir())


def never(stage: str) -> None:
    raise AssertionError(f"nothing was to be made, but: {stage}")


# ---- as processes


@contextmanager
def process(
    checkpoint: Path, cache: Path, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A server that has only begun to load, and a client of it."""
    words = ["--port", "0", "--profile", "auto", "--model", str(checkpoint), "--device", "cpu"]
    words += ["--cache", str(cache), "--calibration-items", str(ITEMS)]
    command = [sys.executable, "-m", "server.cli", "serve", *words]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ALLEARS_")}
    with log.open("wb") as stderr:
        started = subprocess.Popen(command, cwd=ROOT, env=clean, stderr=stderr)
    try:
        with httpx.Client(base_url=_url(started, log), timeout=60) as client:
            yield started, client
    finally:
        started.terminate()
        started.wait(PATIENCE_SECONDS)


def _url(started: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and started.poll() is None:
        if match := re.search(r"http://\S+:\d+", log.read_text()):
            return match[0]
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def wait_for(client: httpx.Client, words: str) -> None:
    """Until /readyz holds some words."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if re.search(words, client.get("/readyz").text):
                return
        time.sleep(0.02)
    raise AssertionError(f"/readyz never said {words}")


def test_sigterm_ends_calibration_and_two_servers_that_start_at_once_share_what_the_next_finds(
    copied: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with process(copied, cache, tmp_path / "log") as (started, client):
        wait_for(client, r"calibrating: \d+ of \d+ items")
        started.send_signal(signal.SIGTERM)
        assert started.wait(PATIENCE_SECONDS) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list(cache.rglob("profile.json")), "it ended before the calibration did"
    with (
        process(copied, cache, tmp_path / "log1") as (_, first),
        process(copied, cache, tmp_path / "log2") as (_, second),
    ):
        profiles = []
        for client in (first, second):
            wait_for(client, '"ready"')
            profiles.append(client.get("/listening-score").json()["profile"])
    assert profiles[0] == profiles[1]
    assert profiles[0]["calibrated_on"] == "synthetic"
    assert len(list(cache.rglob("profile.json"))) == 1
