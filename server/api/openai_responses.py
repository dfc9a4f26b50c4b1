"""An answer in OpenAI's words: a chat completion, or the chunks of one.

What this server has to say beyond OpenAI stands beside OpenAI's keys: listening, steering, audio,
timings, warnings. The openai client keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from server.api.responses import AudioHeard, ChoiceProbability, Listening, Steering, Timings

_RENAMED = {"id", "object", "created", "model", "answer", "finish_reason", "choices", "usage"}


class CompletionText(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class CompletionChoice(BaseModel):
    index: Literal[0]
    message: CompletionText
    logprobs: None
    finish_reason: Literal["stop", "length"]


class PromptDetails(BaseModel):
    audio_tokens: int
    cached_tokens: Literal[0]


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions: OpenAI's keys, then this server's."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
    listening: Listening
    steering: Steering
    audio: list[AudioHeard]
    timings: Timings
    warnings: list[str]
    probabilities: list[ChoiceProbability] = []  # with choices or response_format
    silent_answer: str = ""  # with include silence


def completion(native: Mapping[str, Any], content: str) -> dict[str, Any]:
    """The body of a completion, from the body of POST /v1/audio-chat and the answer's content."""
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None}
    return {
        **{key: native[key] for key in ("id", "created", "model")},
        "object": "chat.completion",
        "choices": [{**choice, "finish_reason": native["finish_reason"]}],
        "usage": _usage(native),
        **_extensions(native),
    }


def chunk(start: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    """A chunk with a piece of the answer; `start` is what every chunk has."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish}
    return {**start, "choices": [choice]}


def last_chunks(
    start: Mapping[str, Any], native: Mapping[str, Any], *, with_usage: bool
) -> list[dict[str, Any]]:
    """The chunk that ends the answer and, if asked for, one with the usage; both say it all."""
    beyond = _extensions(native)
    ends = [{**chunk(start, {}, native["finish_reason"]), **beyond}]
    if with_usage:
        ends.append({**start, "choices": [], "usage": _usage(native), **beyond})
    return ends


def _extensions(native: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in native.items() if key not in _RENAMED}
    return found | ({"probabilities": native["choices"]} if native["choices"] else {})


def _usage(native: Mapping[str, Any]) -> dict[str, Any]:
    used = dict(native["usage"])
    return {
        **{key: used[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "prompt_tokens_details": {"audio_tokens": used["audio_tokens"], "cached_tokens": 0},
    }
