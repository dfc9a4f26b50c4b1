"""The app: a deployment, the routes, the exception table, and the middleware around them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi

from server.api import error_responses, openapi
from server.api.middleware.answer_errors import answer_errors
from server.api.middleware.answer_head import answer_head
from server.api.middleware.cancel_on_disconnect import cancel_on_disconnect
from server.api.middleware.decode_body import decode_body
from server.api.middleware.drop_trailing_slash import drop_trailing_slash
from server.api.middleware.limit_body import limit_body
from server.api.middleware.log_requests import log_requests
from server.api.middleware.require_key import PROBES, require_key
from server.api.middleware.strip_root_path import strip_root_path
from server.api.routes import router
from server.audio.decode_pool import DecodeLimits, DecodePool
from server.deployment import Deployment
from server.engine.runtime import Runtime
from server.listening_log.records import ListeningLog, MemoryLog
from server.listening_log.writer import DatabaseLog
from server.settings import Settings, wrong_log
from server.telemetry import tracing
from server.telemetry.metrics import Metrics, add_log_gauges, make_metrics
from steering.model.checkpoint import public_name

_DESCRIPTION = (
    "Ask an audio-language model, see how far the audio decided the answer, and steer it where it"
    " did not."
)
_READABLE = ("x-request-id", "x-listening-score", "x-steering-strength", "retry-after")


def create_app(
    settings: Settings,
    runtime: Runtime | None = None,
    *,
    crowded: Callable[[], bool] = lambda: False,
) -> FastAPI:
    """The app of one deployment; it loads what the settings name unless a runtime is given.

    It answers at once; until the model has answered a question all but the probes, /metrics and
    /docs is 503. `crowded` says whether too many connections are open.
    """
    tracer = tracing.make_tracer(os.environ)
    deployment = make_deployment(settings, tracer=tracer, crowded=crowded)
    return make_app(
        deployment,
        lambda: deployment.load_and_watch(runtime),
        deployment.close,
        middleware_of(deployment),
    )


def create_replica(settings: Settings) -> FastAPI:
    """The app of one replica of several: the router has the middleware."""
    deployment = make_deployment(settings)
    return make_app(deployment, lambda: deployment.load_and_watch(None), deployment.close)


def make_deployment(settings: Settings, **parts: Any) -> Deployment:
    """A deployment whose log is where the settings say; nothing is opened yet."""
    metrics = make_metrics()
    records: ListeningLog = MemoryLog()
    if not settings.logs_to_memory:
        records = database_log(settings, metrics.log_lost.inc)
        add_log_gauges(metrics, records)
    return Deployment(settings, metrics, records, _make_decode_pool(settings, metrics), **parts)


def database_log(settings: Settings, count_lost: Callable[[int], None]) -> DatabaseLog:
    """The listening log in the database of the settings; nothing is opened yet."""
    return DatabaseLog(
        settings.log_database,
        max_rows=settings.listening_log_max_rows,
        max_days=settings.listening_log_max_days,
        buffer_rows=settings.listening_log_buffer_rows,
        count_lost=count_lost,
        start_error=lambda reason: wrong_log(settings, reason),
        folder=settings.state_folder if settings.listening_log_url is None else None,
    )


def _make_decode_pool(settings: Settings, metrics: Metrics) -> DecodePool:
    limits = DecodeLimits(
        workers=settings.decode_workers,
        timeout_seconds=settings.decode_timeout_seconds,
        waiting_requests=settings.queue_limit_requests + settings.max_batch_rows,
        waiting_seconds=settings.queue_timeout_seconds,
    )
    return DecodePool(limits, lambda result: metrics.decodes.labels(result).inc())


def make_app(
    deployment: Deployment,
    live: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    middleware: Sequence[Middleware] = (),
) -> FastAPI:
    """The routes and the exception table in some middleware, the outermost first.

    `live` runs from start to drain, `close` after it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(deployment.records.open)
        life = asyncio.ensure_future(live())
        yield
        if deployment.state != "draining":  # `allears serve` has drained before it stops serving
            await deployment.drain(deployment.settings.drain_seconds)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await close()

    app = FastAPI(
        title="allears",
        summary="Audio-language models that say how much they listened",
        description=_DESCRIPTION,
        version=own_version(),
        lifespan=lifespan,
        docs_url=None,  # routes.py has a page that asks no other host
        redoc_url=None,
        redirect_slashes=False,  # a redirect loses the body of a POST: drop_trailing_slash
        exception_handlers=error_responses.HANDLERS,
        middleware=middleware,
    )
    app.state.deployment = deployment
    app.state.routes = [*app.routes, *router.routes]
    app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def own_version() -> str:
    """The installed version; 0 in a checkout that is not installed."""
    try:
        return version("allears")
    except PackageNotFoundError:
        return "0"


def middleware_of(deployment: Deployment) -> list[Middleware]:
    """The middleware of a server that clients reach, from the outside in."""
    settings = deployment.settings
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=_READABLE,
    )
    root = settings.root_path
    return [
        *([Middleware(strip_root_path, root_path=root)] if root else []),
        Middleware(log_requests, deployment=deployment),
        Middleware(answer_head),
        *([cors] if settings.cors_origins else []),
        Middleware(answer_errors, deployment=deployment),
        Middleware(cancel_on_disconnect, deployment=deployment),
        Middleware(
            limit_body, max_bytes=settings.max_body_bytes, seconds=settings.body_timeout_seconds
        ),
        Middleware(require_key, keys=settings.known_keys, settings=settings),
        Middleware(drop_trailing_slash),
        Middleware(decode_body, max_bytes=settings.max_body_bytes),
    ]


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        settings = app.state.deployment.settings
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=openapi.TAGS,
            servers=[{"url": settings.root_path}] if settings.root_path else None,
        )
        app.openapi_schema = openapi.complete(
            document,
            PROBES,
            keyed=bool(settings.known_keys),
            model=public_name(settings.model),
        )
    return app.openapi_schema
