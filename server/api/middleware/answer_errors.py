"""Responses to exceptions that no route answered, and to connections over the limit."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_responses import answer_error
from server.api.middleware.require_key import PROBES
from server.deployment import Deployment
from server.errors import TooManyConnections


def answer_errors(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Answer an unexpected exception, with its details in the log, and refuse when crowded."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if scope["path"] not in PROBES and deployment.crowded():
                raise TooManyConnections(
                    "more connections are open than this server allows; close some"
                )
            await app(scope, receive, send_and_note)
        except Exception as error:
            response = answer_error(scope, error)
            if not started:
                await response(scope, receive, send)

    return call
