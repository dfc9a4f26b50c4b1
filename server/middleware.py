"""What happens around every request, as plain ASGI: each a function from an app to an app.

From the outside in: `observed` gives the id, headers, log line and metrics; `raced` ends the work
of a client that hung up; `keyed` asks for a key; `bounded` holds the body to its limit. A front
has `forwarded` within them, which hands a request on to a replica.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.deployment import Deployment
from server.errors import BodyTooLarge, Unauthorized, answer_error

log = logging.getLogger("allears.requests")

PROBES = frozenset({"/livez", "/readyz"})
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE = 499
_LINGER_SECONDS = 3.0  # how long a body is thrown away, so that the client gets to read the answer
_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


def observed(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Adds x-request-id and security headers, counts, logs, and answers what nobody expected."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(scope)
        started, status = time.perf_counter(), 0

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(message, state["request_id"])
            await send(message)

        counted = scope["path"] not in PROBES
        deployment.in_flight += counted
        try:
            await app(scope, receive, dressed)
        except Exception as error:
            response = answer_error(scope, error)
            if not status:
                await response(scope, receive, dressed)
        finally:
            deployment.in_flight -= counted
            _observe(deployment, scope, status or _CLIENT_GONE, time.perf_counter() - started)

    return call


def _request_id(scope: Scope) -> str:
    """The client's own id, if it is a sane one; else a fresh one."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if _SANE_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"


def _dress(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["x-request-id"] = request_id
    for name, value in _SECURITY.items():
        headers.setdefault(name, value)
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("content-security-policy", _NO_PAGE)
        headers.setdefault("cache-control", "no-store")


def _observe(deployment: Deployment, scope: Scope, status: int, seconds: float) -> None:
    """One log line and the metrics of a request; nothing of what the user wrote."""
    route, state, metrics = _route(scope), scope["state"], deployment.metrics
    metrics.requests.labels(route, str(status)).inc()
    metrics.request_seconds.labels(route).observe(seconds)
    if "error_code" in state:
        metrics.errors.labels(state["error_code"]).inc()
    line: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": state["request_id"],
        "method": scope["method"] if scope["method"].isalpha() else "?",
        "route": route,
        "status": status,
        "seconds": round(seconds, 4),
        **{key: state[key] for key in ("error_code", "answer_id") if key in state},
    }
    log.log(logging.DEBUG if route in PROBES else logging.INFO, json.dumps(line))


def _route(scope: Scope) -> str:
    """The template of the route that answered, never the path itself."""
    if scope["path"] in PROBES:
        return str(scope["path"])
    return str(getattr(scope.get("route"), "path", "unmatched"))


def raced(app: ASGIApp) -> ASGIApp:
    """Runs the app against the receive channel: who hangs up ends the work.

    Nothing is received before the app asks, so a body that nobody wants is never invited.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        inbox: asyncio.Queue[Message] = asyncio.Queue(1)
        watcher: asyncio.Task[None] | None = None
        answered = gone = False

        async def watch() -> None:
            nonlocal gone
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" and not answered:
                    gone = True
                    work.cancel()
                    return
                await inbox.put(message)

        async def next_message() -> Message:
            nonlocal watcher
            watcher = watcher or asyncio.create_task(watch())
            return await inbox.get()

        async def noticed(message: Message) -> None:
            nonlocal answered
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered = True

        work = asyncio.ensure_future(app(scope, next_message, noticed))
        try:
            await asyncio.wait([work])
        finally:
            tasks = [task for task in (work, watcher) if task is not None]
            for task in tasks:
                task.cancel()  # without effect on what has ended
            await asyncio.gather(*tasks, return_exceptions=True)
        if not gone:
            work.result()

    return call


def keyed(app: ASGIApp, keys: Sequence[str]) -> ASGIApp:
    """Lets a request pass that has one of the keys, or asks for a probe or a static page.

    Open without keys.
    """
    wanted = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        open_ = scope.get("path") in PROBES or _is_page(scope)
        if scope["type"] == "http" and wanted and not open_ and not _has_key(scope, wanted):
            error = Unauthorized(
                "the API key is missing or wrong; send the header `Authorization: Bearer KEY`"
            )
            return await answer_error(scope, error)(scope, receive, send)
        await app(scope, receive, send)

    return call


def _is_page(scope: Scope) -> bool:
    """Whether a static file of the playground is asked for; they hold no secret."""
    path = str(scope.get("path"))
    return path in ("/", "/playground") or path.startswith("/playground/")


def _has_key(scope: Scope, wanted: Sequence[bytes]) -> bool:
    """Whether a wanted key was sent, in a time that does not depend on how much of it is right."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    sent = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
    matches = [hmac.compare_digest(sent, one) for one in wanted]
    return any(matches) and scheme.lower() == "bearer"


def bounded(app: ASGIApp, max_bytes: int) -> ASGIApp:
    """Raises BodyTooLarge in the app as soon as a body is announced, or gets, over the limit."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers = Headers(scope=scope)
        size, ended = 0, not ({"content-length", "transfer-encoding"} & set(headers.keys()))

        async def counted() -> Message:
            nonlocal size, ended
            announced = headers.get("content-length", "")
            if announced.isascii() and announced.isdecimal() and int(announced[:20]) > max_bytes:
                raise _too_large(int(announced[:20]), max_bytes)
            message = await receive()
            size += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            return message

        async def lingering(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start" and not ended and "expect" not in headers:
                ended = True
                await _throw_away(receive)
            await send(message)

        await app(scope, counted, lingering)

    return call


def _too_large(size: int, limit: int) -> BodyTooLarge:
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


def forwarded(app: ASGIApp, forward: ASGIApp, routes: Sequence[BaseRoute]) -> ASGIApp:
    """Gives a request of one of the routes to `forward`, any other to the app."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        found = [one for one in routes if one.matches(scope)[0] is Match.FULL]
        if scope["type"] != "http" or not found:
            return await app(scope, receive, send)
        scope["route"] = found[0]
        await forward(scope, receive, send)

    return call
