"""What a router answers where Ray gives errors in place of replicas; Ray itself does not run."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import httpx
import pytest
from pydantic import SecretStr

from server.errors import ReplicaLost
from server.replicas.front import create_front
from server.replicas.router import ACCEPTED, ForwardedRequest, Message, Router
from server.settings import NO_LOG, Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, when imported

REQUEST = ForwardedRequest("mine", 1, {}, b"")
STARTED: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}


@pytest.fixture(scope="module")
def ray_serve() -> Iterator[Any]:
    """The module; the variables that it sets when it is imported are away again afterwards."""
    with mock.patch.dict(os.environ):
        from server.replicas import ray_serve

        yield ray_serve


def losses() -> dict[str, Exception]:
    """Errors of Ray that say that a replica is gone."""
    from ray import exceptions
    from ray.serve._private.common import DeploymentID
    from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

    return {
        "actor": exceptions.RayActorError(),
        "deployment": DeploymentUnavailableError(DeploymentID("Replica", "allears")),
        "replica": ReplicaUnavailableError("one"),
        "memory": exceptions.OutOfMemoryError("the node runs low"),
        "object": exceptions.ObjectLostError("00ff", None, ""),
        "node": exceptions.NodeDiedError("it ended"),
        "worker": exceptions.WorkerCrashedError(),
        "system": exceptions.RaySystemError("it broke"),
    }


LOSSES = ["actor", "deployment", "replica", "memory", "object", "node", "worker", "system"]


class Handle:
    """A deployment's handle: each call of it sends some messages, then ends with an error."""

    def __init__(self, error: BaseException, *sent: Message) -> None:
        self._error, self._sent = error, sent

    def broadcast(self, method: str) -> Handle:
        return self

    async def results_async(self, **limits: Any) -> list[Any]:
        raise self._error

    def options(self, **options: Any) -> Handle:
        return self

    async def remote(self, request: ForwardedRequest) -> AsyncIterator[list[Message]]:
        for message in self._sent:
            yield [message]
        raise self._error


def replicas_of(ray_serve: Any, error: BaseException, *sent: Message) -> Any:
    replicas = ray_serve.ServeReplicas(lambda: Handle(error, *sent), lambda: None)
    replicas.start()
    return replicas


def ask(replicas: Any, method: str, path: str) -> httpx.Response:
    """The answer of a router that was ready before."""

    async def call() -> httpx.Response:
        app = create_front(Settings(listening_log_url=SecretStr(NO_LOG)), replicas)
        app.state.deployment.replicas_are(1, 1)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(call())


@pytest.mark.parametrize("kind", LOSSES)
def test_where_no_replica_lives_the_router_has_its_own_metrics(ray_serve: Any, kind: str) -> None:
    replicas = replicas_of(ray_serve, losses()[kind])
    page = ask(replicas, "GET", "/metrics")
    assert page.status_code == 200
    assert "allears_replicas_ready 1.0" in page.text
    asyncio.run(replicas.flush_logs())
    asyncio.run(replicas.stop_all())


@pytest.mark.parametrize("kind", LOSSES)
def test_a_lost_replica_is_503_whatever_ray_says(ray_serve: Any, kind: str) -> None:
    for sent in ([], [{"type": ACCEPTED}]):
        replicas = replicas_of(ray_serve, losses()[kind], *sent)
        for method, path in (("POST", "/v1/audio-chat"), ("GET", "/v1/listening-score")):
            answer = ask(replicas, method, path)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "replica_lost"
            assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("kind", LOSSES)
def test_a_stream_ends_with_the_error(ray_serve: Any, kind: str) -> None:
    piece = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
    replicas = replicas_of(ray_serve, losses()[kind], {"type": ACCEPTED}, STARTED, piece)
    answer = ask(replicas, "POST", "/v1/audio-chat")
    first, last = [line for line in answer.text.splitlines() if line]
    assert first == "data: {}"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"


def test_what_replicas_raise_and_what_was_cancelled_is_no_loss(ray_serve: Any) -> None:
    from ray.exceptions import RayTaskError, TaskCancelledError
    from ray.serve.exceptions import RequestCancelledError

    ours = RayTaskError("answer", "a traceback", ValueError("ours"), "a replica", 1, "127.0.0.1")
    for error in (ours, ours.as_instanceof_cause(), TaskCancelledError(), RequestCancelledError()):

        async def read(replicas: Any) -> None:
            async for _ in replicas.send(REQUEST):
                pass

        with pytest.raises(type(error)) as raised:
            asyncio.run(read(replicas_of(ray_serve, error)))
        assert raised.value is error and not isinstance(error, ReplicaLost)


def test_a_router_closes_although_ray_can_not_be_stopped() -> None:
    closed = []

    def stop() -> None:
        raise ConnectionError("the cluster is gone")

    async def close() -> None:
        closed.append(True)

    deployment, replicas = mock.Mock(close=close), mock.Mock(stop=stop)
    with pytest.raises(ConnectionError):
        asyncio.run(Router(deployment, replicas).close())
    assert closed == [True]


@pytest.mark.parametrize("kind", ["GetTimeoutError", "RayActorError", "RaySystemError"])
def test_none_is_ready_while_serve_can_not_be_asked(
    ray_serve: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def status() -> None:
        error = getattr(ray_serve.ray.exceptions, kind)
        raise error("its controller") if kind == "RaySystemError" else error()

    monkeypatch.setattr(ray_serve.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_serve.serve, "status", status)
    assert ray_serve.ServeReplicas(lambda: None, lambda: None).status().ready == 0
