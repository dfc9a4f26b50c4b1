"""The router's app: it answers for several replicas."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.middleware import Middleware

from server.api.middleware.forward_to_replicas import forward_to_replicas
from server.api.routes import forwarded_routes
from server.app import make_app, make_deployment, middleware_of
from server.deployment import ReplicaAccess
from server.loading import Progress
from server.replicas.router import ReplicaMetrics, Replicas, Router
from server.settings import Settings
from server.telemetry import tracing


def create_front(
    settings: Settings, replicas: Replicas, *, crowded: Callable[[], bool] = lambda: False
) -> FastAPI:
    """The app in front of several replicas: they answer what needs the model or its log."""
    samples = ReplicaMetrics(replicas).samples
    deployment = make_deployment(
        settings,
        tracer=tracing.make_tracer(os.environ),
        progress=Progress("the replicas are still loading"),
        crowded=crowded,
        replicas=ReplicaAccess(samples, replicas.stop_all),
    )
    router = Router(deployment, replicas)
    forwarding = Middleware(forward_to_replicas, forward=router.forward, routes=forwarded_routes())
    return make_app(
        deployment, router.watch, router.close, [*middleware_of(deployment), forwarding]
    )
