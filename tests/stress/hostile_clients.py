"""Clients that behave badly, over raw sockets.

Each returns the server's fault, or "" if there was none. None of them waits for ever.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from random import Random
from socket import SO_LINGER, SOL_SOCKET, socket

from tests.stress.questions import AnswerContent, HonestRequest
from tests.stress.server_process import KEY

_PATIENCE_SECONDS = 120.0
_DRIPS = 6
_OPEN_LINGER = struct.pack("ii", 1, 0)  # close resets the connection


class Wire:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.waited = False  # in vain, as long as anybody would

    async def send(self, data: bytes) -> None:
        """Send what the server still takes: it may have answered and closed."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body; status 0 if there was none."""
        received = b""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while data := await self.reader.read(65_536):
                    received += data
        except TimeoutError:
            self.waited = True
        except ConnectionError:
            pass
        head, _, body = received.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        return status, unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body

    def reset(self) -> None:
        """Hang up as rudely as TCP can."""
        own: socket | None = self.writer.get_extra_info("socket")
        if own is not None:
            with suppress(OSError):
                own.setsockopt(SOL_SOCKET, SO_LINGER, _OPEN_LINGER)
        self.writer.transport.abort()


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    """A connection that is closed in the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 5)


def unchunked(body: bytes) -> bytes:
    """A body sent in chunks, put together as far as it came."""
    joined = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size, 16) if size else 0
        if not count:
            break
        joined, body = joined + body[:count], body[count + 2 :]
    return joined


def closing(request: bytes) -> bytes:
    """The request, which asks for the connection to be closed after the answer."""
    return request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)


# ---- clients that hang up: nobody else may notice


async def gone_before_body(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Announces a body and hangs up."""
    head, _, _ = request.encoded(f"http://127.0.0.1:{port}", KEY).partition(b"\r\n\r\n")
    async with wire(port) as connection:
        await connection.send(head + b"\r\n\r\n")
        await asyncio.sleep(random.uniform(0, 0.2))
        connection.reset()
    return ""


async def gone_in_body(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Hangs up within the body."""
    sent = request.encoded(f"http://127.0.0.1:{port}", KEY)
    start = sent.index(b"\r\n\r\n") + 4
    async with wire(port) as connection:
        await connection.send(sent[: random.randrange(start, len(sent))])
        await asyncio.sleep(random.uniform(0, 0.2))
        connection.reset()
    return ""


async def gone_while_waiting(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Sends all and hangs up before the answer, in the queue or in the prefill."""
    async with wire(port) as connection:
        await connection.send(request.encoded(f"http://127.0.0.1:{port}", KEY))
        await asyncio.sleep(random.uniform(0, 0.5))
        connection.reset()
    return ""


async def gone_in_answer(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Reads the answer's first bytes and hangs up."""
    async with wire(port) as connection:
        await connection.send(request.encoded(f"http://127.0.0.1:{port}", KEY))
        with suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(
                connection.reader.read(random.randrange(1, 400)), _PATIENCE_SECONDS
            )
        connection.reset()
    return ""


# ---- clients that are refused, with the status and the error of the contract


def refusal_fault(status: int, body: bytes, wanted: tuple[int, ...]) -> str:
    """The fault of a refusal; empty if there is none."""
    if status not in wanted:
        return f"{status}, not {' or '.join(map(str, wanted))}: {body[:300]!r}"
    with suppress(ValueError, KeyError, AttributeError):
        if json.loads(body)["error"].keys() == {"message", "type", "param", "code"}:
            return ""
    return f"{status} with a body that is no error of ours: {body[:300]!r}"


async def with_a_bad_key(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Asks with a key that is not one."""
    key = random.choice(["", "wrong", KEY[:-1], KEY + "x", "\u00e9".encode().decode("latin-1")])
    sent = request.encoded(f"http://127.0.0.1:{port}", KEY)
    sent = sent.replace(f"Bearer {KEY}".encode(), f"Bearer {key}".encode("latin-1"), 1)
    async with wire(port) as connection:
        await connection.send(closing(sent))
        return refusal_fault(*await connection.answer(), (401,))


async def with_broken_json(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Sends a body that is no JSON, or JSON of another shape."""
    broken = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"audio": NaN}', b"[" * 50_000]
    broken.append(b'{"question": "x", "question": 3}')
    body = random.choice(broken)
    sent = _post(request.path, len(body)) + body
    async with wire(port) as connection:
        await connection.send(sent)
        return refusal_fault(*await connection.answer(), (422,))


async def with_too_large_a_body(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Announces a body over every limit, sends some of it."""
    async with wire(port) as connection:
        await connection.send(_post(request.path, 3_000_000_000) + b"x" * random.randrange(100_000))
        return refusal_fault(*await connection.answer(), (413,))


async def with_too_large_a_stream(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Sends chunk after chunk, announcing no end, until it is told to stop."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    async with wire(port) as connection:
        await connection.send(_post(request.path, None))
        for _ in range(100):
            await connection.send(chunk)
            if connection.reader.at_eof() or connection.writer.is_closing():
                break
        return refusal_fault(*await connection.answer(), (413,))


async def with_no_http(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Sends noise where HTTP is expected: 400, or the connection is closed."""
    async with wire(port) as connection:
        await connection.send(random.randbytes(random.randrange(1, 2000)) + b"\r\n\r\n")
        connection.writer.write_eof()
        status, body = await connection.answer()
        return "" if status in (0, 400) else f"{status} to noise: {body[:200]!r}"


def _post(path: str, size: int | None) -> bytes:
    length = "transfer-encoding: chunked" if size is None else f"content-length: {size}"
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\nconnection: close\r\n{length}\r\n\r\n"
    ).encode()


# ---- clients that are slow: they are answered like anybody else


async def with_slow_headers(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Sends the headers in drips."""
    head, gap, body = closing(request.encoded(f"http://127.0.0.1:{port}", KEY)).partition(
        b"\r\n\r\n"
    )
    return await _dripping(port, request, content, head, gap + body, random)


async def with_a_slow_body(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Sends the body in drips."""
    head, gap, body = closing(request.encoded(f"http://127.0.0.1:{port}", KEY)).partition(
        b"\r\n\r\n"
    )
    return await _dripping(port, request, content, body, b"", random, first=head + gap)


async def with_no_end_of_headers(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Begins its headers and says nothing more: it is cut off, without an answer or with 408."""
    head, _, _ = closing(request.encoded(f"http://127.0.0.1:{port}", KEY)).partition(b"\r\n\r\n")
    async with wire(port) as connection:
        await connection.send(head[: random.randrange(len(head))])
        status, body = await connection.answer()
        return (
            ""
            if status in (0, 408) and not connection.waited
            else f"{status} {body[:200]!r}, or for ever"
        )


async def with_no_end_of_body(
    port: int, request: HonestRequest, content: AnswerContent, random: Random
) -> str:
    """Begins its body and says nothing more."""
    sent = closing(request.encoded(f"http://127.0.0.1:{port}", KEY))
    start = sent.index(b"\r\n\r\n") + 4
    async with wire(port) as connection:
        await connection.send(sent[: random.randrange(start, len(sent))])
        return refusal_fault(*await connection.answer(), (408,))


async def _dripping(
    port: int,
    request: HonestRequest,
    content: AnswerContent,
    slow: bytes,
    rest: bytes,
    random: Random,
    first: bytes = b"",
) -> str:
    async with wire(port) as connection:
        await connection.send(first)
        cuts = sorted(random.randrange(len(slow)) for _ in range(_DRIPS))
        for start, end in zip([0, *cuts], [*cuts, len(slow)], strict=True):
            await connection.send(slow[start:end])
            await asyncio.sleep(random.uniform(0, 0.4))
        await connection.send(rest)
        return answer_fault(request, content, *await connection.answer())


def answer_fault(request: HonestRequest, content: AnswerContent, status: int, body: bytes) -> str:
    """The fault of an answer to an honest request; empty if there is none."""
    import httpx

    if status != 200:
        return f"{status} instead of an answer: {body[:300]!r}"
    try:
        return request.read(httpx.Response(200, content=body)).differs(content)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        return f"an answer of another shape ({error!r}): {body[:300]!r}"


HostileClient = Callable[[int, HonestRequest, AnswerContent, Random], Awaitable[str]]
HANG_UPS: Mapping[str, HostileClient] = {
    "hung up before the body": gone_before_body,
    "hung up in the body": gone_in_body,
    "hung up while it waited": gone_while_waiting,
    "hung up in the answer": gone_in_answer,
}
REFUSED: Mapping[str, HostileClient] = {
    "a bad key": with_a_bad_key,
    "broken JSON": with_broken_json,
    "too large a body, announced": with_too_large_a_body,
    "too large a body, in chunks": with_too_large_a_stream,
    "no HTTP": with_no_http,
}
SLOW: Mapping[str, HostileClient] = {
    "slow headers": with_slow_headers,
    "a slow body": with_a_slow_body,
}
STUCK: Mapping[str, HostileClient] = {
    "headers without an end": with_no_end_of_headers,
    "a body without an end": with_no_end_of_body,
}
