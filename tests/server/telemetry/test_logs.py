"""Log lines: JSON that nobody can forge, with what a request cost and nothing of what it said."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.telemetry import logs
from server.telemetry.request_record import request_record

QUESTION = "Who\nsings\x1b[2K\u2028 my secret?"
FORGED = '{"route": "/forged"}'


@pytest.fixture
def lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Sets up JSON lines as a server does, and gives those written so far, each parsed."""
    written: list[str] = []

    def parsed() -> list[dict[str, Any]]:
        written.extend(capsys.readouterr().err.splitlines())
        return [json.loads(line) for line in written]

    with own_logging(monkeypatch):
        logs.set_up("json")
        yield parsed


@contextmanager
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that set_up sets is afterwards as before; pytest's own handlers are away."""
    root, ours = logging.getLogger(), logging.getLogger("allears.requests")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    before = root.level, logging.getLogger("allears").level
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before[0])
        logging.getLogger("allears").setLevel(before[1])


def requests_in(log_lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in log_lines if line["logger"] == "allears.requests"]


def test_a_request_is_one_line_with_what_it_cost(start: Any, audio: Any, lines: Any) -> None:
    with start(api_keys="some-key") as server:
        headers = {"authorization": "Bearer some-key", "x-request-id": "mine-1"}
        body = {"audio": audio, "question": QUESTION, "max_tokens": 2, "steer": True}
        answer = server.post("/v1/audio-chat", json=body, headers=headers).json()
        server.post("/v1/audio-chat", json=body)
        server.post("/v1/audio-chat", json={**body, "stream": True}, headers=headers)
        server.post("/v1/audio-chat", json={**body, "max_tokens": 0}, headers=headers)
        body = {"audio": audio, "question": QUESTION}
        server.post("/v1/listening-score", json=body, headers=headers)
    first, keyless, streamed, wrong, heard = requests_in(lines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*\+00:00", first["time"])
    assert first["level"] == "INFO"
    assert first["request_id"] == "mine-1"
    assert first["answer_id"] == answer["id"]
    assert (first["key"], first["method"], first["route"]) == ("key-1", "POST", "/v1/audio-chat")
    assert first["status"] == 200
    for name in ("queue", "prefill", "silence", "decode"):
        assert first[f"{name}_seconds"] == answer["timings"][f"{name}_seconds"]
    assert first["score"] == pytest.approx(answer["listening"]["score"], abs=1e-5)
    assert first["effect_bits"] == answer["listening"]["effect_bits"] > 0
    assert first["verdict"] == answer["listening"]["verdict"]
    assert first["strength"] == pytest.approx(answer["steering"]["strength"], abs=1e-5)
    assert first["audio_seconds"] == 1.0
    assert first["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert first["completion_tokens"] == 2
    assert (keyless["key"], keyless["status"]) == ("none", 401)
    assert keyless["error_code"] == "invalid_api_key"
    assert streamed["verdict"] == first["verdict"] and streamed["decode_seconds"] > 0
    assert (wrong["status"], wrong["error_code"]) == (422, "invalid_request")
    assert heard["route"] == "/v1/listening-score" and heard["score"] == first["score"]
    assert heard["effect_bits"] is None
    assert "secret" not in json.dumps(lines()) and "some-key" not in json.dumps(lines())


@pytest.mark.parametrize("stream", [False, True])
def test_an_idle_connection_holds_no_clip(start: Any, audio: Any, stream: bool) -> None:
    """The scope of a request is kept by uvicorn until the next one comes."""
    body = {"audio": audio, "question": QUESTION, "max_tokens": 2, "stream": stream}
    incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/audio-chat",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "state": {},
    }
    with start() as server:

        async def receive() -> Any:
            return incoming.pop() if incoming else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            assert message.get("status", 200) == 200

        server.run(server.app(scope, receive, send)).result(60)
    record = request_record(scope)
    assert record.answer_id and record.stage_times is not None
    assert record.question is None and record.answer is None


def test_text_is_logged_where_it_is_switched_on(start: Any, audio: Any, lines: Any) -> None:
    with start(log_text=True) as server:
        question = QUESTION + "x" * 600
        answer = server.chat(audio=audio, question=question, max_tokens=3).json()
        server.chat(audio=audio, question=QUESTION, max_tokens=3, stream=True)
    first, second = requests_in(lines())
    assert first["question"] == question[:500]
    assert first["answer"] == answer["answer"]
    assert second["question"] == QUESTION
    assert "data" not in first and audio["data"][:40] not in json.dumps(first)


def test_warnings_tracebacks_and_threads_are_lines_too(lines: Any) -> None:
    logging.getLogger("allears").info("ready: %s", "tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nways", DeprecationWarning, stacklevel=1)
    try:
        raise ValueError(f"bad\n{FORGED}")
    except ValueError as error:
        logging.getLogger("uvicorn.error").error("failed", exc_info=error)
        sys.excepthook(ValueError, error, None)
    thread = threading.Thread(target=lambda: 1 / 0, name="torch")
    thread.start()
    thread.join()
    ready, warning, failed, crashed, ended = lines()
    assert (ready["level"], ready["logger"], ready["message"]) == ("INFO", "allears", "ready: tiny")
    assert "old\nways" in warning["message"]
    assert "ValueError: bad" in failed["exc_info"] and failed["logger"] == "uvicorn.error"
    assert crashed["level"] == "CRITICAL" and "ValueError" in crashed["exc_info"]
    assert ended["message"] == "thread torch ends" and "ZeroDivisionError" in ended["exc_info"]


def test_plain_lines_are_for_people_and_those_of_requests_json(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with own_logging(monkeypatch):
        logs.set_up("plain")
        assert not logs.is_json()
        logging.getLogger("allears").info("ready: tiny")
        server.get("/v1/models")
        server.get("/livez")
    plain, request = written.getvalue().splitlines()
    assert plain.endswith(" INFO ready: tiny")
    assert json.loads(request)["route"] == "/v1/models"


def test_a_stream_that_was_closed_under_the_handlers_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As test runners close theirs, while threads that log live on."""
    closed, current = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    with own_logging(monkeypatch):
        logs.set_up("plain")
        closed.close()
        monkeypatch.setattr(sys, "stderr", current)
        logging.getLogger("allears").info("ready: tiny")
        logging.getLogger("allears.requests").info("request")
    plain, request = current.getvalue().splitlines()
    assert plain.endswith(" INFO ready: tiny")
    assert json.loads(request)["message"] == "request"


SENT = (
    f"x-request-id: a\x0b{FORGED}",
    f"x-request-id: a\x85{FORGED}",
    f"x-request-id: a\r\n {FORGED}",
    f"x-request-id: {FORGED}",
    f"user-agent: \x1b[2J{FORGED}",
    f"authorization: Bearer \x85{FORGED}",
    f"traceparent: \x85{FORGED}",
)


@pytest.mark.slow
def test_a_real_server_writes_nothing_but_json(
    serve_process: Callable[..., Any],
    checkpoint_folder: Path,
    profile_folder: Path,
    tmp_path: Path,
    audio: Any,
) -> None:
    """From its first line to its last, whatever is sent."""
    log = tmp_path / "log"
    options = ("--log-format", "json", "--log-text", "true")
    with serve_process(checkpoint_folder, profile_folder, log, *options) as (process, url):
        address = urlsplit(url).hostname, urlsplit(url).port
        targets = [f"/x%0a{FORGED.replace(' ', '')}", "/x%0d%0a%1b[2J", "/metrics?x=%0a%0aforged"]
        heads = [f"GET {target} HTTP/1.1\r\nhost: x" for target in targets]
        heads += [f"GET /metrics HTTP/1.1\r\nhost: x\r\n{line}" for line in SENT]
        heads += [f"G\x85T /metrics HTTP/1.1\r\nhost: {FORGED}", "nonsense\x00", f"\n\n{FORGED}"]
        for head in heads:
            with socket.create_connection(address, timeout=20) as connection:
                connection.sendall(f"{head}\r\nconnection: close\r\n\r\n".encode("latin-1"))
                assert connection.recv(100)
        body = {"audio": audio, "question": f"{QUESTION}\n{FORGED}", "max_tokens": 1}
        assert httpx.post(f"{url}/v1/audio-chat", json=body, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    log_lines = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(log_lines) > len(heads) - 3
    for line in log_lines:
        assert line.keys() >= {"time", "level", "logger", "message"}
        assert line.get("route") != "/forged"
    assert any("loading" in line["message"] for line in log_lines)
    assert any(line["message"].startswith("ready: ") for line in log_lines)
    assert {line["route"] for line in requests_in(log_lines)} == {
        "/metrics",
        "/v1/audio-chat",
        "unmatched",
    }
    for line in requests_in(log_lines):
        assert re.fullmatch(r"req-[0-9a-f]{32}", line["request_id"])


def test_what_stops_a_start_is_a_line_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "server.cli", "serve", "--log-format", "json", "--port"]
        done = subprocess.run(
            [*command, str(taken.getsockname()[1])], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["level"] == "ERROR"
    assert "can't listen" in line["message"]
