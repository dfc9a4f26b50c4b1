"""Several replicas of the app, each with a model of its own, run by Ray Serve.

`allears serve --replicas N` calls `create_local_router`: this process is the router, and Ray's
processes are on this host only, unless RAY_ADDRESS names a cluster that runs. A RayService of
KubeRay imports `build`: there the router is a deployment of its own behind Ray's HTTP proxy.
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
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no late call starts a Ray of its own
if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:  # not in Ray's own processes
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback, on Linux as well
    os.environ.setdefault("RAY_worker_niceness", "0")  # as nice as this process, not 15
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # only who knows it may speak to a process
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray
from ray import serve
from ray.exceptions import (
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
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
ROUTER = "Front"  # as Ray's dashboard shows it
REPLICA = "Replica"
_MORE_REQUESTS = 16  # of a replica beside questions: for the log, the models
_HEALTH_SECONDS = 1.0
_BROADCAST_SECONDS = 3.0  # for a call of all replicas
_FLUSH_SECONDS = 1.0
_OBJECT_BYTES = 500_000_000  # shared memory for bodies on their way


class Replica:
    """One copy of the app and its model. Ray Serve calls it, always in one event loop."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Return when the model has answered a question; raise why loading failed."""
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
        """Raise if this replica can answer no more; Serve then makes another."""
        self._deployment.ready()

    async def samples(self) -> tuple[str, Samples]:
        """The name of this replica, and its metrics."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, counters.samples(self._deployment.metrics)

    async def flush_logs(self) -> None:
        """Return when the log's database has all records of this replica, or is late."""
        if isinstance(records := self._deployment.records, DatabaseLog):
            deadline = time.monotonic() + _FLUSH_SECONDS
            while records.waiting and not records.unavailable and time.monotonic() < deadline:
                await asyncio.sleep(0.01)

    async def stop_all(self) -> None:
        """End running answers with EngineStopped; nothing is answered any more."""
        if self._deployment.engine is not None:
            self._deployment.engine.stop()

    async def answer(self, request: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """ACCEPTED, the app's messages as they come, and SUMMARY. Closing it ends the request."""
        yield [{"type": ACCEPTED}]
        self._deployment.report_loaded_at(request.loaded_at)
        scope = {**request.scope, "asgi": {"version": "3.0"}, "extensions": {}}
        request_record(scope).request_id = request.request_id
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        work = asyncio.create_task(self._run(scope, request.body, sent))
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
        """Put the app's messages into `sent`, then the SUMMARY, then None."""
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        started = False

        async def receive() -> Message:
            if not incoming:
                await asyncio.Event().wait()  # a client that hangs up ends this task
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
    """Replicas behind a handle of Ray Serve, which `start` returns."""

    def __init__(
        self, start: Callable[[], DeploymentHandle[Any]], stop: Callable[[], None]
    ) -> None:
        self._start = start
        self.stop = stop
        self._handle: DeploymentHandle[Any] | None = None

    def start(self) -> None:
        """Begin to start the replicas."""
        self._handle = self._start()

    def status(self) -> ReplicaStatus:
        """The status in Serve; none is ready while it can't be asked."""
        if not ray.is_initialized():  # Serve would start one
            return ReplicaStatus(0, 0)
        try:
            application = serve.status().applications.get(APP)
        except (RayError, RayServeException) as error:  # its controller starts again
            log.warning("the replicas' status is not known: %s", type(error).__name__)
            return ReplicaStatus(0, 0)
        if application is None or REPLICA not in application.deployments:
            return ReplicaStatus(0, 0)
        states = application.deployments[REPLICA].replica_states
        running = sum(count for state, count in states.items() if state == "RUNNING")
        wanted = sum(count for state, count in states.items() if state != "STOPPING")
        failed = application.status == ApplicationStatus.DEPLOY_FAILED
        message = application.deployments[REPLICA].message
        reason = message.strip().splitlines()[-1:]  # of a traceback
        return ReplicaStatus(running, wanted, " ".join(reason) if failed else None)

    async def send(self, request: ForwardedRequest) -> AsyncGenerator[list[Message], None]:
        """The messages of one replica; ReplicaLost if it ends, QueueFull where none has room."""
        assert self._handle is not None, "asked before the start"
        answers: Any = self._handle.options(stream=True, method_name="answer").remote(request)
        try:
            async for messages in answers:
                yield messages
        except BackPressureError as error:
            waiting = error.args[0]
            raise QueueFull(f"{waiting} requests wait for a replica, as many as may wait") from None
        except (asyncio.CancelledError, GeneratorExit):
            answers.cancel()
            raise
        except (RayError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            if not _is_loss(error):
                raise
            raise ReplicaLost(
                "the replica that had this request has ended; send it again"
            ) from None

    async def samples(self) -> dict[str, Samples]:
        """The metrics of each replica that answers in time, by its name."""
        return dict(await self._broadcast("samples"))

    async def flush_logs(self) -> None:
        """Return when the log holds the records of all replicas, or that takes too long."""
        await self._broadcast("flush_logs")

    async def stop_all(self) -> None:
        """Have all replicas end running answers with EngineStopped."""
        if self._handle is not None:
            await self._broadcast("stop_all")

    async def _broadcast(self, method: str) -> list[Any]:
        """The results of a method of each replica that succeeds.

        Empty if one is too late, or Serve knows none that lives.
        """
        assert self._handle is not None, "asked before the start"
        try:
            results = await self._handle.broadcast(method).results_async(
                timeout_s=_BROADCAST_SECONDS, return_exceptions=True
            )
        except TimeoutError:
            log.warning("not all replicas answer within %g s", _BROADCAST_SECONDS)
            return []
        except (RayError, RayServeException) as error:
            log.warning("no replica can be asked: %s", type(error).__name__)
            return []
        return [result for result in results if not isinstance(result, BaseException)]


def _is_loss(error: Exception) -> bool:
    """Whether an error of Ray means that the replica, its node or what it sent is gone.

    What a replica itself raised, and a request that was cancelled, are no loss.
    """
    if isinstance(error, (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError)):
        return True
    if isinstance(error, (RayTaskError, TaskCancelledError)):
        return False
    log.warning("a request lost its replica: %s: %s", type(error).__name__, error)
    return True


def create_local_router(settings: Settings, *, crowded: Callable[[], bool]) -> Any:
    """The app of a router in this process, which starts and stops Ray and the replicas."""
    replicas = ServeReplicas(lambda: _start(settings), _stop)
    return create_front(settings, replicas, crowded=crowded)


def build(args: dict[str, Any]) -> serve.Application:
    """The application that a RayService imports: the router and, behind it, the replicas.

    Settings are `args`, by their names, and the environment of Ray's pods. Raises SettingsError.
    """
    settings = read_settings(os.environ, args)
    behind = ServeReplicas(lambda: serve.get_deployment_handle(REPLICA, APP), lambda: None)
    front: Any = serve.ingress(lambda: _without_request_id(create_front(settings, behind)))
    deployment: Any = serve.deployment(
        front(),
        name=ROUTER,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=10_000,  # the replicas bound them
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds + 5,
    )
    return cast(serve.Application, deployment.bind(replica_application(settings)))


def _without_request_id(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Any:
    """The app without x-request-id in its answers: Serve's proxy adds the same one."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_without_id)

    return call


def _start(settings: Settings) -> DeploymentHandle[Any]:
    """Start Ray, or join the cluster of RAY_ADDRESS, and begin to start the replicas."""
    cluster = os.environ.get("RAY_ADDRESS")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    if cluster:
        ray.init(cluster, logging_level=logging.ERROR)
    else:
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, _max_replicas(settings)),
            object_store_memory=_OBJECT_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    serve.start(proxy_location="Disabled", logging_config=quiet)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    target = serve.RunTarget(
        replica_application(settings), name=APP, route_prefix=None, logging_config=quiet
    )
    (handle,) = serve.run_many(
        [target],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    return handle


def _stop() -> None:
    """Stop Ray, or only our application on a cluster that ran before."""
    if ray.is_initialized():
        logging.getLogger("asyncio").addFilter(_not_of_late_polls)
        if "RAY_ADDRESS" in os.environ:
            serve.delete(APP)
        ray.shutdown()


def _not_of_late_polls(record: logging.LogRecord) -> bool:
    """Drop what Serve's own polling raises when an update reaches it after the end of Ray."""
    return record.exc_info is None or not isinstance(record.exc_info[1], RaySystemError)


def replica_application(settings: Settings) -> serve.Application:
    """The application whose deployment is the replicas. Needs Ray to run."""
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    device = "cuda" if settings.device == "auto" and has_gpu else settings.device
    cores = max(1, (os.cpu_count() or 1) // _max_replicas(settings))
    deployment: Any = serve.deployment(
        Replica,
        name=REPLICA,
        ray_actor_options={
            "num_cpus": 1 if device == "cuda" else cores,
            "num_gpus": int(device == "cuda"),
        },
        max_ongoing_requests=settings.max_batch_rows
        + settings.queue_limit_requests
        + _MORE_REQUESTS,
        max_queued_requests=settings.queue_limit_requests,
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,
        **_scaling(settings),
    )
    own = settings.model_copy(update={"api_keys": (), "device": device})
    return cast(serve.Application, deployment.bind(own))


def _scaling(settings: Settings) -> dict[str, Any]:
    if _max_replicas(settings) == settings.replicas:
        return {"num_replicas": settings.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": settings.replicas,
            "max_replicas": _max_replicas(settings),
            "target_ongoing_requests": settings.max_batch_rows,
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,
        }
    }


def _max_replicas(settings: Settings) -> int:
    return max(settings.replicas, settings.max_replicas or 0)
