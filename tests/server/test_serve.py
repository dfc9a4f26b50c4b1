"""The end of a server's process, without a process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

from server import loading, serve
from server.app import make_deployment
from server.deployment import Deployment, ReplicaAccess
from server.engine.engine import Engine
from server.engine.runtime import Runtime
from server.settings import NO_LOG, Settings
from tests.server.conftest import wait_until


def deployment(**parts: Any) -> Deployment:
    """A deployment that still loads, with a drain of no time."""
    settings = Settings(listening_log_url=SecretStr(NO_LOG), drain_seconds=0)
    return make_deployment(settings, **parts)


def test_a_drain_that_fails_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    server = uvicorn.Server(serve._config(object(), 5.0))

    async def fail() -> Any:
        raise ConnectionError("no replica can be asked")

    async def drain() -> bool:
        draining = deployment(replicas=ReplicaAccess(fail, fail))
        with draining.request_in_flight(counted=True):
            return await serve._drain(server, draining)

    assert asyncio.run(drain()) is False
    assert server.should_exit
    assert "no replica can be asked" in caplog.text


def test_a_thread_in_torch_is_not_waited_for(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first answer no deployment knows the engine."""
    runtime = Runtime.of(tiny_model, None, rows=1, tokens=64)
    engine = Engine(runtime, queue_limit_requests=1, queue_timeout_seconds=1)
    loads, main = threading.Thread(name=loading.LOADING_THREAD), threading.main_thread()
    for thread, leaves in ((engine._thread, True), (loads, True), (main, False)):
        monkeypatch.setattr(threading, "enumerate", lambda now=thread: [now])
        assert serve._must_leave(deployment(), 0, []) is leaves
        assert not serve._must_leave(deployment(), 0, [thread]), "it is not the server's"
    engine.close()


def test_a_first_question_that_fails_leaves_no_thread(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runtime: Runtime) -> Any:
        raise ValueError("no memory")

    monkeypatch.setattr(loading, "_first_question", fail)
    before = threading.enumerate()
    runtime = Runtime.of(tiny_model, None, rows=1, tokens=64)
    with pytest.raises(ValueError, match="no memory"):
        asyncio.run(loading.start_engine(deployment().settings, loading.Progress(), runtime))
    wait_until(lambda: set(threading.enumerate()) <= set(before))
