"""The end of a request's work when its client disconnects, or after the longest time."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.audio.url_fetch import FETCH_SECONDS
from server.deployment import Deployment
from server.errors import Draining, RequestTimeout
from server.settings import Settings

_GRACE_SECONDS = 2.0  # over the engine's own limit, which can still say so in a stream


def cancel_on_disconnect(app: ASGIApp, deployment: Deployment) -> ASGIApp:
    """Cancel the app when the client disconnects or the time is over.

    Raises RequestTimeout after the longest time, Draining if the server can't wait for the end.
    Nothing is received before the app asks, so the client of an unread body is never told to go on.
    """
    limit_seconds = _longest_seconds(deployment.settings)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        inbox: asyncio.Queue[Message] = asyncio.Queue(1)
        watcher: asyncio.Task[None] | None = None
        answered = disconnected = False

        async def watch() -> None:
            nonlocal disconnected
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" and not answered:
                    disconnected = True
                    work.cancel()
                    return
                await inbox.put(message)

        async def next_message() -> Message:
            nonlocal watcher
            watcher = watcher or asyncio.create_task(watch())
            return await inbox.get()

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered = True

        work = asyncio.ensure_future(app(scope, next_message, send_and_note))
        done: set[asyncio.Future[None]] = set()
        try:
            done, _ = await asyncio.wait([work], timeout=limit_seconds)
        except asyncio.CancelledError:
            if deployment.state == "draining":  # the server ends
                raise Draining("the server shut down before the answer was there", 5) from None
            raise
        finally:
            tasks = [task for task in (work, watcher) if task is not None]
            for task in tasks:
                task.cancel()  # without effect on what has ended
            await asyncio.gather(*tasks, return_exceptions=True)
        if not done:
            raise RequestTimeout("the request took longer than is allowed here; ask again later", 5)
        if not disconnected:
            work.result()

    return call


def _longest_seconds(settings: Settings) -> float:
    """All that the limits of a request's steps allow together.

    A stream can't be told of this limit, so that none meets it which keeps to the others.
    """
    of_clip = settings.queue_timeout_seconds + 2 * settings.decode_timeout_seconds  # tried again
    before_answer = (
        settings.body_timeout_seconds
        + settings.queue_timeout_seconds  # for a replica
        + FETCH_SECONDS
        + settings.max_audio_clips * of_clip
    )
    return before_answer + settings.request_timeout_seconds + _GRACE_SECONDS
