"""AllEars and AsyncAllEars: a connection to one server, HTTP in, frozen dataclasses out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar, Unpack

import httpx
from httpx_retries import Retry, RetryTransport

from allears_client.answers import Answer, Heard, parse_answer, parse_heard
from allears_client.errors import NOT_OURS, AllEarsHTTPError, Unsendable, no_server, refusal
from allears_client.request_body import ListeningOptions, Options, Sounds, body, encoded
from allears_client.stream import AsyncStream, Stream

Parsed = TypeVar("Parsed")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_SECONDS = 330.0
_CHAT, _LISTEN, _SUMMARY = "/v1/audio-chat", "/v1/listening-score", "/listening-score"
_LONGEST_PAUSE_SECONDS = 60.0
_BROKEN = (httpx.RequestError, httpx.InvalidURL)
_JSON = {"content-type": "application/json"}


class AllEars:
    """A connection to one server. Use it as a context manager, or call `close`.

    A busy server (429, 503) and a broken connection are tried `max_retries` times more, after the
    time that Retry-After says, else after a growing one; not so a request that ended a replica.
    All methods raise AllEarsHTTPError for a refusal, NoServer, UnreadableAudio and Unsendable.
    The default timeout is longer than a server, as it comes, lets an answer take.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        retry = _retry(max_retries, _raise_if_passing)
        with _reaching(self.url):
            self._http = httpx.Client(
                base_url=self.url,
                headers=_headers(api_key),
                timeout=_timeout(timeout_seconds),
                transport=RetryTransport(transport or httpx.HTTPTransport(), retry),
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
        content = body(audio, question, options)
        return _parsed(self._post(_CHAT, content), parse_answer)

    @contextmanager
    def stream(
        self, audio: Sounds | None, question: str | None = None, **options: Unpack[Options]
    ) -> Iterator[Stream]:
        """The answer in pieces: iterate over them, then read the stream's `answer`."""
        content = encoded({**body(audio, question, options), "stream": True})
        with _reaching(self.url):
            request = self._http.build_request("POST", _CHAT, content=content, headers=_JSON)
            response = self._http.send(request, stream=True)
        try:
            if not response.is_success:
                with _reaching(self.url):
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
        content = body(audio, question, options)
        return _parsed(self._post(_LISTEN, content), parse_heard)

    def listening_score(self, request_id: str | None = None) -> Mapping[str, Any]:
        """The server's rolling summary, or the record of one answer by its id."""
        params = _params(request_id)
        with _reaching(self.url):
            response = self._http.get(_SUMMARY, params=params)
        return _checked_body(response)

    def ready(self) -> bool:
        """True if the server can be reached and takes questions."""
        try:
            return self._http.get("/readyz", extensions=_ONCE).status_code == 200
        except _BROKEN:
            return False

    def _post(self, path: str, content: dict[str, Any]) -> httpx.Response:
        data = encoded(content)
        with _reaching(self.url):
            return self._http.post(path, content=data, headers=_JSON)


class AsyncAllEars:
    """The same as AllEars, asynchronously."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        retry = _retry(max_retries, _raise_if_passing_async)
        with _reaching(self.url):
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=_headers(api_key),
                timeout=_timeout(timeout_seconds),
                transport=RetryTransport(transport or httpx.AsyncHTTPTransport(), retry),
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
        content = body(audio, question, options)
        return _parsed(await self._post(_CHAT, content), parse_answer)

    @asynccontextmanager
    async def stream(
        self, audio: Sounds | None, question: str | None = None, **options: Unpack[Options]
    ) -> AsyncIterator[AsyncStream]:
        """The answer in pieces: iterate over them, then read the stream's `answer`."""
        content = encoded({**body(audio, question, options), "stream": True})
        with _reaching(self.url):
            request = self._http.build_request("POST", _CHAT, content=content, headers=_JSON)
            response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                with _reaching(self.url):
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
        return _parsed(await self._post(_LISTEN, content), parse_heard)

    async def listening_score(self, request_id: str | None = None) -> Mapping[str, Any]:
        """The server's rolling summary, or the record of one answer by its id."""
        params = _params(request_id)
        with _reaching(self.url):
            response = await self._http.get(_SUMMARY, params=params)
        return _checked_body(response)

    async def ready(self) -> bool:
        """True if the server can be reached and takes questions."""
        try:
            return (await self._http.get("/readyz", extensions=_ONCE)).status_code == 200
        except _BROKEN:
            return False

    async def _post(self, path: str, content: dict[str, Any]) -> httpx.Response:
        data = encoded(content)
        with _reaching(self.url):
            return await self._http.post(path, content=data, headers=_JSON)


class _Passing(Exception):
    """A refusal that may be over soon."""


def _raise_if_passing(response: httpx.Response) -> None:
    """Raise _Passing for a 503, but for that of a request which would end another replica."""
    if response.status_code == 503:
        response.read()
        _raise_unless_lost(response)


async def _raise_if_passing_async(response: httpx.Response) -> None:
    if response.status_code == 503:
        await response.aread()
        _raise_unless_lost(response)


def _raise_unless_lost(response: httpx.Response) -> None:
    if refusal(response, _json_or_none(response)).code != "replica_lost":
        raise _Passing


def _retry(
    count: int, validate: Callable[[httpx.Response], Awaitable[None] | None] | None = None
) -> Retry:
    """Retry policy. A refused connection is not retried: there is no server."""
    broken = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
    return Retry(
        total=count,
        allowed_methods=("GET", "POST"),
        status_forcelist=(429,),
        retry_on_exceptions=(*broken, _Passing),
        validate_response=validate,
        backoff_factor=0.25,
        backoff_jitter=0.5,
        max_backoff_wait=_LONGEST_PAUSE_SECONDS,
    )


_ONCE = {"retry": _retry(0)}


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """While it lasts the server is asked; raises NoServer for what breaks."""
    try:
        yield
    except _BROKEN as error:
        raise no_server(url, error) from None


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()  # one that was read from a file ends in a newline
    if not (key.isascii() and key.isprintable()):
        raise Unsendable(
            "the API key can't be sent: it may hold printable ASCII alone; look at where it is from"
        )
    return {"authorization": f"Bearer {key}"} if key else {}


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(10.0, seconds))


def _params(request_id: str | None) -> dict[str, str]:
    params = {"request_id": request_id} if request_id else {}
    encoded(params)  # raises for text that a URL has not either
    return params


def _parsed(response: httpx.Response, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """What a body holds; raises the error of a refusal."""
    content = _checked_body(response)
    try:
        return parse(content)
    except NOT_OURS as error:
        raise AllEarsHTTPError(
            f"the answer can't be understood ({error!r}): is this an allears server?",
            status=response.status_code,
        ) from None


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
