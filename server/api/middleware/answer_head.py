"""HEAD on every path that knows GET: the same headers, without the body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def answer_head(app: ASGIApp) -> ASGIApp:
    """Let the app answer HEAD as GET, and send no body; the log still says HEAD."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await app(scope, receive, send)

        async def send_headers(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        scope["method"] = "GET"
        try:
            await app(scope, receive, send_headers)
        finally:
            scope["method"] = "HEAD"

    return call
