"""The errors of the client, one tree.

AllEarsClientError
├── NoServer              nothing answers at the URL, or not in time
│   └── Interrupted       a stream broke, or is none of allears'
├── UnreadableAudio       the sound can't be read here: no file, not samples
├── Unsendable            an option, the question or the key holds what can't be sent
└── AllEarsHTTPError      the server refused; status, code, param and message are its own
    ├── InvalidRequest    a field is wrong (422)
    ├── InvalidAudio      the audio can't be decoded (400)
    ├── Unauthorized      the key is missing or wrong (401)
    ├── NotFound          no such path, model or record (404)
    ├── TooLarge          more bytes or seconds than allowed (413)
    ├── Busy              come back after retry_after_seconds (429, 503)
    └── ServerFailed      the server's own fault (500)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx


class AllEarsClientError(Exception):
    """The root: catch it to catch all of them."""


class NoServer(AllEarsClientError):
    """Nothing answers at the URL, or not in time."""


class Interrupted(NoServer):
    """A stream broke before the answer was whole, or is none of allears'."""


class UnreadableAudio(AllEarsClientError):
    """The sound can't be read."""


class Unsendable(AllEarsClientError):
    """An option, the question or the key holds what can't be sent."""


class AllEarsHTTPError(AllEarsClientError):
    """The server refused; `status`, `code`, `param` and `message` are the server's."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}" if code else f"{status}: {message}")
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id


class InvalidRequest(AllEarsHTTPError):
    """A field is wrong; `param` names it."""


class InvalidAudio(AllEarsHTTPError):
    """The audio can't be decoded."""


class Unauthorized(AllEarsHTTPError):
    """The key is missing or wrong."""


class NotFound(AllEarsHTTPError):
    """There is no such path, model or record."""


class TooLarge(AllEarsHTTPError):
    """The audio has more bytes or seconds than the server allows."""


class Busy(AllEarsHTTPError):
    """The server can't take the question now; `retry_after_seconds` says when to come back."""


class ServerFailed(AllEarsHTTPError):
    """The server's own fault; its log has the details under `request_id`."""


_BY_STATUS: Mapping[int, type[AllEarsHTTPError]] = {
    400: InvalidAudio,
    401: Unauthorized,
    404: NotFound,
    413: TooLarge,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Busy,
    503: Busy,
}
_BY_CODE: Mapping[str, type[AllEarsHTTPError]] = {  # inside a stream there is no status
    "out_of_memory": Busy,
    "stopped": Busy,
    "draining": Busy,
    "replica_lost": Busy,
    "queue_timeout": Busy,
    "invalid_request": InvalidRequest,
}

NOT_OURS = (KeyError, TypeError, AttributeError, ValueError)  # of JSON that is no answer of allears


def refusal(response: httpx.Response, body: Any) -> AllEarsHTTPError:
    """The error of a response that refuses, or of an event that ends a stream."""
    error = body.get("error") if isinstance(body, dict) else None
    details: Mapping[str, Any] = error if isinstance(error, dict) else {}
    status, code = response.status_code, details.get("code")
    fault = ServerFailed if status >= 500 or response.is_success else AllEarsHTTPError
    kind = _BY_CODE.get(str(code), fault) if response.is_success else _BY_STATUS.get(status, fault)
    wait = response.headers.get("retry-after", "")
    return kind(
        str(details.get("message") or response.reason_phrase),
        status=status,
        code=code,
        param=details.get("param"),
        retry_after_seconds=float(wait) if wait.isdecimal() else None,
        request_id=response.headers.get("x-request-id"),
    )


def no_server(url: str, error: Exception) -> NoServer:
    """The NoServer of a connection error of httpx, with a hint what to do."""
    if isinstance(error, httpx.ConnectError):
        return NoServer(
            f"nothing answers at {url} ({error}); start a server with `allears serve`, or give its"
            " address"
        )
    if isinstance(error, httpx.TimeoutException):
        return NoServer(f"{url} did not answer in time; it may be busy: try later")
    return NoServer(f"the connection to {url} failed: {error}")
