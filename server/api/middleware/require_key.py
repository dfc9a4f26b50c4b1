"""Keys and their limits: everything but probes and static pages needs a key.

A path is compared as the routes see it, decoded and otherwise as it was sent, and is open only if
it equals an open one to the letter: whatever else a path is made to look like needs a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.api_keys import ApiKey, find
from server.access.rate_limits import KeyLimits
from server.api.error_responses import answer_error
from server.errors import Busy, Unauthorized
from server.settings import Settings
from server.telemetry.request_record import request_record

PROBES = frozenset({"/livez", "/readyz"})


def require_key(app: ASGIApp, keys: Sequence[ApiKey], settings: Settings) -> ASGIApp:
    """Let a request pass that has one of the keys within its limits, or asks for an open path.

    Without keys all is open, and nothing limited. The key's name goes into the request's record.
    """
    limits = {key.name: _limits(key, settings) for key in keys}

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not keys or _is_open(scope):
            return await app(scope, receive, send)
        key = find(_bearer_key(scope), keys)
        if key is None:
            error = Unauthorized(
                "the API key is missing or wrong; send the header `Authorization: Bearer KEY`"
            )
            return await answer_error(scope, error)(scope, receive, send)
        request_record(scope).key = key.name
        with ExitStack() as until_answered:
            try:
                until_answered.enter_context(limits[key.name].admit())
            except Busy as error:
                return await answer_error(scope, error)(scope, receive, send)
            await app(scope, receive, send)

    return call


def _limits(key: ApiKey, settings: Settings) -> KeyLimits:
    """The key's own limits, or those for all keys."""
    rate, running = key.requests_per_minute, key.concurrent_requests
    return KeyLimits(
        settings.key_requests_per_minute if rate is None else rate,
        settings.key_concurrent_requests if running is None else running,
    )


def _is_open(scope: Scope) -> bool:
    """Whether the path is a probe or a static file of the playground, which hold no secret."""
    path = str(scope.get("path"))
    page = path in ("/", "/playground") or path.startswith("/playground/")
    return scope["type"] == "http" and (page or path in PROBES)


def _bearer_key(scope: Scope) -> str:
    """The key that a request carries; empty if it carries none."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
