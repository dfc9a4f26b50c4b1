"""Audio behind links: listed hosts only, public addresses only, bounded."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.audio.url_fetch import UrlFetcher, is_public, resolve
from steering.errors import AllEarsError, AudioError, AudioTooLarge, RequestError


class Files(BaseHTTPRequestHandler):
    """The host: a file, redirects, and things that should not be taken."""

    def do_GET(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        port = self.server.server_port
        hops = {
            "/moved": f"http://audio.test:{port}/file",
            "/away": "http://evil.test/x",
            "/inside": "http://169.254.169.254/latest",
            "/local-file": "file:///etc/passwd",
            "/loop": "/loop",
        }
        if self.path in hops:
            self.send_response(302)
            self.send_header("location", hops[self.path])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        if self.path == "/zip":
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if self.path == "/slow":
            threading.Event().wait(1)
        body = b"x" * 5000 if self.path == "/large" else str(self.headers["host"]).encode()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(port: int) -> Callable[..., bytes]:
    """Fetches as if audio.test were a public host; it stands on this machine."""

    async def here(host: str, _: int) -> list[str]:
        return ["127.0.0.1"] if host == "audio.test" else await resolve(host, 80)  # type: ignore[return-value]

    def fetch(path: str, *, allow: Callable[[str], bool] = lambda _: True) -> bytes:
        hosts = frozenset({f"audio.test:{port}", "localhost", f"localhost:{port}"})
        seconds = 0.5 if path == "/slow" else 20
        fetcher = UrlFetcher(hosts, max_bytes=1000, seconds=seconds, resolve=here, allow=allow)
        url = path if "/" not in path[:1] else f"http://audio.test:{port}{path}"
        return asyncio.run(fetcher.fetch_all([url]))[url]

    return fetch


def test_a_listed_host_is_asked_under_its_name(fetch: Any, port: int) -> None:
    assert fetch("/file") == f"audio.test:{port}".encode()
    assert fetch("/moved") == f"audio.test:{port}".encode()


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/large", AudioTooLarge, "1,000 bytes"),
        ("/none", AudioError, "404"),
        ("/zip", AudioError, "plain"),
        ("/loop", AudioError, "redirects"),
        ("/slow", AudioError, "0.5 s"),
        ("/away", RequestError, "evil.test"),
        ("/inside", RequestError, "169.254.169.254"),
        ("/local-file", RequestError, "http"),
    ],
)
def test_what_is_not_a_small_file_of_a_listed_host_is_refused(
    fetch: Any, path: str, kind: type[AllEarsError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        fetch(path)
    assert type(caught.value) is kind


def test_a_listed_host_inside_this_network_is_refused(fetch: Any, port: int) -> None:
    for host in ("audio.test", "localhost"):
        with pytest.raises(RequestError, match="public address"):
            fetch(f"http://{host}:{port}/file", allow=is_public)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.test\\@audio.test/",
        "http://audio.test\\.evil.test/",
        "http://audio.test@evil.test/",
        "http://user:password@localhost/",
        "http://localhost:99/",
        "http://localhost /x",
        "http://localhost\t/x",
        "http://localhost\n.evil.test/",
        "http://l\u043ecalhost/",
        "http://xn--lcalhost-7fg/",
        "http://evil.test#@localhost/",
        "http://evil.test?@localhost/",
        "http://[::1]/",
        "http://0x7f000001/",
        "http:///x",
        "http:localhost/x",
        "ftp://localhost/x",
        "gopher://localhost/x",
        "http://localhost.evil.test/",
        "https://localhost/" + "x" * 2000,
    ],
)
def test_tricks_with_urls_are_refused_before_a_lookup(url: str) -> None:
    def lookup(*_: object) -> Any:
        raise AssertionError("a name was looked up")

    fetcher = UrlFetcher(frozenset({"localhost"}), 1000, resolve=lookup)
    with pytest.raises(RequestError):
        asyncio.run(fetcher.fetch_all([url]))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses_of_inside_are_known(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_every_address_of_a_name_must_be_public() -> None:
    async def both(*_: object) -> list[str]:
        return ["93.184.216.34", "127.0.0.1"]

    fetcher = UrlFetcher(frozenset({"audio.test"}), 1000, resolve=both)
    with pytest.raises(RequestError, match="public address"):
        asyncio.run(fetcher.fetch_all(["http://audio.test/x"]))


def test_a_chat_fetches_what_its_settings_allow(
    start: Any, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetched(self: UrlFetcher, urls: Any) -> dict[str, bytes]:
        assert self.hosts == {"audio.test", "audio.test:8080"}
        return {url: sound for url in urls if self.check(url)}

    monkeypatch.setattr(UrlFetcher, "fetch_all", fetched)
    part = {"type": "audio_url", "audio_url": {"url": "https://audio.test/x.wav"}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    with start(allowed_audio_hosts="audio.test, Audio.test:8080") as server:
        response = server.chat(messages=messages, max_tokens=1)
        assert response.status_code == 200
        crowd = [{"role": "user", "content": [part] * 9}]
        refused = server.chat(messages=crowd)
        assert refused.status_code == 422
        assert "9 clips" in refused.json()["error"]["message"]


def test_the_systems_resolver_is_asked() -> None:
    addresses = asyncio.run(resolve("localhost", 80))
    assert {"127.0.0.1", "::1"} & set(addresses)
    with pytest.raises(socket.gaierror):
        asyncio.run(resolve("nowhere.invalid", 80))
