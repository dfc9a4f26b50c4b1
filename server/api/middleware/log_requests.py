"""What happens around every request, as plain ASGI: each a function from an app to an app.

From the outside in: `observed` gives the id, headers, log line, metrics and trace; `caught` answers
what nobody expected, and whom there is no room for; `raced` ends the work of a client that hung up,
or that took too long; `bounded` holds the body to its limits; `keyed` (access.py) asks for a key.
A front has `forwarded` within them, which hands a request on to a replica.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.api_keys import NOBODY
from server.api.middleware.require_key import PROBES
from server.deployment import Deployment
from server.telemetry.logs import request_fields, text_fields

log = logging.getLogger("allears.requests")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_GONE = 499
_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


def log_requests(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Adds x-request-id and security headers; counts, logs and traces when all is over."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(scope)
        started, status = time.perf_counter(), 0
        traces = deployment.tracer if scope["path"] not in PROBES else None
        if traces:
            state["span"] = traces.begin(Headers(scope=scope))

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, state["request_id"])
                if deployment.state == "draining":
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        counted = scope["path"] not in PROBES
        deployment.in_flight += counted
        try:
            await app(scope, receive, dressed)
        finally:
            deployment.in_flight -= counted
            line = _log_fields(scope, status or _CLIENT_GONE, time.perf_counter() - started)
            if traces:
                timings = state["answer"].timings if "answer" in state else state.get("timings")
                line["trace_id"] = traces.end(state["span"], line, state.get("taken"), timings)
            _log_and_count(deployment, scope, line)

    return call


def _request_id(scope: Scope) -> str:
    """The client's own id, if it is a sane one; else a fresh one."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if _SANE_ID.fullmatch(sent) else f"req-{uuid.uuid4().hex}"


def _add_headers(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["x-request-id"] = request_id
    for name, value in _SECURITY.items():
        headers.setdefault(name, value)
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("content-security-policy", _NO_PAGE)
        headers.setdefault("cache-control", "no-store")


def _log_fields(scope: Scope, status: int, seconds: float) -> dict[str, Any]:
    """What the log and the trace say of a request."""
    state = scope["state"]
    return {
        "request_id": state["request_id"],
        "key": state.get("key", NOBODY),
        "method": scope["method"] if scope["method"].isalpha() else "?",
        "route": _route(scope),
        "status": status,
        "seconds": round(seconds, 4),
        **request_fields(state),
    }


def _log_and_count(deployment: Deployment, scope: Scope, line: dict[str, Any]) -> None:
    """One log line and the metrics of a request; nothing of what the user wrote, if not told to."""
    route, state, metrics = line["route"], scope["state"], deployment.metrics
    metrics.requests.labels(route, str(line["status"])).inc()
    metrics.key_requests.labels(line["key"], str(line["status"])).inc()
    metrics.request_seconds.labels(route).observe(line["seconds"])
    if "error_code" in state:
        metrics.errors.labels(state["error_code"]).inc()
    if deployment.settings.log_text and "question" in state:
        line |= text_fields(state["question"], state.get("answer"))
    line |= state.get("words", {})
    log.log(logging.DEBUG if route in PROBES else logging.INFO, "request", extra=line)


def _route(scope: Scope) -> str:
    """The template of the route that answered, never the path itself."""
    if scope["path"] in PROBES:
        return str(scope["path"])
    return str(getattr(scope.get("route"), "path", "unmatched"))
