"""Stream and AsyncStream: an answer in pieces, read from server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from allears_client.answers import Answer, parse_answer
from allears_client.errors import NOT_OURS, Interrupted, refusal

_LONGEST_LINE_BYTES = 1 << 26  # kept of a line that doesn't end; an answer is far shorter


class _Pieces:
    """What both streams share: the events of a response, and what they carried so far."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._events = _Events(response)

    @property
    def token_scores(self) -> tuple[float, ...]:
        """Listening scores of the newest piece's tokens; none without a profile, or audio."""
        return self._events.token_scores

    @property
    def answer(self) -> Answer:
        """The whole Answer; raises Interrupted before the last piece came."""
        return self._events.whole_answer()


class Stream(_Pieces):
    """Pieces of an answer's text as they come; `answer` is the whole, once they ended.

    `token_scores` are the listening scores of the newest piece's tokens.
    """

    def __iter__(self) -> Iterator[str]:
        with self._events.to_the_last():
            for chunk in self._response.iter_bytes():
                yield from self._events.feed(chunk)


class AsyncStream(_Pieces):
    """The same as Stream, asynchronously."""

    async def __aiter__(self) -> AsyncIterator[str]:
        with self._events.to_the_last():
            async for chunk in self._response.aiter_bytes():
                for piece in self._events.feed(chunk):
                    yield piece


class _Events:
    """The events of a streamed answer, as far as they came."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._begun = bytearray()  # the line whose end has not come
        self._answer: Answer | None = None
        self.token_scores: tuple[float, ...] = ()  # of the newest piece

    @contextmanager
    def to_the_last(self) -> Iterator[None]:
        """While it lasts the events are read; raises Interrupted if they ended early."""
        try:
            yield
        except httpx.RequestError as error:
            raise Interrupted(
                f"the connection broke before the answer was whole: {error}"
            ) from None
        self.whole_answer()

    def feed(self, chunk: bytes) -> Iterator[str]:
        r"""The pieces of text in the lines that a chunk ends. A line ends at \n alone: text may
        hold what str.splitlines cuts at.
        """
        head, *tail = chunk.split(b"\n")
        self._begun += head
        for begun in tail:
            line, self._begun = bytes(self._begun), bytearray(begun)
            if piece := self._piece(line):
                yield piece
        if len(self._begun) > _LONGEST_LINE_BYTES:
            raise Interrupted(
                f"a line of the stream is over {_LONGEST_LINE_BYTES} bytes: is this an allears"
                " server?"
            )

    def _piece(self, line: bytes) -> str:
        """The piece of text in a line; of the last event, the Answer is kept."""
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            return ""
        try:
            return self._piece_of_event(json.loads(data))
        except NOT_OURS as error:
            raise Interrupted(
                f"an event of the stream can't be understood ({error!r}): is this an allears"
                " server?"
            ) from None

    def _piece_of_event(self, event: dict[str, Any]) -> str:
        if "error" in event:
            raise refusal(self._response, event)
        if "answer" in event:
            self._answer = parse_answer(event)
        piece: str = event["delta"]
        if piece:
            self.token_scores = tuple(event.get("token_scores", ()))
        return piece

    def whole_answer(self) -> Answer:
        """The Answer; raises Interrupted before the event that carries it."""
        if self._answer is None:
            raise Interrupted("the stream ended before the answer was whole, or was not read yet")
        return self._answer
