"""The end of a server's process, without a process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr

from server import serve
from server.app import make_deployment
from server.deployment import Deployment, ReplicaAccess
from server.settings import NO_LOG, Settings


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
