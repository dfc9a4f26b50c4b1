"""Several replicas of the app, each with a model of its own, run by Ray Serve.

`allears serve --replicas N` makes `LocalCluster`: this process is the front, and Ray's processes
are on this host only, unless RAY_ADDRESS names a cluster that runs. On KubeRay `build` is what a
RayService imports: there the front is a deployment of its own behind Ray's HTTP proxy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

# Read by Ray when it is imported, and by its processes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # a replica's decoder is exec'ed; no notes
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # Serve's own log stays in Ray's session
if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:  # not in Ray's own processes
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback, on Linux as well
    os.environ.setdefault("RAY_worker_niceness", "0")  # as nice as this process, not 15
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # only who knows it may speak to a process
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from server.api import error_responses
from server.app import create_replica
from server.errors import QueueFull, ReplicaLost
from server.listening_log.writer import DatabaseLog
from server.replicas.front import create_front
from server.replicas.router import (
    ACCEPTED,
    SUMMARY,
    ForwardedRequest,
    Message,
    Receive,
    ReplicaStatus,
    Scope,
    Send,
)
from server.settings import Settings, read_settings
from server.telemetry import logs
from server.telemetry import metrics as counters
from server.telemetry.merged_metrics import Samples
from server.telemetry.request_record import request_record

log = logging.getLogger("allears")

APP = "allears"
FRONT = "Front"
REPLICA = "Replica"
_MORE_REQUESTS = 16  # that a replica takes beside questions: for the log, the models
_HEALTH_SECONDS = 1.0
_ALL_SECONDS = 3.0  # for something of all replicas
_SETTLE_SECONDS = 1.0
_OBJECT_BYTES = 500_000_000  # shared memory for bodies on their way


class Replica:
    """One copy of the app and its model. Ray Serve calls it, always in one event loop."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Return when the model has answered a question; raises what went wrong."""
        logs.set_up(settings.log_format)
        logs.take_over()
        self._app = create_replica(settings)
        self._deployment = self._app.state.deployment
        self._life = AsyncExitStack()
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
        while self._deployment.state == "loading" and self._deployment.failure is None:
            await asyncio.sleep(0.02)
        if self._deployment.failure is not None:
            raise self._deployment.failure

    async def check_health(self) -> None:
        """Raises where this replica can answer no more; Serve then makes another."""
        self._deployment.ready()

    async def samples(self) -> tuple[str, Samples]:
        """The name of this replica, and its metrics."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, counters.samples(self._deployment.metrics)

    async def settle(self) -> None:
        """Return when the log's database has all records of this replica, or is late."""
        if isinstance(records := self._deployment.records, DatabaseLog):
            deadline = time.monotonic() + _SETTLE_SECONDS
            while records.waiting and not records.away and time.monotonic() < deadline:
                await asyncio.sleep(0.01)

    async def halt(self) -> None:
        """End what is running with Stopped; nothing is answered any more."""
        if self._deployment.engine is not None:
            self._deployment.engine.stop()

    async def answer(self, asked: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """TAKEN, what the app sends as it comes, and NOTE. Closing it ends the request."""
        yield [{"type": ACCEPTED}]
        self._deployment.loaded_at = asked.since
        scope = {**asked.scope, "asgi": {"version": "3.0"}, "extensions": {}}
        request_record(scope).request_id = asked.request_id
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        work = asyncio.create_task(self._run(scope, asked.body, sent))
        try:
            ended = False
            while not ended:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                ended = messages[-1] is None
                yield [message for message in messages if message is not None]
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _run(
        self, scope: dict[str, Any], body: bytes, sent: asyncio.Queue[Message | None]
    ) -> None:
        """Put what the app sends to a request into `sent`, then the NOTE, then None."""
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        started = False

        async def receive() -> Message:
            if not incoming:
                await asyncio.Event().wait()  # who hangs up ends this task
            return incoming.pop()

        async def send(message: Message) -> None:
            nonlocal started
            started = True
            await sent.put(message)

        try:
            await self._app(scope, receive, send)
        except Exception as error:
            response = error_responses.answer_error(scope, error)
            if not started:
                await response(scope, receive, send)
        finally:
            with_text = self._deployment.settings.log_text
            summary = request_record(scope).summarize(with_text=with_text)
            sent.put_nowait({"type": SUMMARY, "summary": summary})
            sent.put_nowait(None)

    async def __del__(self) -> None:
        await self._life.aclose()


class ServeReplicas:
    """The replicas that a handle of Ray Serve reaches. `start` gives the handle."""

    def __init__(
        self, start: Callable[[], DeploymentHandle[Any]], stop: Callable[[], None]
    ) -> None:
        self._start = start
        self.stop = stop
        self._handle: DeploymentHandle[Any] | None = None

    def start(self) -> None:
        """Have the replicas started, which goes on behind."""
        self._handle = self._start()

    def standing(self) -> ReplicaStatus:
        """How Serve says the replicas are."""
        found = serve.status().applications.get(APP)
        if found is None or REPLICA not in found.deployments:
            return ReplicaStatus(0, 0)
        states = found.deployments[REPLICA].replica_states
        running = sum(n for state, n in states.items() if state == "RUNNING")
        wanted = sum(n for state, n in states.items() if state != "STOPPING")
        failed = found.status == ApplicationStatus.DEPLOY_FAILED
        reason = found.deployments[REPLICA].message.strip().splitlines()[-1:]  # of a traceback
        return ReplicaStatus(running, wanted, " ".join(reason) if failed else None)

    async def ask(self, asked: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """What one replica answers; raises ReplicaLost, or QueueFull where none takes it."""
        assert self._handle is not None, "asked before the start"
        answers: Any = self._handle.options(stream=True, method_name="answer").remote(asked)
        try:
            async for messages in answers:
                yield messages
        except (RayActorError, DeploymentUnavailableError):
            raise ReplicaLost(
                "the replica that had this request has ended; send it again"
            ) from None
        except BackPressureError as error:
            waiting = error.args[0]
            raise QueueFull(f"{waiting} requests wait for a replica, as many as may wait") from None
        except (asyncio.CancelledError, GeneratorExit):
            answers.cancel()
            raise

    async def samples(self) -> dict[str, Samples]:
        """The metrics of each replica, by its name; of those that answer in time."""
        return dict(await self._of_all("samples"))

    async def settle(self) -> None:
        """Return when the log holds what all replicas heard, or that takes too long."""
        await self._of_all("settle")

    async def halt(self) -> None:
        """Have all replicas end what they run with Stopped."""
        if self._handle is not None:
            await self._of_all("halt")

    async def _of_all(self, method: str) -> list[Any]:
        """What a method of each replica gives; nothing of one that fails, or if one is too late."""
        assert self._handle is not None, "asked before the start"
        try:
            found = await self._handle.broadcast(method).results_async(
                timeout_s=_ALL_SECONDS, return_exceptions=True
            )
        except TimeoutError:
            log.warning("not all replicas answer within %g s", _ALL_SECONDS)
            return []
        return [one for one in found if not isinstance(one, BaseException)]


def create_local_router(settings: Settings) -> Any:
    """The app of a front in this process, which starts Ray and the replicas and stops them."""
    return create_front(settings, ServeReplicas(lambda: _start(settings), _stop))


def build(args: dict[str, Any]) -> serve.Application:
    """The application that a RayService imports: the front and, behind it, the replicas.

    Settings are `args`, by their names, and the environment of Ray's pods. Raises SettingsError.
    """
    settings = read_settings(os.environ, args)
    found = ServeReplicas(lambda: serve.get_deployment_handle(REPLICA, APP), lambda: None)
    front: Any = serve.ingress(lambda: _with_one_id(create_front(settings, found)))
    deployment: Any = serve.deployment(
        front(),
        name=FRONT,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=10_000,  # what they wait for is bounded by the replicas
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds + 5,
    )
    return cast(serve.Application, deployment.bind(replicas(settings)))


def _with_one_id(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Any:
    """The app without x-request-id in its answers: Serve's proxy adds the same one."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message["headers"] if one[0] != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, dressed)

    return call


def _start(settings: Settings) -> DeploymentHandle[Any]:
    """Start Ray, or join the cluster of RAY_ADDRESS, and have the replicas started."""
    there = os.environ.get("RAY_ADDRESS")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    if there:
        ray.init(there, logging_level=logging.ERROR)
    else:
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, _most(settings)),
            object_store_memory=_OBJECT_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    serve.start(proxy_location="Disabled", logging_config=quiet)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    target = serve.RunTarget(replicas(settings), name=APP, route_prefix=None, logging_config=quiet)
    (handle,) = serve.run_many(
        [target],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    return handle


def _stop() -> None:
    """Stop what `_start` began: Ray itself, or on a cluster that was there only our application."""
    if ray.is_initialized():
        if "RAY_ADDRESS" in os.environ:
            serve.delete(APP)
        ray.shutdown()


def replicas(settings: Settings) -> serve.Application:
    """The application whose deployment is the replicas. Needs Ray to run."""
    most, has_gpu = _most(settings), ray.cluster_resources().get("GPU", 0) > 0
    device = "cuda" if settings.device == "auto" and has_gpu else settings.device
    cores = 1 if device == "cuda" else max(1, (os.cpu_count() or 1) // most)
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if most > settings.replicas:
        size = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": most,
                "target_ongoing_requests": settings.max_batch_rows,
                "upscale_delay_s": 5,
                "downscale_delay_s": 300,
            }
        }
    deployment: Any = serve.deployment(
        Replica,
        name=REPLICA,
        ray_actor_options={"num_cpus": cores, "num_gpus": int(device == "cuda")},
        max_ongoing_requests=settings.max_batch_rows
        + settings.queue_limit_requests
        + _MORE_REQUESTS,
        max_queued_requests=settings.queue_limit_requests,
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,
        **size,
    )
    own = settings.model_copy(update={"api_keys": (), "device": device})
    return cast(serve.Application, deployment.bind(own))


def _most(settings: Settings) -> int:
    return max(settings.replicas, settings.max_replicas or 0)
