"""HEAD, slashes, compressed bodies, a proxy's path, connections that stay open."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import time
import zlib
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from server.api.middleware.decode_body import decode_body
from server.serve import _config
from server.settings import Settings
from server.stalled_connections import ConnectionWatch

QUESTION = "What is this?"
GETS = (
    *("/livez", "/readyz", "/docs", "/playground/", "/metrics", "/openapi.json", "/v1/models"),
    *("/v1/models/tiny", "/listening-score", "/v1/listening-score", "/playground/style.css"),
)


def error_of(response: httpx.Response) -> dict[str, str]:
    error: dict[str, str] = response.json()["error"]
    return error


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_a_body(server: Any, path: str) -> None:
    got = server.get(path)
    head = server.begin("HEAD", path).result(20)
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_over_a_socket_leaves_the_connection_usable(start: Any) -> None:
    with start() as server, server.on_a_port() as url, httpx.Client(base_url=url) as client:
        for path in ("/", *GETS, "/nope", "/v1/audio-chat"):
            head = client.head(path, follow_redirects=True)
            assert head.status_code == {"/nope": 404, "/v1/audio-chat": 405}.get(path, 200)
            assert head.content == b""
        assert client.head("/v1/audio-chat").headers["allow"] == "POST"


def test_head_is_logged_as_such(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "allears.requests")
    server.begin("HEAD", "/v1/models").result(20)
    (line,) = [vars(r) for r in caplog.records if r.name == "allears.requests"]
    assert (line["method"], line["route"], line["status"]) == ("HEAD", "/v1/models", 200)


def test_a_slash_behind_a_path_is_answered_in_place(server: Any, audio: dict[str, str]) -> None:
    body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
    assert server.post("/v1/audio-chat/", json=body).status_code == 200
    for path in ("/v1/models/", "/livez/", "/metrics/", "/v1/models/tiny/", "/openapi.json/"):
        assert server.get(path).status_code == 200, path
    wrong = server.begin("DELETE", "/v1/listening-score/").result(20)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
    openapi = server.begin("DELETE", "/openapi.json").result(20)
    assert (openapi.status_code, openapi.headers["allow"]) == (405, "GET, HEAD")
    assert server.get("/livez//").status_code == server.get("/nope/").status_code == 404
    assert server.get("/docs/").headers["location"] == "../docs"  # its links count from there


# ---- compressed bodies


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS = [("gzip", gzip.compress), ("GZIP", gzip.compress), ("x-gzip", gzip.compress),
           ("deflate", zlib.compress), ("deflate", raw_deflate), ("identity", bytes)]  # fmt: skip


def send(server: Any, body: Any, coding: str, media: str = "application/json") -> httpx.Response:
    headers = {"content-type": media, "content-encoding": coding}
    response: httpx.Response = server.post("/v1/audio-chat", content=body, headers=headers)
    return response


@pytest.mark.parametrize(("coding", "pack"), CODINGS)
def test_compressed_bodies_are_decoded(
    server: Any, audio: dict[str, str], coding: str, pack: Any
) -> None:
    body = json.dumps({"audio": audio, "question": QUESTION, "max_tokens": 1}).encode()
    padded = body + b" " * 3_000_000  # of several pieces
    for plain in (body, padded):
        response = send(server, pack(plain), coding)
        assert response.status_code == 200, response.text


def test_a_compressed_form_is_decoded(server: Any, sound: bytes) -> None:
    built = httpx.Request(
        "POST", "http://x", files={"audio": ("x.wav", sound)}, data={"question": QUESTION}
    )
    packed = gzip.compress(built.read())
    assert send(server, packed, "gzip", built.headers["content-type"]).status_code == 200


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress", "x" * 200])
def test_another_coding_is_refused_with_those_there_are(server: Any, coding: str) -> None:
    response = send(server, b"x", coding)
    assert response.status_code == 415
    error = error_of(response)
    assert error["code"] == "unsupported_media_type"
    assert repr(coding[:60]) in error["message"] and "gzip, deflate" in error["message"]


def test_damaged_compressed_bodies_are_refused(server: Any) -> None:
    packed = gzip.compress(os.urandom(3000))
    for body in (packed[:-9], packed[:2000], packed[:5], packed + b"x", packed + packed, b"{}x"):
        response = send(server, body, "gzip")
        assert response.status_code == 422
        assert "content-encoding" in error_of(response)["message"]
    assert send(server, b"", "gzip").status_code == 422


def test_a_bomb_is_refused_while_it_is_decoded(start: Any) -> None:
    bomb = gzip.compress(b" " * 400_000_000, 1)
    with start(max_audio_bytes=1_000_000) as server:
        assert len(bomb) < server.deployment.settings.max_body_bytes
        begun = time.monotonic()
        response = send(server, bomb, "gzip")
        assert response.status_code == 413
        assert error_of(response)["code"] == "body_too_large"
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("plain", [b"", b"{}", b" " * 3_000_000])
def test_behind_a_compressed_body_comes_the_disconnect_only(plain: bytes) -> None:
    packed = gzip.compress(plain)
    halves = [{"type": "http.request", "body": packed[:9], "more_body": True},
              {"type": "http.request", "body": packed[9:], "more_body": False}]  # fmt: skip
    sent = [*halves, {"type": "http.disconnect"}]
    got: list[Any] = []

    async def receive() -> Any:
        return sent.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async def app(scope: Any, receive_decoded: Any, send: Any) -> None:
        while not got or got[-1].get("more_body"):
            got.append(await receive_decoded())
        assert (await receive_decoded())["type"] == "http.disconnect"

    async def call() -> None:
        scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")]}
        await decode_body(app, 4_000_000)(scope, receive, send)

    asyncio.run(call())
    assert b"".join(message["body"] for message in got) == plain


def test_a_body_is_decoded_behind_the_key_only(start: Any) -> None:
    with start(api_keys="the-key") as server:
        assert send(server, b"rubbish", "gzip").status_code == 401


# ---- proxies


@pytest.mark.parametrize("root", ["/audio", "/a/b.c"])
def test_a_root_path_works_whether_or_not_the_proxy_removes_it(
    start: Any, audio: dict[str, str], root: str
) -> None:
    body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
    with start(root_path=root, api_keys="the-key") as server:
        key = {"authorization": "Bearer the-key"}
        for prefix in ("", root):
            answer = server.post(f"{prefix}/v1/audio-chat", json=body, headers=key)
            assert answer.status_code == 200
            assert server.get(f"{prefix}/readyz").status_code == 200
            assert server.get(f"{prefix}/playground/").status_code == 200
            assert server.get(f"{prefix}/metrics").status_code == 401
            for path in ("/", "/playground"):
                moved = server.get(prefix + path)
                assert moved.headers["location"] == f"{root}/playground/"
        assert server.get(root).headers["location"] == f"{root}/playground/"
        assert server.get(f"{root}x/livez").status_code == 401
        document = server.get("/openapi.json", headers=key).json()
        assert document["servers"] == [{"url": root}]


def test_without_a_root_path_links_are_relative(server: Any) -> None:
    assert server.get("/").headers["location"] == "playground/"
    assert "servers" not in server.get("/openapi.json").json()


class Connection:
    """What the watch sees of a connection without a request."""

    def __init__(self, *, answered: bool) -> None:
        self.aborted = False
        self.timeout_keep_alive_task = object() if answered else None
        self.flow = SimpleNamespace(write_paused=False)
        self.cycle = SimpleNamespace(response_complete=True)
        self.transport = SimpleNamespace(is_closing=lambda: False, abort=self.abort)

    def abort(self) -> None:
        self.aborted = True


def test_an_idle_connection_outlives_a_stalled_one_and_is_cut_when_crowded() -> None:
    resting, stalled = Connection(answered=True), Connection(answered=False)
    watch = ConnectionWatch(2, 5.0, {resting, stalled})
    assert [watch.sweep(now) for now in (0.0, 4.0, 6.0)] == [0, 0, 1]
    assert (stalled.aborted, resting.aborted) == (True, False)
    watch = ConnectionWatch(0, 5.0, {resting})
    assert watch.sweep(0.0) == 1 and resting.aborted


def test_a_connection_just_opened_is_spared_until_the_next_sweep() -> None:
    new = Connection(answered=False)
    watch = ConnectionWatch(0, 5.0, {new})
    assert [watch.sweep(now, spare_new=True) for now in (0.0, 0.5)] == [0, 1]


def test_connections_stay_open_longer_than_a_proxy_s() -> None:
    assert Settings().keep_alive_seconds > 75
    assert _config(object(), 81.5).timeout_keep_alive == 81.5
