"""The path under which a proxy shows the server, if the proxy leaves it in the requests."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


def strip_root_path(app: ASGIApp, root_path: str) -> ASGIApp:
    """Give the app paths without the root path; those without it as they are."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"] + "/").startswith(root_path + "/"):
            scope["path"] = scope["path"].removeprefix(root_path) or "/"
        await app(scope, receive, send)

    return call
