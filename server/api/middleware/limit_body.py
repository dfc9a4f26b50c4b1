"""Limits on the size of a request's body, and on the time until it is there."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyTimeout, BodyTooLarge

_LINGER_SECONDS = 3.0  # for throwing a body away, so that the client gets to read the answer


def limit_body(app: ASGIApp, max_bytes: int, seconds: float) -> ASGIApp:
    """Raise BodyTooLarge in the app as soon as a body is announced, or gets, over the limit.

    Raise BodyTimeout if it is not complete so many seconds after the app first asked for it.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers = Headers(scope=scope)
        deadline: float | None = None
        size, ended = 0, not ({"content-length", "transfer-encoding"} & set(headers.keys()))

        async def receive_within_limits() -> Message:
            nonlocal size, ended, deadline
            announced = headers.get("content-length", "")
            if announced.isascii() and announced.isdecimal() and int(announced[:20]) > max_bytes:
                raise too_large(int(announced[:20]), max_bytes)
            deadline = deadline or asyncio.get_running_loop().time() + seconds
            try:
                async with asyncio.timeout_at(None if ended else deadline):
                    message = await receive()
            except TimeoutError:
                ended = True  # nobody waits for the rest
                raise BodyTimeout(
                    f"the body did not arrive within {seconds:g} s; send it faster, or less of it"
                ) from None
            size += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if size > max_bytes:
                raise too_large(size, max_bytes)
            return message

        async def send_after_body(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start" and not ended and "expect" not in headers:
                ended = True
                await _throw_away(receive)
            await send(message)

        await app(scope, receive_within_limits, send_after_body)

    return call


def too_large(size: int, limit: int) -> BodyTooLarge:
    """The error of a body over the limit."""
    return BodyTooLarge(
        f"the body has {size:,} bytes or more; at most {limit:,} are allowed: send shorter clips,"
        " or compressed ones such as FLAC or Opus"
    )


async def _throw_away(receive: Receive) -> None:
    """Receive the rest of a body for a while: a connection closed on it would lose the answer."""
    more = True
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while more:
                more = (await receive()).get("more_body", False)
    except TimeoutError:
        return
