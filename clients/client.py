"""A small client of an allears server: HTTP in, frozen dataclasses out. No torch, no server code.

with AllEars() as ears:
    answer = ears.ask("dog.wav", "What animal is this?", choices=["dog", "cat"], steer=True)
    print(answer.text, answer.listening.score, answer.listening.verdict)
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
Sound = bytes | str | os.PathLike[str]  # the bytes of an audio file, or its path
Parsed = TypeVar("Parsed")


class AllEarsClientError(Exception):
    """The root of what can go wrong on this side of the wire."""


class NoServer(AllEarsClientError):
    """Nothing answers at the URL, or not in time."""


class UnreadableAudio(AllEarsClientError):
    """The audio file can't be read."""


class AllEarsHTTPError(AllEarsClientError):
    """The server refused; `status`, `code`, `param` and `message` are the server's."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status} {code or ''}: {message}".replace(" :", ":"))
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Listening:
    """How far the audio decided the answer; None where the server has no profile."""

    score: float | None
    percentile: float | None
    verdict: str
    silence_score: float | None
    threshold: float | None
    hop_seconds: float
    timeline: tuple[float, ...] = ()
    heads: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Steering:
    """What was done to the answer; `reason` says why nothing was."""

    applied: bool
    direction: str | None
    strength: float
    relative_norm: float
    reason: str | None
    answer_changed: bool | None = None
    unsteered_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; `raw` is the whole body as it came."""

    id: str
    text: str
    finish_reason: str
    probabilities: Mapping[str, float]  # of the choices
    listening: Listening
    steering: Steering
    silent_answer: str | None
    warnings: tuple[str, ...]
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the server heard of a question it did not answer."""

    id: str
    listening: Listening
    warnings: tuple[str, ...]
    raw: Mapping[str, Any]


class AllEars:
    """A connection to one server. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_seconds, connect=min(10.0, timeout_seconds)),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ask(
        self,
        audio: Sound | Sequence[Sound] | None,
        question: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        choices: Sequence[str] | None = None,
        steer: bool = False,
        strength: float | Literal["adaptive"] = "adaptive",
        direction: Literal["request", "calibrated"] = "request",
        include: Sequence[Literal["timeline", "heads", "unsteered", "silence"]] = (),
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """The server's answer about one clip or several.

        Raises AllEarsHTTPError for a refusal, NoServer, UnreadableAudio.
        """
        body = {
            **_asked(audio, question, messages, choices, include),
            "steer": steer,
            "steering": {"strength": strength, "direction": direction},
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stop": list(stop),
        }
        return _answer(self._send("POST", "/v1/audio-chat", json=body))

    def listen(
        self,
        audio: Sound | Sequence[Sound] | None,
        question: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        choices: Sequence[str] | None = None,
        include: Sequence[Literal["timeline", "heads", "silence"]] = (),
    ) -> Heard:
        """How far the audio would decide the answer, without an answer."""
        body = _asked(audio, question, messages, choices, include)
        raw = self._send("POST", "/v1/listening-score", json=body)
        return Heard(raw["id"], _listening(raw["listening"]), tuple(raw["warnings"]), raw)

    def listening_score(self, request_id: str | None = None) -> Mapping[str, Any]:
        """The server's rolling summary, or the record of one answer by its id."""
        params = {"request_id": request_id} if request_id else {}
        return self._send("GET", "/listening-score", params=params)

    def ready(self) -> bool:
        """Whether the server is there and takes questions."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **content)
        except httpx.ConnectError as error:
            raise NoServer(
                f"nothing answers at {self.url} ({error}); start a server with `allears serve`, or"
                " give its address with --url"
            ) from None
        except httpx.TimeoutException:
            raise NoServer(
                f"{self.url} did not answer in time; it may be busy: try later"
            ) from None
        except (httpx.TransportError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise NoServer(f"the connection to {self.url} failed: {error}") from None
        if response.is_success:
            return _json(response)
        raise _refusal(response)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AllEarsHTTPError(
            "the answer is not JSON: is this an allears server?", status=response.status_code
        )
    return found


def _refusal(response: httpx.Response) -> AllEarsHTTPError:
    error = _json(response).get("error")
    details = error if isinstance(error, dict) else {}
    wait = response.headers.get("retry-after", "")
    return AllEarsHTTPError(
        details.get("message", response.reason_phrase),
        status=response.status_code,
        code=details.get("code"),
        param=details.get("param"),
        retry_after_seconds=float(wait) if wait.isdecimal() else None,
    )


def _asked(
    audio: Sound | Sequence[Sound] | None,
    question: str | None,
    messages: Sequence[Mapping[str, Any]] | None,
    choices: Sequence[str] | None,
    include: Sequence[str],
) -> dict[str, Any]:
    """The part of a body that every question has."""
    sounds = [audio] if isinstance(audio, bytes | str | os.PathLike) else list(audio or ())
    body: dict[str, Any] = {"include": list(include)}
    if sounds:
        body["audio"] = [{"data": base64.b64encode(_read(s)).decode()} for s in sounds]
    wanted = {"question": question, "messages": messages, "choices": choices}
    return body | {name: value for name, value in wanted.items() if value is not None}


def _read(sound: Sound) -> bytes:
    if isinstance(sound, bytes):
        return sound
    try:
        return Path(sound).read_bytes()
    except OSError as error:
        raise UnreadableAudio(
            f"{sound}: can't be read ({error.strerror}); check the path"
        ) from None


def _answer(raw: dict[str, Any]) -> Answer:
    return Answer(
        id=raw["id"],
        text=raw["answer"],
        finish_reason=raw["finish_reason"],
        probabilities={one["text"]: one["probability"] for one in raw["choices"]},
        listening=_listening(raw["listening"]),
        steering=_known(Steering, raw["steering"]),
        silent_answer=raw.get("silent_answer"),
        warnings=tuple(raw["warnings"]),
        raw=raw,
    )


def _listening(raw: Mapping[str, Any]) -> Listening:
    lists = {name: tuple(raw.get(name, ())) for name in ("timeline", "heads")}
    return _known(Listening, {**raw, **lists})


def _known(kind: type[Parsed], raw: Mapping[str, Any]) -> Parsed:
    """A dataclass from the keys it knows: a newer server may send more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in raw.items() if name in names})
