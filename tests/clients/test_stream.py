"""Streams as no server of ours sends them: odd separators, lines cut anywhere, what is no event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from allears_client import AllEars, AsyncAllEars, Busy, Interrupted, NoServer, stream
from server.api import sse
from server.app import create_app
from server.settings import Settings
from tests.clients.test_contract import filled

SEPARATORS = "a\u2028b\u2029c\u0085d é𝄞"
KINDS = pytest.mark.parametrize("kind", [AllEars, AsyncAllEars])


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in chunks; an exception among them breaks the connection."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def pieces(kind: type[AllEars | AsyncAllEars], response: httpx.Response) -> list[str]:
    """All pieces of a stream with this response."""
    transport = httpx.MockTransport(lambda _: response)
    if kind is AllEars:
        with AllEars(transport=transport) as ears, ears.stream(b"x", "?") as answering:
            return list(answering)

    async def ask() -> list[str]:
        async with (
            AsyncAllEars(transport=transport) as ears,
            ears.stream(b"x", "?") as answering,
        ):
            return [piece async for piece in answering]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def last_event() -> dict[str, Any]:
    document = create_app(Settings()).openapi()
    content = document["paths"]["/v1/audio-chat"]["post"]["responses"]["200"]["content"]
    return {**filled(document, content["application/json"]["schema"], count()), "delta": ""}


@KINDS
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_line_ends_at_a_newline_alone(
    kind: type[AllEars | AsyncAllEars], size: int, last_event: dict[str, Any]
) -> None:
    events = [{"delta": SEPARATORS}, {"delta": "e"}, last_event]
    text = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events)
    data = f": a comment\n{text}data: [DONE]\r\n\r\n".encode()
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    assert pieces(kind, httpx.Response(200, stream=Chunks(*chunks))) == [SEPARATORS, "e"]


def test_the_servers_events_are_one_line_to_every_reader() -> None:
    line, *rest = sse.event({"delta": SEPARATORS}).decode().splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"delta": SEPARATORS}
    assert "é𝄞" in line


@KINDS
@pytest.mark.parametrize(
    "line", [b'{"delta": "a', b"<html>", b"[1]", b"{}", b'{"answer": "x", "delta": ""}', b"\xff"]
)
def test_what_is_no_event_is_said(kind: type[AllEars | AsyncAllEars], line: bytes) -> None:
    with pytest.raises(Interrupted, match="allears"):
        pieces(kind, httpx.Response(200, content=b"data: " + line + b"\n\n"))


@KINDS
def test_a_line_without_an_end_is_not_kept(
    kind: type[AllEars | AsyncAllEars], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_LONGEST_LINE_BYTES", 100)
    with pytest.raises(Interrupted, match="100"):
        pieces(kind, httpx.Response(200, stream=Chunks(b"data: ", b"x" * 100)))


@KINDS
@pytest.mark.parametrize("code", ["replica_lost", "out_of_memory", "queue_timeout"])
def test_the_last_event_may_be_an_error(kind: type[AllEars | AsyncAllEars], code: str) -> None:
    content = sse.event({"error": {"message": "no", "code": code}})
    with pytest.raises(Busy, match=code):
        pieces(kind, httpx.Response(200, content=content))


@KINDS
@pytest.mark.parametrize(
    ("status", "error"), [(200, Interrupted), (422, NoServer), (500, NoServer)]
)
def test_a_body_that_breaks_is_said(
    kind: type[AllEars | AsyncAllEars], status: int, error: type[Exception]
) -> None:
    breaking = httpx.Response(status, stream=Chunks(b'{"e', httpx.ReadError("gone")))
    with pytest.raises(error, match="gone"):
        pieces(kind, breaking)
    packed = {"content-encoding": "gzip"}
    with pytest.raises(error):
        pieces(kind, httpx.Response(status, headers=packed, stream=Chunks(b"no gzip")))
