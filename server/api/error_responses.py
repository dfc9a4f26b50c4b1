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

from server.api.strict_model import wrong_field
from server.engine import torch_errors
from server.errors import (
    BodyTimeout,
    BodyTooLarge,
    Busy,
    DecodeFailed,
    Draining,
    EngineStopped,
    InternalSignal,
    KeysFileError,
    Loading,
    LoadingCancelled,
    LogUnavailable,
    QueueFull,
    QueueTimeout,
    RateLimited,
    ReplicaLost,
    RequestTimeout,
    SettingsError,
    TooManyConcurrent,
    TooManyConnections,
    Unauthorized,
    UnknownModel,
    UnknownRecord,
    UnsupportedMediaType,
    WorkerDied,
    WrongDatabaseVersion,
)
from server.telemetry.request_record import request_record
from steering.errors import AudioError, AudioTooLarge, RequestError, UnsupportedAudio

log = logging.getLogger("allears")


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """HTTP status, code and headers of an exception."""

    status: int
    code: str
    type: str = "invalid_request_error"
    param: str | None = None  # where the exception itself names none
    retry_after_seconds: int | None = None  # where the exception itself names none


OUT_OF_MEMORY = ErrorSpec(503, "out_of_memory", "server_error", retry_after_seconds=5)
UNEXPECTED = ErrorSpec(500, "internal_error", "server_error")
_INVALID_AUDIO = ErrorSpec(400, "invalid_audio", param="audio")
TABLE: Mapping[type[Exception], ErrorSpec] = {
    AudioError: _INVALID_AUDIO,
    DecodeFailed: _INVALID_AUDIO,
    AudioTooLarge: ErrorSpec(413, "audio_too_large", param="audio"),
    UnsupportedAudio: ErrorSpec(415, "unsupported_audio", param="audio"),
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
    # caught inside the server, or before it starts: one that gets here is our bug
    InternalSignal: UNEXPECTED,
    LoadingCancelled: UNEXPECTED,
    WorkerDied: UNEXPECTED,
    WrongDatabaseVersion: UNEXPECTED,
    SettingsError: UNEXPECTED,
    KeysFileError: UNEXPECTED,
}
_CLOSING = ("body_timeout", "too_many_connections")  # codes after which a connection is of no use
_ROUTING: Mapping[int, tuple[str, str]] = {
    404: ("not_found", "there is nothing at this path; GET /docs shows what there is"),
    405: ("method_not_allowed", "this path knows other methods; the header Allow names them"),
}


def spec_of(error: Exception) -> ErrorSpec:
    """The specification of an exception's class, or of the closest class it derives from."""
    if isinstance(error, HTTPException):
        code, _ = _ROUTING.get(error.status_code, ("http_error", ""))
        return ErrorSpec(error.status_code, code)
    if torch_errors.is_out_of_memory(error):
        return OUT_OF_MEMORY
    specs = (TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)
    return next(specs, UNEXPECTED)


def body(error: Exception, request_id: str) -> dict[str, Any]:
    """The JSON body of an error; an unexpected one keeps its details for the log."""
    spec = spec_of(error)
    return {
        "error": {
            "message": _message(error, spec, request_id),
            "type": spec.type,
            "param": getattr(error, "param", None) or spec.param,
            "code": spec.code,
        }
    }


def _message(error: Exception, spec: ErrorSpec, request_id: str) -> str:
    if isinstance(error, HTTPException):
        return _ROUTING.get(error.status_code, ("", error.detail))[1]
    if spec is OUT_OF_MEMORY:
        return "there was not enough memory for this request; try again, or send less audio"
    if spec is UNEXPECTED:
        return f"the server failed; its log has the details under request id {request_id}"
    return str(error)


def headers(error: Exception) -> dict[str, str]:
    """The headers of an error: Retry-After, Allow, WWW-Authenticate, Connection."""
    spec = spec_of(error)
    own = error.headers or {} if isinstance(error, HTTPException) else {}
    headers = {name.lower(): value for name, value in own.items()}
    if spec.status == 401:
        headers["www-authenticate"] = "Bearer"
    if spec.code in _CLOSING:
        headers["connection"] = "close"
    wait = error.retry_after_seconds if isinstance(error, Busy) else spec.retry_after_seconds
    if wait is not None:
        headers["retry-after"] = str(wait)
    return headers


def record_error(scope: Any, error: Exception) -> None:
    """Leave an error's code where the middleware counts it; log an unexpected error."""
    record = request_record(scope)
    record.error_code = spec_of(error).code
    if spec_of(error) in (UNEXPECTED, OUT_OF_MEMORY):
        log.error("request %s failed", record.request_id, exc_info=error)


def translate(error: Exception) -> Exception:
    """The error in our own words, where fastapi has its own."""
    if isinstance(error, RequestValidationError):
        details = error.errors()
        return wrong_field([{**field, "loc": field["loc"][1:]} for field in details])  # not "query"
    if isinstance(error, HTTPException) and error.status_code == 400:
        return RequestError(f"the form can't be read: {error.detail}")
    return error


def answer_error(scope: Any, error: Exception) -> Response:
    """The response to an exception."""
    error = translate(error)
    record_error(scope, error)
    spec, answer_headers = spec_of(error), headers(error)
    if spec.status == 405:
        answer_headers["allow"] = _methods(scope)
    return JSONResponse(
        body(error, request_record(scope).request_id),
        status_code=spec.status,
        headers=answer_headers,
    )


def _methods(scope: Any) -> str:
    """The methods of a path, of all its routes: starlette's own header knows the first alone."""
    routes = scope["app"].state.routes
    matching = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    methods = {method for route in matching for method in route.methods}
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


async def on_error(request: Request, error: Exception) -> Response:
    """The handler of every exception of the table."""
    return answer_error(request.scope, error)


HANDLERS: dict[int | type[Exception], Any] = dict.fromkeys((*TABLE, HTTPException), on_error)
