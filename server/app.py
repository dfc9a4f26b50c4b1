"""The app: routes, the exception table and the middleware around one deployment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from server.api import error_responses, openapi
from server.api.middleware.answer_errors import answer_errors
from server.api.middleware.cancel_on_disconnect import cancel_on_disconnect
from server.api.middleware.limit_body import limit_body
from server.api.middleware.log_requests import log_requests
from server.api.middleware.require_key import PROBES, require_key
from server.api.routes import router
from server.deployment import Deployment, make_deployment, public_name
from server.engine.runtime import Runtime
from server.settings import Settings
from server.telemetry import tracing

_DESCRIPTION = (
    "Ask an audio-language model, see how far the audio decided the answer, and steer it where it"
    " did not."
)
_READABLE = ("x-request-id", "x-listening-score", "x-steering-strength", "retry-after")


def create_app(settings: Settings, runtime: Runtime | None = None) -> FastAPI:
    """The app of one deployment; it loads what the settings name unless a listener is given.

    It answers at once; until the model has answered a question all but the probes, /metrics and
    /docs is 503.
    """
    deployment = make_deployment(settings, tracing.make_tracer(os.environ))
    app = make_app(deployment, lambda: _load_and_watch(deployment, runtime), deployment.close)
    add_middleware(app, deployment)
    return app


def create_replica(settings: Settings) -> FastAPI:
    """The app of one replica of several: all that is around a request is done by the front."""
    deployment = make_deployment(settings)
    return make_app(deployment, lambda: _load_and_watch(deployment, None), deployment.close)


def make_app(
    deployment: Deployment,
    live: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
) -> FastAPI:
    """The routes and the exception table, and a deployment's life around them."""

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
        exception_handlers=error_responses.HANDLERS,
    )
    app.state.deployment = deployment
    app.state.routes = router.routes
    app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _load_and_watch(deployment: Deployment, runtime: Runtime | None) -> None:
    deployment.decode_pool.start()
    await deployment.load(runtime)
    await deployment.watch()


def own_version() -> str:
    """The installed version; 0 in a checkout that is not installed."""
    try:
        return version("allears")
    except PackageNotFoundError:
        return "0"


def add_middleware(app: FastAPI, deployment: Deployment) -> None:
    """Put the middleware around the app, the innermost first."""
    settings = deployment.settings
    app.add_middleware(require_key, keys=settings.known_keys, settings=settings)
    app.add_middleware(
        limit_body,
        max_bytes=settings.max_body_bytes,
        seconds=settings.body_timeout_seconds,
    )
    app.add_middleware(cancel_on_disconnect, deployment=deployment)
    app.add_middleware(answer_errors, deployment=deployment)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_READABLE,
        )
    app.add_middleware(log_requests, deployment=deployment)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=openapi.TAGS,
        )
        settings = app.state.deployment.settings
        app.openapi_schema = openapi.complete(
            document,
            PROBES,
            keyed=bool(settings.known_keys),
            model=public_name(settings.model),
        )
    return app.openapi_schema
