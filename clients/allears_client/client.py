"""AllEars and AsyncAllEars: a connection to one server, HTTP in, frozen dataclasses out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, Unpack

import httpx
from httpx_retries import Retry, RetryTransport

from allears_client.answers import Answer, Heard, parse_answer, parse_heard
from allears_client.errors import AllEarsHTTPError, Interrupted, no_server, refusal
from allears_client.request_body import ListeningOptions, Options, Sounds, body

DEFAULT_URL = "http://127.0.0.1:8000"
_CHAT, _LISTEN, _SUMMARY = "/v1/audio-chat", "/v1/listening-score", "/listening-score"
_LONGEST_PAUSE_SECONDS = 60.0
_BROKEN = (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL)


class Stream:
    """Pieces of an answer's text as they come; `answer` is the whole, once they ended.

    `token_scores` are the listening scores of the newest piece's tokens.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._events = _Events(response)

    def __iter__(self) -> Iterator[str]:
        with self._events.to_the_last():
            for line in self._response.iter_lines():
                if piece := self._events.feed(line):
                    yield piece

    @property
    def token_scores(self) -> tuple[float, ...]:
        """Listening scores of the newest piece's tokens; none without a profile, or audio."""
        return self._events.token_scores

    @property
    def answer(self) -> Answer:
        """The whole Answer; raises Interrupted before the last piece came."""
        return self._events.whole_answer()


class AsyncStream:
    """The same as Stream, asynchronously."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._events = _Events(response)

    async def __aiter__(self) -> AsyncIterator[str]:
        with self._events.to_the_last():
            async for line in self._response.aiter_lines():
                if piece := self._events.feed(line):
                    yield piece

    @property
    def token_scores(self) -> tuple[float, ...]:
        """Scores of the newest piece's tokens, as those of Stream."""
        return self._events.token_scores

    @property
    def answer(self) -> Answer:
        """The whole Answer; raises Interrupted before the last piece came."""
        return self._events.whole_answer()


class AllEars:
    """A connection to one server. Use it as a context manager, or call `close`.

    A busy server (429, 503) and a broken connection are tried `max_retries` times more, after the
    time that Retry-After says, else after a growing one. All methods raise AllEarsHTTPError for a
    refusal, NoServer, and UnreadableAudio.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers=_headers(api_key),
            timeout=_timeout(timeout_seconds),
            transport=RetryTransport(transport or httpx.HTTPTransport(), _retry(max_retries)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ask(
        self, audio: Sounds | None, question: str | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The server's answer about one clip or several."""
        return parse_answer(self._send("POST", _CHAT, json=body(audio, question, options)))

    @contextmanager
    def stream(
        self, audio: Sounds | None, question: str | None = None, **options: Unpack[Options]
    ) -> Iterator[Stream]:
        """The answer in pieces: iterate over them, then read the stream's `answer`."""
        content = {**body(audio, question, options), "stream": True}
        try:
            request = self._http.build_request("POST", _CHAT, json=content)
            response = self._http.send(request, stream=True)
        except _BROKEN as error:
            raise no_server(self.url, error) from None
        try:
            if not response.is_success:
                response.read()
                raise refusal(response, _json_or_none(response))
            yield Stream(response)
        finally:
            response.close()

    def listen(
        self,
        audio: Sounds | None,
        question: str | None = None,
        **options: Unpack[ListeningOptions],
    ) -> Heard:
        """Listening measurements of a question, without an answer."""
        return parse_heard(self._send("POST", _LISTEN, json=body(audio, question, options)))

    def listening_score(self, request_id: str | None = None) -> Mapping[str, Any]:
        """The server's rolling summary, or the record of one answer by its id."""
        return self._send("GET", _SUMMARY, params=_params(request_id))

    def ready(self) -> bool:
        """True if the server can be reached and takes questions."""
        try:
            return self._http.get("/readyz", extensions=_ONCE).status_code == 200
        except _BROKEN:
            return False

    def _send(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **content)
        except _BROKEN as error:
            raise no_server(self.url, error) from None
        return _checked_body(response)


class AsyncAllEars:
    """The same as AllEars, asynchronously."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=_headers(api_key),
            timeout=_timeout(timeout_seconds),
            transport=RetryTransport(transport or httpx.AsyncHTTPTransport(), _retry(max_retries)),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def ask(
        self, audio: Sounds | None, question: str | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The server's answer about one clip or several."""
        return parse_answer(await self._send("POST", _CHAT, json=body(audio, question, options)))

    @asynccontextmanager
    async def stream(
        self, audio: Sounds | None, question: str | None = None, **options: Unpack[Options]
    ) -> AsyncIterator[AsyncStream]:
        """The answer in pieces: iterate over them, then read the stream's `answer`."""
        content = {**body(audio, question, options), "stream": True}
        try:
            request = self._http.build_request("POST", _CHAT, json=content)
            response = await self._http.send(request, stream=True)
        except _BROKEN as error:
            raise no_server(self.url, error) from None
        try:
            if not response.is_success:
                await response.aread()
                raise refusal(response, _json_or_none(response))
            yield AsyncStream(response)
        finally:
            await response.aclose()

    async def listen(
        self,
        audio: Sounds | None,
        question: str | None = None,
        **options: Unpack[ListeningOptions],
    ) -> Heard:
        """Listening measurements of a question, without an answer."""
        content = body(audio, question, options)
        return parse_heard(await self._send("POST", _LISTEN, json=content))

    async def listening_score(self, request_id: str | None = None) -> Mapping[str, Any]:
        """The server's rolling summary, or the record of one answer by its id."""
        return await self._send("GET", _SUMMARY, params=_params(request_id))

    async def ready(self) -> bool:
        """True if the server can be reached and takes questions."""
        try:
            return (await self._http.get("/readyz", extensions=_ONCE)).status_code == 200
        except _BROKEN:
            return False

    async def _send(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, **content)
        except _BROKEN as error:
            raise no_server(self.url, error) from None
        return _checked_body(response)


def _retry(count: int) -> Retry:
    """Retry policy. A refused connection is not retried: there is no server."""
    return Retry(
        total=count,
        allowed_methods=("GET", "POST"),
        status_forcelist=(429, 503),
        retry_on_exceptions=(httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError),
        backoff_factor=0.25,
        backoff_jitter=0.5,
        max_backoff_wait=_LONGEST_PAUSE_SECONDS,
    )


_ONCE = {"retry": _retry(0)}


def _headers(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(10.0, seconds))


def _params(request_id: str | None) -> dict[str, str]:
    return {"request_id": request_id} if request_id else {}


def _checked_body(response: httpx.Response) -> dict[str, Any]:
    """The body of an answer; raises the error of a refusal."""
    content = _json_or_none(response)
    if not response.is_success:
        raise refusal(response, content)
    if not isinstance(content, dict):
        raise AllEarsHTTPError(
            "the answer is not JSON: is this an allears server?", status=response.status_code
        )
    return content


def _json_or_none(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


class _Events:
    """The events of a streamed answer, as far as they came."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._answer: Answer | None = None
        self.token_scores: tuple[float, ...] = ()  # of the newest piece

    @contextmanager
    def to_the_last(self) -> Iterator[None]:
        """While it lasts the events are read; raises Interrupted if they ended early."""
        try:
            yield
        except httpx.TransportError as error:
            raise Interrupted(
                f"the connection broke before the answer was whole: {error}"
            ) from None
        self.whole_answer()

    def feed(self, line: str) -> str:
        """The piece of text in a line of the stream; of the last event, the Answer is kept."""
        data = line.removeprefix("data: ").strip()
        if not line.startswith("data:") or data == "[DONE]":
            return ""
        event = json.loads(data)
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
