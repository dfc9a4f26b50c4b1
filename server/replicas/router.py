"""The front's side of several replicas: hands requests on, and tells how the replicas are.

What it does not know: models, audio, and how replicas are started. A request takes these steps:

1. `middleware.forwarded` gives it to `Fleet.forward`, which refuses it while no replica is ready;
2. its body is received whole, within the limit that `middleware.bounded` holds;
3. Ray Serve chooses the replica with the fewest requests in hand, of two at random; it waits where
   all have as many as they take, no longer than a request may wait anyway;
4. the replica says that it took it, then sends what its app sends, as it comes;
5. a replica that ends loses what it has in hand, which is then answered with 503: it is not asked
   of another one, because a request that ends replicas would end all of them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from server.api import error_responses, sse
from server.deployment import Deployment
from server.errors import QueueTimeout, ReplicaLost
from server.telemetry import metrics as counters
from server.telemetry.merged_metrics import Samples, counts
from server.telemetry.request_record import request_record
from steering.errors import AllEarsError, ModelError

log = logging.getLogger("allears")

Result = TypeVar("Result")
Message = MutableMapping[str, Any]  # ASGI's
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ACCEPTED = "allears.taken"  # the type of a replica's first message
SUMMARY = "allears.note"  # the type of its last: what the front logs and counts
_WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request as a replica gets it: what ASGI's scope says of it, and its body."""

    request_id: str
    since: int  # seconds since 1970 when the first replica was ready: all say the same
    scope: dict[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """How the replicas are."""

    ready: int
    wanted: int
    failure: str | None = None  # why none can be started


class Replicas(Protocol):
    """What a cluster gives a front. What is not async blocks, and is called in one thread."""

    def start(self) -> None:
        """Have the replicas started, which goes on behind; AllEarsError if that can't be."""

    def stop(self) -> None:
        """Return when nothing runs any more."""

    def standing(self) -> ReplicaStatus:
        """How the replicas are now."""

    def ask(self, asked: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """What one replica answers; raises ReplicaLost, or QueueFull where none takes it."""

    async def samples(self) -> dict[str, Samples]:
        """The metrics of each replica, by its name; of those that answer in time."""

    async def settle(self) -> None:
        """Return when the log holds what all replicas heard, or that takes too long."""

    async def halt(self) -> None:
        """Have all replicas end what they run with Stopped."""


@dataclass(slots=True, eq=False)
class Router:
    """What a front holds of its replicas. Only the event loop's thread touches it."""

    deployment: Deployment  # of the front: its state is that of the replicas together
    replicas: Replicas
    _seen: dict[str, Samples] = field(default_factory=dict)  # the last metrics of each replica
    # Ray ends what it started when the thread that started it ends, so one thread does it all.
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="replicas")
    )

    async def load(self) -> None:
        """Start the replicas, then watch them until cancelled; `failure` says what went wrong."""
        here = self.deployment
        here.progress.stage = "the replicas are still loading"
        here.replicas, here.stop_replicas = self.samples, self.replicas.halt
        try:
            await self._call(self.replicas.start)
            _keep_signals()
            while here.state != "draining":
                self._note(await self._call(self.replicas.standing))
                await asyncio.sleep(_WATCH_SECONDS)
        except Exception as error:
            bug = None if isinstance(error, AllEarsError) else error
            log.error("loading failed: %s", error, exc_info=bug)
            here.failure = error
            here.failed.set()

    async def close(self) -> None:
        """Stop the replicas, and what the front has of its own."""
        await self._call(self.replicas.stop)
        self._thread.shutdown(wait=False)
        await self.deployment.close()

    async def _call(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _note(self, standing: ReplicaStatus) -> None:
        """Open where a replica is ready, close where none is; ModelError if none ever will be."""
        here, many = self.deployment, f"{standing.ready} of {standing.wanted} replicas are ready"
        if standing.failure is not None and here.loaded_at == 0:
            raise ModelError(standing.failure)
        if many != here.progress.stage and standing.wanted:
            log.info("%s", many)
        here.progress.stage = many
        counters.set_replicas(here.metrics, standing.ready, standing.wanted)
        if here.state != "draining":
            here.state = "ready" if standing.ready else "loading"
            here.loaded_at = here.loaded_at or int(time.time()) * bool(standing.ready)

    async def samples(self) -> list[Samples]:
        """The metrics of all replicas, and what those that ended had counted."""
        now = await self.replicas.samples() if self.deployment.loaded_at else {}
        gone = [counts(page) for name, page in self._seen.items() if name not in now]
        self._seen.update(now)
        return [*now.values(), *gone]

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI app: what a replica answers."""
        here = self.deployment
        if here.state != "ready" or here.failure is not None:
            here.ready()  # raises what says why not
        asked = _forwardable(scope, here.loaded_at, await _read_body(receive))
        if asked.scope["method"] == "GET" and "listening-score" in asked.scope["path"]:
            await self.replicas.settle()
        async with aclosing(self.replicas.ask(asked)) as answers:
            try:
                async with asyncio.timeout(here.settings.queue_timeout_seconds):
                    await anext(answers)  # TAKEN
            except TimeoutError:
                wait = f"{here.settings.queue_timeout_seconds:g} s"
                raise QueueTimeout(f"the request waited {wait} for a replica") from None
            await _relay(answers, scope, send)


def _keep_signals() -> None:
    """Have this process's signals handled as they were: Ray puts a stack trace before that."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.getsignal(number))


def _forwardable(scope: Scope, since: int, body: bytes) -> ForwardedRequest:
    """A request without what belongs to the front's process only."""
    kept = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string")
    said = {name: scope[name] for name in (*kept, "headers", "root_path", "client", "server")}
    return ForwardedRequest(request_record(scope).request_id, since, said, body)


async def _read_body(receive: Receive) -> bytes:
    """The body."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _relay(answers: AsyncIterator[list[Message]], scope: Scope, send: Send) -> None:
    """Send what a replica sends. One that is lost amid a stream of events ends it with an error."""
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
        if ended:  # all but the NOTE has come
            return
        if not streaming:
            raise
        error_responses.record_error(scope, error)
        body = sse.event(error_responses.body(error, request_record(scope).request_id))
        await send({"type": "http.response.body", "body": body})
