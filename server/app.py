"""The app: routes, the exception table and the middleware around one deployment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from server import access, document, errors, middleware, tracing
from server.deployment import Deployment, make_deployment
from server.listener import Listener
from server.routes import router
from server.settings import Settings

_DESCRIPTION = (
    "Ask an audio-language model, see how far the audio decided the answer, and steer it where it"
    " did not."
)
_READABLE = ("x-request-id", "x-listening-score", "x-steering-strength", "retry-after")


def create_app(settings: Settings, listener: Listener | None = None) -> FastAPI:
    """The app of one deployment; it loads what the settings name unless a listener is given.

    It answers at once; until the model has answered a question all but the probes, /metrics and
    /docs is 503.
    """
    deployment = make_deployment(settings, tracing.start(os.environ))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(deployment.records.open)
        deployment.decoder.start()
        life = asyncio.create_task(_load_and_watch(deployment, listener))
        yield
        if deployment.state != "draining":  # `allears serve` has drained before it stops serving
            await deployment.drained(settings.drain_seconds)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await deployment.close()

    app = FastAPI(
        title="allears",
        summary="Audio-language models that say how much they listened",
        description=_DESCRIPTION,
        version=own_version(),
        lifespan=lifespan,
        docs_url=None,  # routes.py has a page that asks no other host
        redoc_url=None,
        exception_handlers=errors.HANDLERS,
    )
    app.state.deployment = deployment
    app.state.routes = router.routes
    app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    _surround(app, deployment)
    return app


async def _load_and_watch(deployment: Deployment, listener: Listener | None) -> None:
    await deployment.load(listener)
    await deployment.watch()


def own_version() -> str:
    """The installed version; 0 in a checkout that is not installed."""
    try:
        return version("allears")
    except PackageNotFoundError:
        return "0"


def _surround(app: FastAPI, deployment: Deployment) -> None:
    """Put the middleware around the app, the innermost first."""
    settings = deployment.settings
    app.add_middleware(access.keyed, keys=settings.known_keys, settings=settings)
    app.add_middleware(
        middleware.bounded,
        max_bytes=settings.max_body_bytes,
        seconds=settings.body_timeout_seconds,
    )
    app.add_middleware(middleware.raced, deployment=deployment)
    app.add_middleware(middleware.caught, deployment=deployment)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_READABLE,
        )
    app.add_middleware(middleware.observed, deployment=deployment)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        keyed = bool(app.state.deployment.settings.known_keys)
        app.openapi_schema = document.complete(found, access.PROBES, keyed=keyed)
    return app.openapi_schema
