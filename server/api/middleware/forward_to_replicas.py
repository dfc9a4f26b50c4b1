"""Forwarding of requests from the router to its replicas."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send


def forward_to_replicas(app: ASGIApp, forward: ASGIApp, routes: Sequence[BaseRoute]) -> ASGIApp:
    """Give a request of one of the routes to `forward`, any other to the app."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        matching = [route for route in routes if route.matches(scope)[0] is Match.FULL]
        if scope["type"] != "http" or not matching:
            return await app(scope, receive, send)
        scope["route"] = matching[0]
        await forward(scope, receive, send)

    return call
