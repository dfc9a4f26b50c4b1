"""The app of the process in front of several replicas."""

from __future__ import annotations

import os

from fastapi import FastAPI

from server.api.middleware.forward_to_replicas import forward_to_replicas
from server.api.routes import forwarded_routes
from server.app import add_middleware, make_app
from server.deployment import make_deployment
from server.replicas.router import Replicas, Router
from server.settings import Settings
from server.telemetry import tracing


def create_front(settings: Settings, replicas: Replicas) -> FastAPI:
    """The app before several replicas: it asks them what the model or its log must answer."""
    deployment = make_deployment(settings, tracing.make_tracer(os.environ))
    fleet = Router(deployment, replicas)
    app = make_app(deployment, fleet.load, fleet.close)
    app.add_middleware(forward_to_replicas, forward=fleet.forward, routes=forwarded_routes())
    add_middleware(app, deployment)
    return app
