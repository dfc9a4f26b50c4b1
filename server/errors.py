"""Every exception of the server. It imports nothing but steering/errors.py: the ground floor.

    Exception
    ├── Busy                    the server can't take or finish the request now; says when to retry
    │   ├── QueueFull, QueueTimeout, RequestTimeout, EngineStopped
    │   ├── Loading, Draining, ReplicaLost, TooManyConnections
    │   └── RateLimited, TooManyConcurrent
    ├── Unauthorized, BodyTooLarge, BodyTimeout, UnsupportedMediaType
    ├── UnknownModel, UnknownRecord, LogUnavailable
    └── InternalSignal          caught inside the server: LoadingCancelled, WorkerDied,
                                WrongDatabaseVersion

    AllEarsError (steering/errors.py)
    ├── SettingsError, KeysFileError    stop the start
    └── AudioError ── DecodeFailed      400

api/error_responses.py has the HTTP status of each.
"""

from __future__ import annotations

from steering.errors import AllEarsError, AudioError


class Busy(Exception):
    """The server can't take the request now; `retry_after_seconds` says when to try again."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Busy):
    """The queue holds as many requests as are allowed."""


class QueueTimeout(Busy):
    """The request waited longer than allowed."""


class RequestTimeout(Busy):
    """Answering took longer than allowed."""


class EngineStopped(Busy):
    """The torch thread has ended; this server answers nothing any more."""


class Loading(Busy):
    """The model is not loaded yet."""


class Draining(Busy):
    """The server finishes its running requests and takes no new ones."""


class ReplicaLost(Busy):
    """The replica that had the request in hand has ended."""


class TooManyConnections(Busy):
    """More connections are open than allowed."""


class RateLimited(Busy):
    """The key has sent more requests than it may in a minute."""


class TooManyConcurrent(Busy):
    """The key has as many requests running as it may."""


class Unauthorized(Exception):
    """The API key is missing or wrong."""


class BodyTooLarge(Exception):
    """The request's body is over the limit."""


class BodyTimeout(Exception):
    """The request's body did not arrive in time."""


class UnsupportedMediaType(Exception):
    """The body is neither JSON nor a form."""


class UnknownModel(Exception):
    """The request names a model that is not served here."""


class UnknownRecord(Exception):
    """The listening log holds no record of that id."""


class LogUnavailable(Exception):
    """The listening log's database can't be read now."""


class InternalSignal(Exception):
    """Control flow inside the server. One that reaches a client is our bug, answered with 500."""


class LoadingCancelled(InternalSignal):
    """Ends loading in its thread, because the server stops."""


class WorkerDied(InternalSignal):
    """A decode process ended before it replied, or was ended for an invalid reply."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class WrongDatabaseVersion(InternalSignal):
    """The database holds tables of another version of this program."""


class DecodeFailed(AudioError):
    """Decoding took too long or too much memory, or crashed; `result` says which."""

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result


class SettingsError(AllEarsError):
    """Settings are wrong; one line for each."""


class KeysFileError(AllEarsError):
    """The file of keys can't be used; the message shows none of them."""
