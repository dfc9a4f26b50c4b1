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

from server.api.requests import wrong_field
from server.engine import torch_errors
from server.errors import (
    BodyTimeout,
    BodyTooLarge,
    Busy,
    Draining,
    EngineStopped,
    Loading,
    LogUnavailable,
    QueueFull,
    QueueTimeout,
    RateLimited,
    ReplicaLost,
    RequestTimeout,
    TooManyConcurrent,
    TooManyConnections,
    Unauthorized,
    UnknownModel,
    UnknownRecord,
    UnsupportedMediaType,
)
from steering.errors import AudioError, AudioTooLarge, RequestError

log = logging.getLogger("allears")


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """How an exception looks over HTTP."""

    status: int
    code: str
    type: str = "invalid_request_error"
    param: str | None = None  # where the exception itself names none
    retry_after_seconds: int | None = None  # where the exception itself says nothing


OUT_OF_MEMORY = ErrorSpec(503, "out_of_memory", "server_error", retry_after_seconds=5)
UNEXPECTED = ErrorSpec(500, "internal_error", "server_error")
TABLE: Mapping[type[Exception], ErrorSpec] = {
    AudioError: ErrorSpec(400, "invalid_audio", param="audio"),
    AudioTooLarge: ErrorSpec(413, "audio_too_large", param="audio"),
    RequestError: ErrorSpec(422, "invalid_request"),
    RequestValidationError: ErrorSpec(422, "invalid_request"),
    Unauthorized: ErrorSpec(401, "invalid_api_key", "authentication_error"),
    BodyTooLarge: ErrorSpec(413, "body_too_large"),
    BodyTimeout: ErrorSpec(408, "body_timeout", retry_after_seconds=1),
    UnsupportedMediaType: ErrorSpec(415, "unsupported_media_type"),
    UnknownModel: ErrorSpec(404, "model_not_found", param="model"),
    UnknownRecord: ErrorSpec(404, "not_found", param="request_id"),
    LogUnavailable: ErrorSpec(503, "listening_log_away", "server_error", retry_after_seconds=5),
    RateLimited: ErrorSpec(429, "rate_limited", "rate_limit_error"),
    TooManyConcurrent: ErrorSpec(429, "too_many_concurrent", "rate_limit_error"),
    QueueFull: ErrorSpec(429, "queue_full", "rate_limit_error"),
    QueueTimeout: ErrorSpec(503, "queue_timeout", "server_error"),
    RequestTimeout: ErrorSpec(504, "timeout", "server_error"),
    TooManyConnections: ErrorSpec(503, "too_many_connections", "server_error"),
    Loading: ErrorSpec(503, "loading", "server_error"),
    Draining: ErrorSpec(503, "draining", "server_error"),
    EngineStopped: ErrorSpec(503, "stopped", "server_error"),
    ReplicaLost: ErrorSpec(503, "replica_lost", "server_error"),
    torch.OutOfMemoryError: OUT_OF_MEMORY,
    MemoryError: OUT_OF_MEMORY,
    ClientDisconnect: ErrorSpec(499, "client_gone"),
}
_CLOSING = ("body_timeout", "too_many_connections")  # codes after which a connection is of no use
_ROUTING: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "there is nothing at this path; GET /docs shows what there is"),
    405: ("method_not_allowed", "this path knows other methods; the header Allow names them"),
}


def spec_of(error: Exception) -> ErrorSpec:
    """The row of an exception's class, or of the closest class it derives from."""
    if isinstance(error, HTTPException):
        code, _ = _ROUTING.get(error.status_code, ("http_error", ""))
        return ErrorSpec(error.status_code, code)
    if torch_errors.is_out_of_memory(error):
        return OUT_OF_MEMORY
    found = (TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)
    return next(found, UNEXPECTED)


def body(error: Exception, request_id: str) -> dict[str, Any]:
    """The JSON body of an error; an unexpected one keeps its details for the log."""
    row = spec_of(error)
    return {
        "error": {
            "message": _message(error, row, request_id),
            "type": row.type,
            "param": getattr(error, "param", None) or row.param,
            "code": row.code,
        }
    }


def _message(error: Exception, row: ErrorSpec, request_id: str) -> str:
    if isinstance(error, HTTPException):
        return _ROUTING.get(error.status_code, ("", error.detail))[1]
    if row is OUT_OF_MEMORY:
        return "there was not enough memory for this request; try again, or send less audio"
    if row is UNEXPECTED:
        return f"the server failed; its log has the details under request id {request_id}"
    return str(error)


def headers(error: Exception) -> dict[str, str]:
    """Retry-After, Allow, WWW-Authenticate: what belongs to an error."""
    row = spec_of(error)
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


def record_error(scope: Any, error: Exception) -> None:
    """Leave an error's code where the middleware counts it; log one nobody expected."""
    scope.setdefault("state", {})["error_code"] = spec_of(error).code
    if spec_of(error) in (UNEXPECTED, OUT_OF_MEMORY):
        log.error("request %s failed", scope["state"].get("request_id"), exc_info=error)


def translate(error: Exception) -> Exception:
    """The error in our own words, where fastapi has its own."""
    if isinstance(error, RequestValidationError):
        found = [{**one, "loc": one["loc"][1:]} for one in error.errors()]  # without query, body
        return wrong_field(found)
    if isinstance(error, HTTPException) and error.status_code == 400:
        return RequestError(f"the form can't be read: {error.detail}")
    return error


def answer_error(scope: Any, error: Exception) -> Response:
    """The response to an exception."""
    error = translate(error)
    record_error(scope, error)
    found = headers(error)
    if spec_of(error).status == 405:
        found["allow"] = _methods(scope)
    return JSONResponse(
        body(error, scope["state"].get("request_id", "")),
        status_code=spec_of(error).status,
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
