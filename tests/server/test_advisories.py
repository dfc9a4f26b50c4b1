"""Advisories of other servers of audio-language models, tried on this one: docs/reliability.md."""

from __future__ import annotations

import asyncio
import base64
import hmac
import io
import os
import pickle
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.api.middleware.require_key import PROBES
from server.audio.url_fetch import UrlFetcher
from steering.errors import RequestError

QUESTION = "What is this?"
FILE = b"what stands inside"


# ---- links: nothing inside this network is ever asked


class Inside(BaseHTTPRequestHandler):
    """A file that a client must not get at, and a redirect to it; each request is counted."""

    asked: list[str]

    def do_GET(self) -> None:
        address, port = self.connection.getsockname()
        self.asked.append(f"{address} {self.path}")
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("location", f"http://inside.test:{port}/secret")
        self.end_headers()
        self.wfile.write(FILE)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def inside() -> Iterator[tuple[int, list[str]]]:
    """A port that is open at 127.0.0.1 and 127.0.0.2, and what was asked there."""
    asked: list[str] = []
    kind = type("Counted", (Inside,), {"asked": asked})
    first = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    second = ThreadingHTTPServer(("127.0.0.2", first.server_port), kind)
    for server in (first, second):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield first.server_port, asked
    for server in (first, second):
        server.shutdown()
        server.server_close()


SPELLINGS = [
    "http://localhost:{port}/secret",
    "http://LOCALHOST.:{port}/secret",
    "http://127.0.0.1:{port}/secret",
    "http://127.1:{port}/secret",
    "http://2130706433:{port}/secret",
    "http://0x7f000001:{port}/secret",
    "http://0177.0.0.1:{port}/secret",
    "http://0.0.0.0:{port}/secret",
    "http://[::1]:{port}/secret",
    "http://[::ffff:127.0.0.1]:{port}/secret",
    "http://[::ffff:7f00:1]:{port}/secret",
    "http://localhost:{port}\\@audio.test/secret",
    "http://audio.test\\@localhost:{port}/secret",
    "http://audio.test@localhost:{port}/secret",
    "http://localhost:{port}@audio.test/secret",
    "http://169.254.169.254/latest/meta-data",
    "file:///etc/passwd",
]


def test_no_spelling_of_an_address_gets_a_chat_inside(
    start: Any, inside: tuple[int, list[str]]
) -> None:
    """Even where the operator listed the very hosts: their addresses are not public."""
    port, asked = inside
    names = ("localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0")
    hosts = ",".join(["audio.test", "169.254.169.254", *(f"{name}:{port}" for name in names)])
    with start(allowed_audio_hosts=hosts) as server:
        for spelling in SPELLINGS:
            part = {"type": "audio_url", "audio_url": {"url": spelling.format(port=port)}}
            parts = [part, {"type": "text", "text": QUESTION}]
            response = server.chat(messages=[{"role": "user", "content": parts}], max_tokens=1)
            assert response.status_code in (400, 422), spelling
            assert "secret" not in response.text.replace("/secret", ""), spelling
    assert asked == []


def pinned(port: int, answers: dict[str, list[str]], looked_up: list[str]) -> UrlFetcher:
    """Fetches from hosts whose names get one address after another; 127.0.0.1 counts as public."""

    async def resolve(host: str, _: int) -> Sequence[str]:
        looked_up.append(host)
        return [answers[host].pop(0)]

    hosts = frozenset(f"{name}.test:{port}" for name in ("audio", "inside"))
    return UrlFetcher(hosts, 100_000, resolve=resolve, allow=lambda address: address == "127.0.0.1")


def test_a_name_that_changes_its_address_is_asked_for_once(
    inside: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that was checked is the one that is connected to."""
    port, asked = inside
    looked_up: list[str] = []
    connected: list[str] = []
    known = socket.getaddrinfo

    def watched(host: Any, *more: Any, **named: Any) -> Any:
        connected.append(host if isinstance(host, str) else host.decode())
        return known(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    fetcher = pinned(port, {"audio.test": ["127.0.0.1", "127.0.0.2"]}, looked_up)
    url = f"http://audio.test:{port}/file"
    assert asyncio.run(fetcher.fetch_all([url])) == {url: FILE}
    assert looked_up == ["audio.test"]
    assert set(connected) <= {"127.0.0.1"}
    assert asked == ["127.0.0.1 /file"]


def test_a_redirect_is_checked_like_a_link(inside: tuple[int, list[str]]) -> None:
    """From a listed host at a public address to a listed name that stands inside."""
    port, asked = inside
    looked_up: list[str] = []
    fetcher = pinned(port, {"audio.test": ["127.0.0.1"], "inside.test": ["127.0.0.2"]}, looked_up)
    with pytest.raises(RequestError, match="public address"):
        asyncio.run(fetcher.fetch_all([f"http://audio.test:{port}/moved"]))
    assert looked_up == ["audio.test", "inside.test"]
    assert asked == ["127.0.0.1 /moved"]


# ---- keys


def test_keys_are_compared_in_constant_time_and_all_of_them(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = hmac.compare_digest
    compared: list[tuple[int, int]] = []
    verdict: list[bool] = []

    def watched(left: Any, right: Any) -> bool:
        compared.append((len(left), len(right)))
        return verdict[0] if verdict else known(left, right)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    keys = ["first-key-of-three", "second", "third-" + "x" * 200]
    with start(api_keys=",".join(keys)) as server:

        def status(key: str) -> int:
            compared.clear()
            headers = {"authorization": f"Bearer {key}"}
            return int(server.get("/v1/models", headers=headers).status_code)

        for key in [*keys, "wrong", "first-key-of-thre", "f", keys[0] + "x", "x" * 5_000]:
            assert status(key) == (200 if key in keys else 401)
            assert len(compared) == 3, "as many comparisons whichever key is right"
            assert {*compared} == {compared[0]}, "of digests: a length tells nothing"
            assert compared[0][0] == compared[0][1]
        verdict.append(False)
        assert status(keys[0]) == 401, "something else than compare_digest let it in"


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Every method and path of an app, its parts filled in."""
    for route in app.routes:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router)
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, re.sub(r"\{[^}]+\}", "x", route.path)


def test_every_route_but_probes_and_static_pages_needs_a_key(start: Any) -> None:
    with start(api_keys="right") as server:
        paths = set(routes(server.app))
        assert {("POST", "/v1/chat/completions"), ("GET", "/metrics")} <= paths
        opened = set()
        for method, path in sorted(paths):
            for key in (None, "Bearer wrong"):
                headers = {} if key is None else {"authorization": key}
                response = server.begin(method, path, headers=headers).result(20)
                if response.status_code != 401:
                    opened.add(path)
        assert opened == PROBES | {"/", "/playground", "/playground/x"}
        guesses = ["/invocations", "/v2/models", "/V1/models", "//v1/models", "/v1/../metrics"]
        for path in [
            *guesses,
            "/playground/../metrics",
            "/livez/../metrics",
            "/livez/",
            "/readyz?",
        ]:
            response = server.get(path)
            assert response.status_code == 401 or (path, response.status_code) == ("/readyz?", 200)


# ---- fields that another server took


@pytest.mark.parametrize("path", ["/v1/audio-chat", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "field",
    [
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"chat_template": "{% for _ in range(10 ** 9) %}x{% endfor %}"},
        {"documents": [{"text": "x"}]},
        {"add_generation_prompt": False},
        {"mm_processor_kwargs": {"sampling_rate": 1}},
        {"media_io_kwargs": {"audio": {}}},
        {"prompt_embeds": "gAR9lC4="},
        {"n": 1_000_000_000},
        {"best_of": 1_000_000_000},
        {"logprobs": 1_000_000_000},
        {"top_k": 1_000_000_000},
    ],
    ids=lambda field: str(next(iter(field))),
)
def test_arguments_that_reach_into_the_server_are_refused(
    server: Any, audio: dict[str, str], path: str, field: dict[str, Any]
) -> None:
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    if path != "/v1/audio-chat":
        body["model"] = "tiny"
    assert server.post(path, json=body).status_code == 200
    response = server.post(path, json={**body, **field})
    assert response.status_code == 422, response.text
    assert response.json()["error"]["param"] == next(iter(field))


def test_a_huge_max_tokens_is_capped(start: Any, audio: dict[str, str]) -> None:
    with start(max_tokens=5) as server:
        response = server.chat(audio=audio, question=QUESTION, max_tokens=1_000_000_000)
        assert response.json()["usage"]["completion_tokens"] <= 5


# ---- tensors


class Trap:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_no_bytes_of_a_client_are_unpickled(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "it-ran"
    saved = io.BytesIO()
    torch.save(Trap(mark), saved)
    bombs = [pickle.dumps(Trap(mark)), saved.getvalue()]
    pickle.loads(bombs[0])
    mark.rmdir()  # the trap works

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("bytes of a client were unpickled")

    for module, name in ((torch, "load"), (pickle, "loads"), (pickle, "load"), (np, "load")):
        monkeypatch.setattr(module, name, refuse)
    for bomb in bombs:
        audio = {"data": base64.b64encode(bomb).decode()}
        assert server.chat(audio=audio, question=QUESTION).status_code == 400
        for media in ("audio/wav", "application/octet-stream", "application/x-pytorch"):
            files = {"audio": ("x.pt", bomb, media)}
            sent = server.post("/v1/audio-chat", files=files, data={"question": QUESTION})
            assert sent.status_code == 400, sent.text
            raw = server.post("/v1/audio-chat", content=bomb, headers={"content-type": media})
            assert raw.status_code in (400, 415, 422)
    assert not mark.exists()
