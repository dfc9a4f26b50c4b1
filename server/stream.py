"""An answer as server-sent events: `data:` lines of JSON, then `data: [DONE]`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.types import Scope

from server import errors
from server.listen import Answer, Heeded

MEDIA_TYPE = "text/event-stream"
HEADERS = {"x-accel-buffering": "no"}  # proxies that buffer would hold the pieces back
DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


async def pieces(
    found: AsyncIterator[Heeded | str | Answer],
    start: dict[str, Any],
    finish: Callable[[Answer], dict[str, Any]],
    scope: Scope,
) -> AsyncIterator[bytes]:
    """An event for each piece of text, one with all that `finish` says of the Answer, [DONE].

    `start` holds what every event has. What goes wrong on the way is an event as well, the last.
    """
    try:
        async for one in found:
            if isinstance(one, str):
                yield event({**start, "delta": one})
            elif isinstance(one, Answer):
                yield event({**start, "delta": "", **finish(one), "object": start["object"]})
    except Exception as error:
        errors.note(scope, error)
        yield event(errors.body(error, scope["state"]["request_id"]))
        return
    yield DONE
