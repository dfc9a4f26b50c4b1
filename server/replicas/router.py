"""The router's side of several replicas: forwards requests, and watches how the replicas are.

What it does not know: models, audio, and how replicas are started. A request takes these steps:

1. `forward_to_replicas` gives it to `Router.forward`, which refuses it while no replica is ready;
2. its body is received whole, within the limit that `limit_body` holds;
3. Ray Serve chooses the replica with the fewest running requests, of two at random; the request
   waits where all are full, no longer than a request may wait anyway;
4. the replica accepts it, then sends what its app sends, as it comes;
5. a replica that ends loses its running requests, which are then answered with 503: none is sent to
   another replica, because a request that ends replicas would end all of them.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from server.api import error_responses, sse
from server.deployment import Deployment
from server.errors import QueueTimeout, ReplicaLost
from server.telemetry.merged_metrics import Samples, counts
from server.telemetry.request_record import request_record
from steering.errors import ModelError

Result = TypeVar("Result")
Message = MutableMapping[str, Any]  # ASGI's
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ACCEPTED = "allears.accepted"  # the type of a replica's first message
SUMMARY = "allears.summary"  # the type of its last: what the router logs and counts
_WATCH_SECONDS = 1.0
_FORWARDED_SCOPE = (  # of ASGI's scope; the rest belongs to the router's process only
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers"),
    *("root_path", "client", "server"),
)


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request on its way to a replica: its part of ASGI's scope, and its body."""

    request_id: str
    loaded_at: int  # seconds since 1970 when the first replica was ready: all report the same
    scope: dict[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """Counts of replicas."""

    ready: int
    wanted: int
    failure: str | None = None  # why none can be started


class Replicas(Protocol):
    """The replicas of a cluster. Methods that are not async block, and run in one thread."""

    def start(self) -> None:
        """Begin to start the replicas; AllEarsError if that is impossible."""

    def stop(self) -> None:
        """Stop all replicas; return when nothing runs any more."""

    def status(self) -> ReplicaStatus:
        """The status now."""

    def send(self, request: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """The messages of one replica; ReplicaLost if it ends, QueueFull where none has room."""

    async def samples(self) -> dict[str, Samples]:
        """The metrics of each replica that answers in time, by its name."""

    async def flush_logs(self) -> None:
        """Return when the log holds the records of all replicas, or that takes too long."""

    async def stop_all(self) -> None:
        """Have all replicas end running answers with EngineStopped."""


@dataclass(slots=True, eq=False)
class ReplicaMetrics:
    """The metrics of all replicas, with the counts of those that ended."""

    replicas: Replicas
    _last: dict[str, Samples] = field(default_factory=dict)  # of each replica that ever answered

    async def samples(self) -> list[Samples]:
        """A page for each replica."""
        now = await self.replicas.samples()
        ended = [counts(page) for name, page in self._last.items() if name not in now]
        self._last.update(now)
        return [*now.values(), *ended]


@dataclass(slots=True, eq=False)
class Router:
    """Forwards requests to replicas. Only the event loop's thread touches it."""

    deployment: Deployment  # of the router: its state is that of the replicas together
    replicas: Replicas
    # Ray ends what it started when the thread that started it ends, so one thread does it all.
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="replicas")
    )

    async def watch(self) -> None:
        """Start the replicas, then watch them until cancelled, or until none can be started."""
        try:
            await self._in_thread(self.replicas.start)
            _keep_signals()
            while self.deployment.state != "draining":
                status = await self._in_thread(self.replicas.status)
                if status.failure is not None and self.deployment.loaded_at == 0:
                    raise ModelError(status.failure)
                self.deployment.replicas_are(status.ready, status.wanted)
                await asyncio.sleep(_WATCH_SECONDS)
        except Exception as error:
            self.deployment.loading_failed(error)

    async def close(self) -> None:
        """Stop the replicas, and the threads and processes of the router."""
        try:
            await self._in_thread(self.replicas.stop)
        finally:
            self._thread.shutdown(wait=False)
            await self.deployment.close()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI app: send a replica's answer."""
        deployment, limit_seconds = self.deployment, self.deployment.settings.queue_timeout_seconds
        if deployment.state != "ready" or deployment.failure is not None:
            deployment.ready()  # raises the reason
        request = _forwarded(scope, deployment.loaded_at, await _read_body(receive))
        if request.scope["method"] == "GET" and "listening-score" in request.scope["path"]:
            await self.replicas.flush_logs()
        async with aclosing(self.replicas.send(request)) as answers:
            try:
                async with asyncio.timeout(limit_seconds):
                    await anext(answers)  # ACCEPTED
            except TimeoutError:
                raise QueueTimeout(
                    f"the request waited {limit_seconds:g} s for a replica"
                ) from None
            await _relay(answers, scope, send)


def _keep_signals() -> None:
    """Restore this process's signal handlers: Ray puts a stack trace before them."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.getsignal(number))


def _forwarded(scope: Scope, loaded_at: int, body: bytes) -> ForwardedRequest:
    fields = {name: scope[name] for name in _FORWARDED_SCOPE}
    return ForwardedRequest(request_record(scope).request_id, loaded_at, fields, body)


async def _read_body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _relay(answers: AsyncIterator[list[Message]], scope: Scope, send: Send) -> None:
    """Send what a replica sends; a replica lost amid a stream of events ends it with an error."""
    streaming = ended = False
    try:
        async for messages in answers:
            for message in messages:
                if message["type"] == SUMMARY:
                    request_record(scope).add_summary(message["summary"])
                    continue
                if message["type"] == "http.response.start":
                    kind = dict(message["headers"]).get(b"content-type", b"")
                    streaming = kind.startswith(sse.MEDIA_TYPE.encode())
                await send(message)
                ended = message["type"] == "http.response.body" and not message.get("more_body")
    except ReplicaLost as error:
        if ended:  # all but the SUMMARY has come
            return
        if not streaming:
            raise
        error_responses.record_error(scope, error)
        body = sse.event(error_responses.body(error, request_record(scope).request_id))
        await send({"type": "http.response.body", "body": body})
