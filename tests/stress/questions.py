"""Honest requests of all kinds, and the content of their answers, which must never differ."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx

from tests.stress.server_process import bearer
from tests.stress.signals_made import sound

SCORE_TOLERANCE = 1e-4
_CHOICES = ["dog", "siren", "melody", "speech"]
_QUESTIONS = (
    "What is this?",
    "What do you hear first, and what after it?",
    "Is this a melody? Answer with one of the words.",
)
_SECONDS = (0.3, 0.5, 0.8)
_CONTAINERS = ("WAV", "FLAC", "OGG")


@dataclass(frozen=True, slots=True)
class AnswerContent:
    """The content of an answer: a request that is sent twice must get it twice."""

    text: str
    score: float
    strength: float
    probabilities: tuple[float, ...] = ()

    def differs(self, other: AnswerContent) -> str:
        """The differences in words; empty where there are none."""
        differences = [f"text {self.text!r} and {other.text!r}"] if self.text != other.text else []
        pairs = [("score", self.score, other.score), ("strength", self.strength, other.strength)]
        both = zip(self.probabilities, other.probabilities, strict=True)
        pairs += [("probability", mine, its) for mine, its in both]
        differences += [
            f"{name} {mine} and {its}"
            for name, mine, its in pairs
            if abs(mine - its) > (10 if name == "strength" else 1) * SCORE_TOLERANCE
        ]
        return "; ".join(differences)


@dataclass(frozen=True, slots=True)
class HonestRequest:
    """A request as httpx takes it, and whether its answer is a stream."""

    name: str
    path: str
    content: Mapping[str, Any]
    streamed: bool = False

    async def send(self, http: httpx.AsyncClient, key: str) -> httpx.Response:
        """The response, read whole."""
        return await http.post(self.path, headers=bearer(key), **self.content)

    def encoded(self, url: str, key: str) -> bytes:
        """The whole request as it goes over the wire, for clients that break off in it."""
        request = httpx.Request("POST", f"{url}{self.path}", headers=bearer(key), **self.content)
        lines = [f"POST {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + request.read()

    def read(self, response: httpx.Response) -> AnswerContent:
        """The content of its answer; KeyError, ValueError or IndexError for another shape."""
        if self.streamed:
            return _streamed(response.text)
        body = response.json()
        if "/chat/" in self.path:
            return _content(body["choices"][0]["message"]["content"], body)
        return _content(body.get("answer", ""), body)


def pool(seed: int, size: int) -> tuple[HonestRequest, ...]:
    """Different requests over all kinds, the same for a seed."""
    random = Random(seed)
    kinds = (_plain, _steered, _multipart, _streaming, _choosing, _sampling, _openai, _listening)
    return tuple(kinds[i % len(kinds)](i, random) for i in range(size))


def _audio(i: int, random: Random) -> dict[str, str]:
    return {"data": base64.b64encode(_file(i, random)).decode()}


def _file(i: int, random: Random) -> bytes:
    return sound(i % 7, random.choice(_SECONDS), random.choice(_CONTAINERS))


def _native(i: int, random: Random, **options: Any) -> dict[str, Any]:
    question = f"{random.choice(_QUESTIONS)} {'Listen well. ' * random.randrange(3)}"
    return {"audio": _audio(i, random), "question": question, "max_tokens": 8, **options}


def _plain(i: int, random: Random) -> HonestRequest:
    return HonestRequest(f"{i} plain", "/v1/audio-chat", {"json": _native(i, random)})


def _steered(i: int, random: Random) -> HonestRequest:
    steering = random.choice(
        [{"strength": 0.6}, {"strength": "adaptive"}, {"direction": "calibrated"}]
    )
    body = _native(i, random, steer=True, steering=steering)
    return HonestRequest(f"{i} steered", "/v1/audio-chat", {"json": body})


def _multipart(i: int, random: Random) -> HonestRequest:
    files = [("audio", ("clip", _file(i, random), "application/octet-stream"))]
    fields = {"question": random.choice(_QUESTIONS), "max_tokens": "8", "steer": "true"}
    return HonestRequest(f"{i} multipart", "/v1/audio-chat", {"files": files, "data": fields})


def _streaming(i: int, random: Random) -> HonestRequest:
    body = _native(i, random, steer=random.random() < 0.5, stream=True)
    return HonestRequest(f"{i} streamed", "/v1/audio-chat", {"json": body}, streamed=True)


def _choosing(i: int, random: Random) -> HonestRequest:
    body = _native(i, random, steer=random.random() < 0.5, choices=_CHOICES)
    return HonestRequest(f"{i} choices", "/v1/audio-chat", {"json": body})


def _sampling(i: int, random: Random) -> HonestRequest:
    body = _native(i, random, temperature=1.0, top_p=0.95, seed=random.randrange(2**31))
    return HonestRequest(f"{i} sampled", "/v1/audio-chat", {"json": body})


def _openai(i: int, random: Random) -> HonestRequest:
    parts = [
        {"type": "input_audio", "input_audio": _audio(i, random)},
        {"type": "text", "text": random.choice(_QUESTIONS)},
    ]
    streamed = random.random() < 0.5
    body = {"model": "demo", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    body |= {"steer": random.random() < 0.5, "stream": streamed}
    return HonestRequest(f"{i} openai", "/v1/chat/completions", {"json": body}, streamed)


def _listening(i: int, random: Random) -> HonestRequest:
    body = {"audio": _audio(i, random), "question": random.choice(_QUESTIONS)}
    return HonestRequest(f"{i} listening", "/v1/listening-score", {"json": body})


def _content(text: str, body: Mapping[str, Any]) -> AnswerContent:
    choices = body["choices"] if "answer" in body else ()
    return AnswerContent(
        text=text,
        score=body["listening"]["score"],
        strength=body.get("steering", {}).get("strength", 0.0),
        probabilities=tuple(choice["probability"] for choice in choices),
    )


def _streamed(text: str) -> AnswerContent:
    """The pieces of a stream put together; ValueError if its end is missing."""
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    if events[-1] != "[DONE]":
        raise ValueError(f"the stream ends with {events[-1][:200]}")
    bodies: Sequence[Any] = [json.loads(event) for event in events[:-1]]
    if "choices" in bodies[0]:
        pieces = [event["choices"][0]["delta"].get("content", "") for event in bodies]
        return _content("".join(pieces), bodies[-1])
    return _content("".join(event["delta"] for event in bodies), {**bodies[-1], "choices": ()})
