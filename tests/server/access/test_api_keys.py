"""Keys, their limits, and origins of pages; every answer's headers. Over real sockets."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.access import api_keys
from server.access.rate_limits import KeyLimits, TokenBucket
from server.errors import RateLimited, SettingsError, TooManyConcurrent
from server.settings import read_settings

ANN, BEN = "the-secret-key-of-ann", "the-secret-key-of-ben"
FILE = f"""
[ann]
key = "{ANN}"
requests_per_minute = 3

[ben]
key = "{BEN}"
concurrent_requests = 1
"""
QUESTION = "Who sings?"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(FILE)
    return path


# ---- the keys


def test_a_file_names_keys_and_their_limits(file: Path) -> None:
    settings = read_settings({}, {"api_keys_file": str(file)})
    ann, ben = settings.known_keys
    assert (ann.name, ann.requests_per_minute, ann.concurrent_requests) == ("ann", 3, None)
    assert (ben.name, ben.requests_per_minute, ben.concurrent_requests) == ("ben", None, 1)
    assert api_keys.find(ANN, settings.known_keys) == ann
    assert api_keys.find(ANN[:-1], settings.known_keys) is None
    assert api_keys.find("", settings.known_keys) is None
    assert ANN not in repr(settings.known_keys) and "digest" not in repr(settings.known_keys)


def test_listed_keys_are_numbered() -> None:
    settings = read_settings({}, {"api_keys": "a:b,c=d"})
    assert [key.name for key in settings.known_keys] == ["key-1", "key-2"]
    assert api_keys.find("a:b", settings.known_keys) == settings.known_keys[0]


WRONG_FILES: list[tuple[str, str, str]] = [
    ("no key", "", "no key"),
    ("not TOML", 'topsecret-topsecret-x = = "', "line 1, column"),
    ("a key without end", '[ann]\nkey = "topsecret-topsecret-x', "end of document"),
    (
        "name twice",
        '[ann]\nkey="topsecret-topsecret-x"\n[ann]\nkey="topsecret-topsecret-y"',
        "twice",
    ),
    ("key twice", '[a]\nkey="topsecret-topsecret-x"\n[b]\nkey="topsecret-topsecret-x"', "the same"),
    ("too short", '[ann]\nkey="topsecret"', "16 or more"),
    ("with a space", '[ann]\nkey="topsecret topsecret topsecret"', "without spaces"),
    ("no text", "[ann]\nkey=1234567890123456789", "[ann] has no key"),
    ("no key in a table", "[ann]\nrequests_per_minute=1", "[ann] has no key"),
    ("outside of a table", 'ann="topsecret-topsecret-x"', "outside of a table"),
    ("reserved name", '[none]\nkey="topsecret-topsecret-x"', "'none'"),
    ("odd name", '["topsecret topsecret"]\nkey="topsecret-topsecret-x"', "a name has"),
    ("unknown field", '[ann]\nkey="topsecret-topsecret-x"\ntopsecret=1', "[ann] has a field"),
    (
        "limit as text",
        '[ann]\nkey="topsecret-topsecret-x"\nrequests_per_minute="1"',
        "whole number",
    ),
    ("limit below 0", '[ann]\nkey="topsecret-topsecret-x"\nconcurrent_requests=-1', "whole number"),
]


@pytest.mark.parametrize(
    ("text", "reason"), [w[1:] for w in WRONG_FILES], ids=[w[0] for w in WRONG_FILES]
)
def test_a_wrong_file_stops_the_start_and_shows_no_key(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {"api_keys_file": str(path)})
    message = str(caught.value)
    assert reason in message
    assert "ALLEARS_API_KEYS_FILE" in message
    assert "topsecret" not in message and "1234" not in message


def test_a_file_that_is_not_there_or_no_text_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("nowhere", "No such file"), ("binary", "UTF-8"), (".", "can't be read")):
        with pytest.raises(SettingsError, match=reason):
            read_settings({}, {"api_keys_file": str(tmp_path / name)})


def test_keys_come_from_one_place(file: Path) -> None:
    with pytest.raises(SettingsError, match="unset one of them") as caught:
        read_settings({}, {"api_keys_file": str(file), "api_keys": ANN})
    assert ANN not in str(caught.value)


# ---- every way in needs a key


class Raw:
    """Requests as bytes on a socket, and the status and headers that come back."""

    def __init__(self, url: str) -> None:
        self.address = (urlsplit(url).hostname, urlsplit(url).port)

    def __call__(self, method: str, target: str, *lines: str) -> tuple[int, dict[str, str], bytes]:
        head = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
        with socket.create_connection(self.address, timeout=20) as connection:
            connection.sendall("\r\n".join(head).encode("latin-1"))
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        start, _, body = answer.partition(b"\r\n\r\n")
        first, *rest = start.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in rest)
        return int(first.split()[1]), headers, body


@pytest.fixture(scope="module")
def raw(start: Any) -> Iterator[Raw]:
    """A server with a key and without limits."""
    with start(api_keys=ANN) as server, server.on_a_port() as url:
        yield Raw(url)


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
PATHS = (
    "/v1/audio-chat",
    "/v1/chat/completions",
    "/v1/listening-score",
    "/listening-score",
    "/v1/models",
    "/v1/models/tiny",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/redoc",
    "/nope",
)
TRICKS = (
    "//v1/audio-chat",
    "/v1//audio-chat",
    "/v1/audio-chat/",
    "/metrics/",
    "/metrics?x=/livez",
    "/metrics;/livez",
    "/metrics#/livez",
    "/livez/",
    "/livez//",
    "/livez/../metrics",
    "/livez%2f..%2fmetrics",
    "/livez%00",
    "/livez%0a",
    "/livez;x",
    "/LIVEZ",
    "//livez",
    "/./livez",
    "/v1/../livez",
    "/v1/../metrics",
    "/%2e%2e/metrics",
    "/v1%2faudio-chat",
    "/%6detrics",
    "/%256detrics",
    "/metrics%20",
    "/playground2",
    "/playgroundx/../metrics",
    "\\metrics",
    "/\\metrics",
    "/playground\\..\\metrics",
    "http://x/metrics",
    "http://x/livez",
    "http://x/playground/../metrics",
    "https://x//metrics",
    "*",
    "x:443",
    "",
    "metrics",
    "/invocations",
    "/v1/completions",
)
OPEN_TRICKS = ("/playground/../metrics", "/playground/..%2fmetrics", "/playground//metrics",
               "/playground/%2e%2e/v1/models", "/playground/http://x/metrics")  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_route_by_every_method_needs_a_key(raw: Raw, path: str) -> None:
    for method in METHODS:
        status, headers, body = raw(method, path)
        assert status == 401, method
        assert headers["www-authenticate"] == "bearer"
        assert method == "HEAD" or json.loads(body)["error"]["code"] == "invalid_api_key"


def test_the_table_of_paths_misses_no_route(server: Any) -> None:
    known = {*PATHS, "/livez", "/readyz", "/", "/playground", "/playground/{name:path}"}
    routes = {r.path for r in server.app.routes if hasattr(r, "path")}
    assert {p for p in routes if p != "/v1/models/{model:path}"} <= known


@pytest.mark.parametrize("target", TRICKS)
def test_a_dressed_up_path_needs_a_key(raw: Raw, target: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        status, _, body = raw(method, target)
        assert status in (400, 401), (method, status)  # 400: uvicorn refused it as HTTP
        assert b"allears_" not in body


@pytest.mark.parametrize("target", OPEN_TRICKS)
def test_the_pages_lead_nowhere_else(raw: Raw, target: str) -> None:
    status, _, body = raw("GET", target)
    assert status == 404
    assert b"allears_" not in body


WRONG_KEYS = ("", "Bearer", "Bearer ", f"Bearer {ANN[:-1]}", f"Bearer {ANN}x", f"Basic {ANN}", ANN,
              f"Bearer {ANN},{ANN}", f"Bearer {ANN.upper()}", f"Bearer {ANN} {ANN}",
              f"Bearer {api_keys.digest(ANN).hex()}",
              "Bearer \xff\xfe", "Bearer key-1")  # fmt: skip


@pytest.mark.parametrize("sent", WRONG_KEYS)
def test_a_wrong_key_opens_nothing(raw: Raw, sent: str) -> None:
    status, _, body = raw("GET", "/v1/models", f"Authorization: {sent}")
    assert status == 401
    assert ANN.encode() not in body


def test_the_key_opens(raw: Raw) -> None:
    assert raw("GET", "/v1/models", f"Authorization: Bearer {ANN}")[0] == 200
    assert raw("GET", "/v1/models", f"authorization: bearer {ANN}")[0] == 200
    wrong_first = ("Authorization: Bearer x", f"Authorization: Bearer {ANN}")
    assert raw("GET", "/v1/models", *wrong_first)[0] == 401
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    assert raw("GET", "/v1/models", *upgrade)[0] in (400, 401)


def test_probes_and_pages_are_open(raw: Raw) -> None:
    for path in ("/livez", "/readyz", "/playground/", "/playground/playground.js"):
        assert raw("GET", path)[0] == 200
    for path in ("/livez", "/playground/"):
        assert raw("POST", path)[0] == 405


def test_a_refusal_reaches_a_client_in_the_middle_of_a_large_body(raw: Raw) -> None:
    """Of a client that reads when it has sent all, as most do."""
    size = 20_000_000
    lines = (
        "POST /v1/audio-chat HTTP/1.1",
        "host: x",
        f"content-length: {size}",
        "connection: close",
    )
    head = "\r\n".join([*lines, "", ""]).encode()
    with socket.create_connection(raw.address, timeout=20) as connection:
        connection.sendall(head + b"x" * size)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"invalid_api_key" in answer


# ---- limits of a key


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills_evenly() -> None:
    clock = Clock()
    bucket = TokenBucket(6, clock)
    assert [bucket.take() for _ in range(6)] == [0.0] * 6
    assert bucket.take() == pytest.approx(10)
    clock.now += 9
    assert bucket.take() == pytest.approx(1)
    clock.now += 1.001
    assert bucket.take() == 0.0
    assert bucket.take() > 9.9
    clock.now += 3600
    assert [bucket.take() for _ in range(6)] == [0.0] * 6
    assert bucket.take() > 0


def test_a_refused_request_costs_its_key_nothing() -> None:
    clock = Clock()
    allowance = KeyLimits(2, 1, clock)
    with allowance.admit(), pytest.raises(TooManyConcurrent), allowance.admit():
        pass
    with allowance.admit():
        pass
    with pytest.raises(RateLimited) as caught, allowance.admit():
        pass
    assert caught.value.retry_after_seconds == 30
    assert allowance.running == 0
    clock.now += 30.001
    with pytest.raises(ZeroDivisionError), allowance.admit():
        raise ZeroDivisionError
    assert allowance.running == 0


def test_a_key_may_ask_so_often(start: Any, file: Path) -> None:
    with start(api_keys_file=file) as server, server.on_a_port() as url:
        ann, ben = ({"authorization": f"Bearer {key}"} for key in (ANN, BEN))
        with httpx.Client(base_url=url) as http:
            statuses = [http.get("/v1/models", headers=ann).status_code for _ in range(3)]
            refused = http.get("/v1/models", headers=ann)
            assert [http.get("/v1/models", headers=ben).status_code for _ in range(9)] == [200] * 9
            assert http.get("/v1/models").status_code == 401
            assert http.get("/livez", headers=ann).status_code == 200
        assert statuses == [200] * 3
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        named = {"key": "ann"}
        assert server.metric("allears_key_requests_total", **named, status="200") == 3
        assert server.metric("allears_key_requests_total", **named, status="429") == 1
        assert server.metric("allears_key_requests_total", key="ben", status="200") == 9
        assert server.metric("allears_key_requests_total", key="none", status="401") == 1
        page = server.get("/metrics", headers=ben).text
        assert ANN not in page and api_keys.digest(ANN).hex()[:16] not in page


def test_a_key_may_have_so_many_running(start: Any, file: Path, gate: Any, audio: Any) -> None:
    with start(api_keys_file=file) as server:
        gate.close()
        ben = {"authorization": f"Bearer {BEN}"}
        body = {"audio": audio, "question": QUESTION, "max_tokens": 1, "stream": True}
        running = server.begin("POST", "/v1/audio-chat", json=body, headers=ben)
        server.wait_until(lambda: gate.held == 1)
        refused = server.get("/v1/models", headers=ben)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_concurrent"
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        assert running.result(20).status_code == 200
        assert server.get("/v1/models", headers=ben).status_code == 200


def test_a_client_that_hangs_up_gives_its_place_back(
    start: Any, file: Path, gate: Any, audio: Any
) -> None:
    with start(api_keys_file=file) as server, server.on_a_port() as url:
        gate.close()
        ben = {"authorization": f"Bearer {BEN}"}
        body = {"audio": audio, "question": QUESTION, "max_tokens": 1, "stream": True}
        with httpx.Client() as http, pytest.raises(httpx.ReadTimeout):
            http.post(f"{url}/v1/audio-chat", json=body, headers=ben, timeout=1)
        server.wait_until(lambda: server.get("/v1/models", headers=ben).status_code == 200)
        gate.open()


def test_limits_for_all_keys_are_settings(start: Any) -> None:
    with start(api_keys=f"{ANN},{BEN}", key_requests_per_minute=1) as server:
        for key in (ANN, BEN):
            headers = {"authorization": f"Bearer {key}"}
            statuses = [server.get("/v1/models", headers=headers).status_code for _ in range(2)]
            assert statuses == [200, 429]
    with start(key_requests_per_minute=1) as server:  # without keys nothing is limited
        assert [server.get("/v1/models").status_code for _ in range(3)] == [200] * 3


# ---- headers of every answer


def test_every_kind_of_answer_has_an_id_and_the_security_headers(
    start: Any, audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(api_keys=ANN, max_audio_bytes=1000, key_requests_per_minute=7) as server:
        key = {"authorization": f"Bearer {ANN}"}
        body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
        answers = {
            200: server.get("/livez"),
            307: server.get("/playground"),
            401: server.post("/v1/audio-chat", json=body),
            404: server.get("/nope", headers=key),
            405: server.get("/v1/audio-chat", headers=key),
            413: server.post("/v1/audio-chat", json={"x": "x" * 2_000_000}, headers=key),
            415: server.post("/v1/audio-chat", content=b"x", headers=key),
            422: server.post("/v1/audio-chat", json={}, headers=key),
        }
        monkeypatch.setattr(type(server.deployment), "ready", lambda _: 1 / 0)
        answers[500] = server.get("/v1/models", headers=key)
        monkeypatch.undo()
        server.get("/v1/models", headers=key)
        answers[429] = server.get("/v1/models", headers=key)
    for status, answer in answers.items():
        assert answer.status_code == status
        _has_headers(answer)


def test_a_stream_has_them_too(server: Any, audio: Any) -> None:
    answer = server.chat(audio=audio, question=QUESTION, max_tokens=1, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    _has_headers(answer)


def _has_headers(answer: httpx.Response) -> None:
    headers = answer.headers
    assert re.fullmatch(r"req-[0-9a-f]{32}", headers["x-request-id"])
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not [name for name in headers if name.startswith("access-control-")]


# ---- pages of other hosts

PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def test_pages_of_other_hosts_are_not_let_in(server: Any) -> None:
    for answer in (
        server.begin("OPTIONS", "/v1/audio-chat", headers=PREFLIGHT).result(20),
        server.get("/v1/models", headers={"origin": "https://app.example"}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_listed_origins_are_let_in(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(cors_origins="https://app.example, http://localhost:5173", api_keys=ANN) as server:
        asked = server.begin("OPTIONS", "/v1/audio-chat", headers=PREFLIGHT).result(20)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in asked.headers
        assert asked.headers["x-request-id"]
        origin = {"origin": "http://localhost:5173"}
        key = {"authorization": f"Bearer {ANN}", **origin}
        monkeypatch.setattr(type(server.deployment), "ready", lambda _: 1 / 0)
        broken = server.get("/v1/models", headers=key)
        monkeypatch.undo()
        answers = [server.get("/v1/models", headers=origin), broken]
        answers.append(server.get("/v1/models", headers=key))
        assert [answer.status_code for answer in answers] == [401, 500, 200]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
            exposed = answer.headers["access-control-expose-headers"]
            for name in ("x-request-id", "x-listening-score", "x-steering-strength"):
                assert name in exposed
        for stranger in ("https://app.example.evil", "null", "http://app.example"):
            answer = server.get("/v1/models", headers={**key, "origin": stranger})
            assert "access-control-allow-origin" not in answer.headers
            preflight = {**PREFLIGHT, "origin": stranger}
            asked = server.begin("OPTIONS", "/v1/audio-chat", headers=preflight).result(20)
            assert asked.status_code == 400
            assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize(
    "origins", ["*", "https://a.example,*", "null", "a.example", "https://a/b"]
)
def test_an_origin_is_spelt_out(origins: str) -> None:
    with pytest.raises(SettingsError, match="an origin is"):
        read_settings({}, {"cors_origins": origins})
