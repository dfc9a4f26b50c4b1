"""A slash behind a path, which some clients add: answered in place, as a redirect loses a body.

It stands inside the check of keys, which compares paths as they were sent.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

_PAGES = ("/", "/docs/", "/playground/")  # with or without the slash their links lead elsewhere


def drop_trailing_slash(app: ASGIApp) -> ASGIApp:
    """Give the app paths without a slash at their end, but for those of pages."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PAGES:
            scope["path"] = scope["path"].removesuffix("/") or "/"
        await app(scope, receive, send)

    return call
