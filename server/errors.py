"""From exception to HTTP: one table, one body."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from server import faults
from server.completions import UnknownModel
from server.deployment import Crowded, Draining, Loading, ReplicaLost
from server.engine import Busy, QueueFull, QueueTimeout, Stopped, TimedOut
from server.limits import RateLimited, TooManyConcurrent
from server.listening_log import LogAway, UnknownRecord
from server.schemas import wrong_field
from steering.errors import AudioError, AudioTooLarge, RequestError

log = logging.getLogger("allears")


class Unauthorized(Exception):
    """The API key is missing or wrong."""


class BodyTooLarge(Exception):
    """The request's body is over the limit."""


class BodyTimeout(Exception):
    """The request's body did not arrive in time."""


class UnknownMedia(Exception):
    """The body is neither JSON nor a form."""


@dataclass(frozen=True, slots=True)
class Row:
    """How an exception looks over HTTP."""

    status: int
    code: str
    type: str = "invalid_request_error"
    param: str | None = None  # where the exception itself names none
    retry_after_seconds: int | None = None  # where the exception itself says nothing


OUT_OF_MEMORY = Row(503, "out_of_memory", "server_error", retry_after_seconds=5)
UNEXPECTED = Row(500, "internal_error", "server_error")
TABLE: Mapping[type[Exception], Row] = {
    AudioError: Row(400, "invalid_audio", param="audio"),
    AudioTooLarge: Row(413, "audio_too_large", param="audio"),
    RequestError: Row(422, "invalid_request"),
    RequestValidationError: Row(422, "invalid_request"),
    Unauthorized: Row(401, "invalid_api_key", "authentication_error"),
    BodyTooLarge: Row(413, "body_too_large"),
    BodyTimeout: Row(408, "body_timeout", retry_after_seconds=1),
    UnknownMedia: Row(415, "unsupported_media_type"),
    UnknownModel: Row(404, "model_not_found", param="model"),
    UnknownRecord: Row(404, "not_found", param="request_id"),
    LogAway: Row(503, "listening_log_away", "server_error", retry_after_seconds=5),
    RateLimited: Row(429, "rate_limited", "rate_limit_error"),
    TooManyConcurrent: Row(429, "too_many_concurrent", "rate_limit_error"),
    QueueFull: Row(429, "queue_full", "rate_limit_error"),
    QueueTimeout: Row(503, "queue_timeout", "server_error"),
    TimedOut: Row(504, "timeout", "server_error"),
    Crowded: Row(503, "too_many_connections", "server_error"),
    Loading: Row(503, "loading", "server_error"),
    Draining: Row(503, "draining", "server_error"),
    Stopped: Row(503, "stopped", "server_error"),
    ReplicaLost: Row(503, "replica_lost", "server_error"),
    torch.OutOfMemoryError: OUT_OF_MEMORY,
    MemoryError: OUT_OF_MEMORY,
    ClientDisconnect: Row(499, "client_gone"),
}
_CLOSING = ("body_timeout", "too_many_connections")  # codes after which a connection is of no use
_ROUTING: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "there is nothing at this path; GET /docs shows what there is"),
    405: ("method_not_allowed", "this path knows other methods; the header Allow names them"),
}


def row_of(error: Exception) -> Row:
    """The row of an exception's class, or of the closest class it derives from."""
    if isinstance(error, HTTPException):
        code, _ = _ROUTING.get(error.status_code, ("http_error", ""))
        return Row(error.status_code, code)
    if faults.is_out_of_memory(error):
        return OUT_OF_MEMORY
    found = (TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)
    return next(found, UNEXPECTED)


def body(error: Exception, request_id: str) -> dict[str, Any]:
    """The JSON body of an error; an unexpected one keeps its details for the log."""
    row = row_of(error)
    return {
        "error": {
            "message": _message(error, row, request_id),
            "type": row.type,
            "param": getattr(error, "param", None) or row.param,
            "code": row.code,
        }
    }


def _message(error: Exception, row: Row, request_id: str) -> str:
    if isinstance(error, HTTPException):
        return _ROUTING.get(error.status_code, ("", error.detail))[1]
    if row is OUT_OF_MEMORY:
        return "there was not enough memory for this request; try again, or send less audio"
    if row is UNEXPECTED:
        return f"the server failed; its log has the details under request id {request_id}"
    return str(error)


def headers(error: Exception) -> dict[str, str]:
    """Retry-After, Allow, WWW-Authenticate: what belongs to an error."""
    row = row_of(error)
    found: dict[str, str] = {}
    if isinstance(error, HTTPException):
        found.update({name.lower(): value for name, value in (error.headers or {}).items()})
    if row.status == 401:
        found["www-authenticate"] = "Bearer"
    if row.code in _CLOSING:
        found["connection"] = "close"
    wait = error.retry_after_seconds if isinstance(error, Busy) else row.retry_after_seconds
    if wait is not None:
        found["retry-after"] = str(wait)
    return found


def note(scope: Any, error: Exception) -> None:
    """Leave an error's code where the middleware counts it; log one nobody expected."""
    scope.setdefault("state", {})["error_code"] = row_of(error).code
    if row_of(error) in (UNEXPECTED, OUT_OF_MEMORY):
        log.error("request %s failed", scope["state"].get("request_id"), exc_info=error)


def plain(error: Exception) -> Exception:
    """The error in our own words, where fastapi has its own."""
    if isinstance(error, RequestValidationError):
        found = [{**one, "loc": one["loc"][1:]} for one in error.errors()]  # without query, body
        return wrong_field(found)
    if isinstance(error, HTTPException) and error.status_code == 400:
        return RequestError(f"the form can't be read: {error.detail}")
    return error


def answer_error(scope: Any, error: Exception) -> Response:
    """The response to an exception."""
    error = plain(error)
    note(scope, error)
    found = headers(error)
    if row_of(error).status == 405:
        found["allow"] = _methods(scope)
    return JSONResponse(
        body(error, scope["state"].get("request_id", "")),
        status_code=row_of(error).status,
        headers=found,
    )


def _methods(scope: Any) -> str:
    """The methods of a path, of all its routes: starlette's own header knows the first alone."""
    routes = scope["app"].state.routes
    found = {
        method
        for route in routes
        if route.matches(scope)[0] is not Match.NONE
        for method in route.methods
    }
    return ", ".join(sorted(found))


async def on_error(request: Request, error: Exception) -> Response:
    """The handler of every exception of the table."""
    return answer_error(request.scope, error)


HANDLERS: dict[int | type[Exception], Any] = dict.fromkeys((*TABLE, HTTPException), on_error)
