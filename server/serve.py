"""The life of a server's process: it serves, drains at a signal, and ends with a code.

0: a signal came and all requests were answered. 1: loading failed, the model's thread died or its
device was lost, or requests were cut off by the end of the drain or by a second signal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn

from server.app import create_app
from server.deployment import Deployment
from server.engine.engine import TORCH_THREAD
from server.errors import SettingsError
from server.loading import LOADING_THREAD
from server.settings import Settings
from server.stalled_connections import ConnectionWatch
from server.telemetry import logs

log = logging.getLogger("allears")

_FAREWELL_SECONDS = 2.0  # of a server whose model died: every client and probe gets its 503


async def run_server(settings: Settings, listening: socket.socket) -> int:
    """Serve until a signal and the drain, or until nothing can be answered; return the exit code.

    The first signal stops admitting, lets running requests end, and then stops the server; the
    second stops it at once. Does not return where a thread is still inside torch: Python can't end
    cleanly beside it, so the process ends here, and nothing it writes is half there.
    """
    logs.take_over()
    earlier = threading.enumerate()
    watch = ConnectionWatch(settings.max_connections, settings.stall_timeout_seconds)
    app = _create_app(settings, watch.crowded)
    deployment: Deployment = app.state.deployment
    deployment.records.open()  # first, so that an unusable log is known at once
    server = uvicorn.Server(_config(app, settings.keep_alive_seconds))
    server.server_state.connections = watch.connections
    loop = asyncio.get_running_loop()
    drains: list[asyncio.Task[bool]] = []

    def drain_or_force() -> None:
        if drains or deployment.failed.is_set():
            server.should_exit = server.force_exit = True
        else:
            drains.append(loop.create_task(_drain(server, deployment)))

    def on_signal(sig: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(drain_or_force)

    server.handle_exit = on_signal  # type: ignore[method-assign]  # uvicorn's own never drains
    serving = loop.create_task(server.serve(sockets=[listening]))
    watching = loop.create_task(watch.cut_stalled())
    await _failed_or_over(deployment, serving)
    server.should_exit = True
    await serving
    watching.cancel()
    cut_off = server.force_exit or not all(drain.done() and drain.result() for drain in drains)
    code = int(cut_off or deployment.failure is not None)
    if _must_leave(deployment, code, earlier):
        logging.shutdown()
        os._exit(code)
    return code


def _create_app(settings: Settings, crowded: Callable[[], bool]) -> Any:
    """The app that answers by itself, or the router of several replicas. Raises SettingsError."""
    if settings.replicas == 1 and settings.max_replicas in (None, 1):
        return create_app(settings, crowded=crowded)
    if not re.fullmatch("auto|cpu|cuda", settings.device):
        raise SettingsError(
            f"ALLEARS_DEVICE (--device) is {settings.device!r}, and each of several replicas gets a"
            " GPU of its own: set cuda, cpu or auto, or one replica"
        )
    try:
        from server.replicas.ray_serve import create_local_router
    except ImportError as error:
        raise SettingsError(
            f"more than one replica needs Ray Serve ({error.name} is missing): `pip install"
            " 'allears[ray]'`, or leave --replicas and --max-replicas out"
        ) from None
    return create_local_router(settings, crowded=crowded)


def _config(app: object, keep_alive_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=keep_alive_seconds,  # type: ignore[arg-type]  # asyncio takes parts too
        timeout_graceful_shutdown=1,
    )


async def _drain(server: uvicorn.Server, deployment: Deployment) -> bool:
    """Stop the server when all requests ended, or were cut off; True if none was."""
    ended = False
    try:
        ended = await deployment.drain(deployment.settings.drain_seconds)
        if not ended:
            await deployment.abort_running()
    except Exception:
        log.exception("the requests that run could not be ended; the server ends without that")
    finally:
        server.should_exit = True
    return ended


async def _failed_or_over(deployment: Deployment, serving: asyncio.Task[None]) -> None:
    """Wait for the server's end, or a failure and, if there was a model, its last answers."""
    failed = asyncio.create_task(deployment.failed.wait())
    await asyncio.wait([serving, failed], return_when=asyncio.FIRST_COMPLETED)
    failed.cancel()
    if deployment.failure is not None and deployment.engine is not None and not serving.done():
        await asyncio.wait([serving], timeout=_FAREWELL_SECONDS)


def _must_leave(deployment: Deployment, code: int, earlier: Sequence[threading.Thread]) -> bool:
    """Whether a thread is still in torch, or a device may be lost, whose clean-up could hang.

    A deployment has no engine yet while its first question is answered. Threads that ran `earlier`
    are not the server's.
    """
    names = {thread.name for thread in threading.enumerate() if thread not in earlier}
    in_torch = not names.isdisjoint((LOADING_THREAD, TORCH_THREAD))
    return in_torch or (deployment.engine is not None and code != 0)
