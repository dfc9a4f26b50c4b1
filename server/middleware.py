"""What happens around every request, as plain ASGI: each a function from an app to an app.

From the outside in: `observed` gives the id, headers, log line, metrics and trace; `caught` answers
what nobody expected, and whom there is no room for; `raced` ends the work of a client that hung up,
or that took too long; `bounded` holds the body to its limits; `keyed` (access.py) asks for a key.
A front has `forwarded` within them, which hands a request on to a replica.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access import PROBES
from server.deployment import Crowded, Deployment, Draining
from server.engine import TimedOut
from server.errors import BodyTimeout, BodyTooLarge, answer_error
from server.keys import NOBODY
from server.logs import told, wording

log = logging.getLogger("allears.requests")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE = 499
_GRACE_SECONDS = 2.0  # over the engine's own limit, which can still say so in a stream
_LINGER_SECONDS = 3.0  # how long a body is thrown away, so that the client gets to read the answer
_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


def observed(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Adds x-request-id and security headers; counts, logs and traces when all is over."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(scope)
        started, status = time.perf_counter(), 0
        traces = deployment.traces if scope["path"] not in PROBES else None
        if traces:
            state["span"] = traces.begin(Headers(scope=scope))

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _dress(message, state["request_id"])
                if deployment.state == "draining":
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        counted = scope["path"] not in PROBES
        deployment.in_flight += counted
        try:
            await app(scope, receive, dressed)
        finally:
            deployment.in_flight -= counted
            line = _line(scope, status or _CLIENT_GONE, time.perf_counter() - started)
            if traces:
                timings = state["answer"].timings if "answer" in state else state.get("timings")
                line["trace_id"] = traces.end(state["span"], line, state.get("taken"), timings)
            _observe(deployment, scope, line)

    return call


def caught(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Answers what nobody expected, with its details in the log, and whom there is no room for."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        begun = False

        async def noticed(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if scope["path"] not in PROBES and deployment.crowded():
                raise Crowded("more connections are open than this server allows; close some")
            await app(scope, receive, noticed)
        except Exception as error:
            response = answer_error(scope, error)
            if not begun:
                await response(scope, receive, send)

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


def _line(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    """What the log and the trace say of a request."""
    state = scope["state"]
    return {
        "request_id": state["request_id"],
        "key": state.get("key", NOBODY),
        "method": scope["method"] if scope["method"].isalpha() else "?",
        "route": _route(scope),
        "status": status,
        "seconds": round(seconds, 4),
        **told(state),
    }


def _observe(deployment: Deployment, scope: Scope, line: dict[str, Any]) -> None:
    """One log line and the metrics of a request; nothing of what the user wrote, if not told to."""
    route, state, metrics = line["route"], scope["state"], deployment.metrics
    metrics.requests.labels(route, str(line["status"])).inc()
    metrics.key_requests.labels(line["key"], str(line["status"])).inc()
    metrics.request_seconds.labels(route).observe(line["seconds"])
    if "error_code" in state:
        metrics.errors.labels(state["error_code"]).inc()
    if deployment.settings.log_text and "question" in state:
        line |= wording(state["question"], state.get("answer"))
    line |= state.get("words", {})
    log.log(logging.DEBUG if route in PROBES else logging.INFO, "request", extra=line)


def _route(scope: Scope) -> str:
    """The template of the route that answered, never the path itself."""
    if scope["path"] in PROBES:
        return str(scope["path"])
    return str(getattr(scope.get("route"), "path", "unmatched"))


def raced(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Runs the app against the receive channel: who hangs up ends the work, and so does time.

    TimedOut after the longest time, Draining where the server can't wait for the end. Nothing is
    received before the app asks, so a body that nobody wants is never invited.
    """
    settings = deployment.settings
    limit_seconds = settings.body_timeout_seconds + settings.request_timeout_seconds

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
        done: set[asyncio.Future[None]] = set()
        try:
            done, _ = await asyncio.wait([work], timeout=limit_seconds + _GRACE_SECONDS)
        except asyncio.CancelledError:
            if deployment.state == "draining":  # the server ends, and this is the last to be said
                raise Draining("the server shut down before the answer was there", 5) from None
            raise
        finally:
            tasks = [task for task in (work, watcher) if task is not None]
            for task in tasks:
                task.cancel()  # without effect on what has ended
            await asyncio.gather(*tasks, return_exceptions=True)
        if not done:
            raise TimedOut("the request took longer than is allowed here; ask again later", 5)
        if not gone:
            work.result()

    return call


def bounded(app: ASGIApp, max_bytes: int, seconds: float) -> ASGIApp:
    """Raises BodyTooLarge in the app as soon as a body is announced, or gets, over the limit.

    And BodyTimeout if it has not arrived so long after the app first asked for it.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        headers = Headers(scope=scope)
        deadline: float | None = None
        size, ended = 0, not ({"content-length", "transfer-encoding"} & set(headers.keys()))

        async def counted() -> Message:
            nonlocal size, ended, deadline
            announced = headers.get("content-length", "")
            if announced.isascii() and announced.isdecimal() and int(announced[:20]) > max_bytes:
                raise _too_large(int(announced[:20]), max_bytes)
            deadline = deadline or asyncio.get_running_loop().time() + seconds
            try:
                async with asyncio.timeout_at(None if ended else deadline):
                    message = await receive()
            except TimeoutError:
                ended = True  # as far as anybody waits for it
                raise BodyTimeout(
                    f"the body did not arrive within {seconds:g} s; send it faster, or less of it"
                ) from None
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
