"""Clients that stream answers over OpenAI's chat route, as they see them: when each token came.

They keep the bytes with their times and read them when the clock has stopped: a client computes on
the cores that the server computes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import numpy as np

from allears_client.audio_input import Samples, as_json

SAMPLE_RATE_HZ = 16_000
CLIPS = {"3": (3.0, 3.0), "10": (10.0, 10.0), "30": (30.0, 30.0), "mixed": (1.0, 30.0)}  # seconds
_QUESTION = "Which sound is this? Say what made it, and how often it was heard."
_ANSWER_TIMEOUT_SECONDS = 600.0
_CHUNKS_UNDER_WAY = 4  # the role and some tokens


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """The times of one answer's pieces of text, by `time.perf_counter`, and its usage."""

    sent_at: float
    pieces_at: tuple[float, ...]
    prompt_tokens: int
    tokens: int

    @property
    def first_token_seconds(self) -> float:
        """Seconds from the request to the first text."""
        return self.pieces_at[0] - self.sent_at


@dataclass(frozen=True, slots=True)
class StreamedLoad:
    """All answers of a load, in the order they were sent, and its seconds by the wall."""

    answers: tuple[StreamedAnswer, ...]
    seconds: float


def clip_lengths(clips: str, count: int, seed: int) -> list[float]:
    """Seconds of so many clips, in a random order: evenly spread over their range."""
    shortest, longest = CLIPS[clips]
    lengths = np.linspace(shortest, longest, 2 * count + 1)[1::2]  # the middles of equal parts
    return [float(length) for length in np.random.default_rng(seed).permutation(lengths)]


def chat_body(model: str, clip_seconds: float, seed: int, tokens: int, *, steer: bool) -> bytes:
    """A question about noise, greedy and streamed; every seed makes another clip."""
    noise = np.random.default_rng(seed).standard_normal(round(clip_seconds * SAMPLE_RATE_HZ))
    samples = Samples(np.clip(0.1 * noise, -1, 1), SAMPLE_RATE_HZ)
    audio = {**as_json(samples), "format": "wav"}
    parts = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": _QUESTION}]
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": parts}]}
    body |= {"max_tokens": tokens, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body | ({"steer": True} if steer else {})).encode()


def load(url: str, bodies: Sequence[bytes], at_once: int) -> StreamedLoad:
    """The answers to all bodies, of clients that ask again as soon as they are answered."""
    return asyncio.run(_load(url, bodies, at_once))


async def _load(url: str, bodies: Sequence[bytes], at_once: int) -> StreamedLoad:
    streams: dict[int, _Stream] = {}
    waiting = iter(enumerate(bodies))

    async with _http(url) as http:

        async def client() -> None:
            for i, body in waiting:
                streams[i] = await _stream(http, body)

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(at_once)))
        seconds = time.perf_counter() - start
    return StreamedLoad(tuple(_answer(streams[i]) for i in range(len(bodies))), seconds)


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """Seconds between two pieces of one answer: usually, and at most while others enter."""

    usual: float
    longest: float


def gaps_while_others_enter(url: str, body: bytes, entering: Sequence[bytes]) -> TokenGaps:
    """The gaps of one streamed answer, during which other prompts enter one after another.

    RuntimeError where the answer has ended before the first of them has entered.
    """
    return asyncio.run(_gaps_while_others_enter(url, body, entering))


async def _gaps_while_others_enter(url: str, body: bytes, entering: Sequence[bytes]) -> TokenGaps:
    async with _http(url) as http:
        under_way = asyncio.Event()
        row = asyncio.create_task(_stream(http, body, under_way))
        await asyncio.wait(
            [row, asyncio.create_task(under_way.wait())], return_when="FIRST_COMPLETED"
        )
        start = time.perf_counter()
        others = [_answer(await _stream(http, other)) for other in entering]
        answer = _answer(await row)
    entered_at = [other.pieces_at[0] for other in others]
    if answer.pieces_at[-1] < entered_at[0]:
        raise RuntimeError(
            f"a row of {answer.tokens} tokens ended before another prompt had entered; let it write"
            " more"
        )
    gaps = [(before, after) for before, after in pairwise(answer.pieces_at)]
    quiet = [after - before for before, after in gaps if after < start] or [0.0]
    busy = [after - before for before, after in gaps if after > start and before < entered_at[-1]]
    return TokenGaps(float(np.median(quiet)), max(busy))


# ---- one stream


@dataclass(frozen=True, slots=True)
class _Stream:
    """The bytes of a stream, each part with the time when it came."""

    sent_at: float
    parts: list[tuple[float, bytes]]


def _http(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=_ANSWER_TIMEOUT_SECONDS, limits=limits)


async def _stream(
    http: httpx.AsyncClient, body: bytes, under_way: asyncio.Event | None = None
) -> _Stream:
    """The stream of one answer; the event is set when some of its tokens have come."""
    headers = {"content-type": "application/json"}
    stream = _Stream(time.perf_counter(), [])
    path = "/v1/chat/completions"
    async with http.stream("POST", path, content=body, headers=headers) as response:
        async for part in response.aiter_raw():
            stream.parts.append((time.perf_counter(), part))
            if under_way and len(stream.parts) == _CHUNKS_UNDER_WAY:
                under_way.set()
    if response.status_code != 200:
        text = b"".join(part for _, part in stream.parts).decode(errors="replace")
        raise RuntimeError(f"a server answered {response.status_code}: {text[:1000]}")
    return stream


def _answer(stream: _Stream) -> StreamedAnswer:
    """What a stream says. RuntimeError for one without text or usage, and for one of an error."""
    usage: dict[str, int] = {}
    pieces: list[float] = []
    for at, event in _events(stream.parts):
        if "error" in event:
            raise RuntimeError(f"a stream ended in an error: {event['error']}")
        choices = event.get("choices") or [{}]
        if choices[0].get("delta", {}).get("content"):
            pieces.append(at)
        usage = event.get("usage") or usage
    if not pieces or not usage:
        raise RuntimeError(f"a stream had {len(pieces)} pieces of text, and the usage {usage}")
    return StreamedAnswer(
        stream.sent_at, tuple(pieces), usage["prompt_tokens"], usage["completion_tokens"]
    )


def _events(parts: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The JSON of each server-sent event, at the time its last byte came."""
    rest = b""
    for at, part in parts:
        *events, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = b"\n".join(
                line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")
            )
            if data and data != b"[DONE]":
                yield at, json.loads(data)
