"""An answer as server-sent events: `data:` lines of JSON, then `data: [DONE]`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from server.api import error_responses
from server.engine.events import AnswerEvent, Finished, Piece
from server.engine.messages import Answer
from server.telemetry.request_record import request_record

MEDIA_TYPE = "text/event-stream"
HEADERS = {"x-accel-buffering": "no"}  # proxies that buffer would hold the pieces back
DONE = b"data: [DONE]\n\n"
_OTHER_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def event(body: dict[str, Any]) -> bytes:
    """One event, on one line to readers that split text as str.splitlines does too."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False).translate(_OTHER_LINE_ENDS)
    return b"data: " + text.encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """The bodies of a stream: its first, that of a piece of text, and those of the Answer."""

    begin: tuple[dict[str, Any], ...]
    piece: Callable[[Piece], dict[str, Any]]
    finish: Callable[[Answer], Sequence[dict[str, Any]]]


async def event_stream(
    answer_events: AsyncIterator[AnswerEvent], stream_format: StreamFormat, scope: Scope
) -> AsyncIterator[bytes]:
    """An event for each piece of text, those of the whole Answer, [DONE]; an error is the last."""
    try:
        for body in stream_format.begin:
            yield event(body)
        async for answer_event in answer_events:
            match answer_event:
                case Piece() as piece:
                    yield event(stream_format.piece(piece))
                case Finished(answer):
                    for body in stream_format.finish(answer):
                        yield event(body)
    except Exception as error:
        error_responses.record_error(scope, error)
        yield event(error_responses.body(error, request_record(scope).request_id))
        return
    yield DONE
