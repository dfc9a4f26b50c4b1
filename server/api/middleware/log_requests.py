"""The outermost middleware: id, security headers, log line, metrics and trace of a request."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware.require_key import PROBES
from server.deployment import Deployment
from server.telemetry.request_record import RequestRecord, request_record

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
    """Add x-request-id and security headers; count, log and trace when all is over."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        record = request_record(scope)
        record.request_id = _request_id(scope)
        started, status = time.perf_counter(), 0
        counted = scope["path"] not in PROBES
        if counted and deployment.tracer is not None:
            record.span = deployment.tracer.begin(Headers(scope=scope))

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, record.request_id)
                if deployment.state == "draining":
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            with deployment.request_in_flight(counted=counted):
                await app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            line = _log_fields(scope, record, status or _CLIENT_GONE, seconds)
            if record.span is not None and deployment.tracer is not None:
                line["trace_id"] = deployment.tracer.end(record.span, line, record)
            _log_and_count(deployment, record, line)
            record.release()

    return call


def _request_id(scope: Scope) -> str:
    """The client's own id, if it is a sane one; else a fresh one."""
    own = Headers(scope=scope).get("x-request-id", "")
    return own if _SANE_ID.fullmatch(own) else f"req-{uuid.uuid4().hex}"


def _add_headers(message: Message, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["x-request-id"] = request_id
    for name, value in _SECURITY.items():
        headers.setdefault(name, value)
    if not headers.get("content-type", "").startswith("text/html"):
        headers.setdefault("content-security-policy", _NO_PAGE)
        headers.setdefault("cache-control", "no-store")


def _log_fields(scope: Scope, record: RequestRecord, status: int, seconds: float) -> dict[str, Any]:
    """The fields of a request's log line and trace, in their order."""
    return {
        "request_id": record.request_id,
        "key": record.key,
        "method": scope["method"] if scope["method"].isalpha() else "?",
        "route": _route(scope),
        "status": status,
        "seconds": round(seconds, 4),
        **record.line_fields(),
    }


def _log_and_count(deployment: Deployment, record: RequestRecord, line: dict[str, Any]) -> None:
    """Write a request's log line and count it; the user's text only if that is switched on."""
    route, metrics = line["route"], deployment.metrics
    metrics.requests.labels(route, str(line["status"])).inc()
    metrics.key_requests.labels(line["key"], str(line["status"])).inc()
    metrics.request_seconds.labels(route).observe(line["seconds"])
    if record.error_code is not None:
        metrics.errors.labels(record.error_code).inc()
    if deployment.settings.log_text or record.summary is not None:
        line |= record.text_fields()
    log.log(logging.DEBUG if route in PROBES else logging.INFO, "request", extra=line)


def _route(scope: Scope) -> str:
    """The template of the route that answered, never the path itself."""
    if scope["path"] in PROBES:
        return str(scope["path"])
    return str(getattr(scope.get("route"), "path", "unmatched"))
