"""An answer as OpenAI's chat completion, or as the chunks of one.

Keys beyond OpenAI's stand beside OpenAI's: listening, steering, audio, timings, warnings; of a
chunk with text, token_scores. The openai client keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from server.api import response_bodies
from server.api.open_question import OpenQuestion
from server.api.requests import AudioChatRequest
from server.api.responses import (
    AudioChat,
    AudioHeard,
    ChoiceProbability,
    Listening,
    ResponseModel,
    Steering,
    Usage,
    WindowListening,
)
from server.api.sse import StreamFormat
from server.engine.messages import Answer, Timings

_EXTENSIONS = {"listening", "steering", "silent_answer", "windows", "audio", "timings", "warnings"}


class CompletionText(ResponseModel):
    """The message of the assistant."""

    role: Literal["assistant"]
    """the author"""
    content: str
    """text of the answer; with response_format JSON"""
    refusal: None
    """always null: the model never refuses"""


class CompletionChoice(ResponseModel):
    """The answer; OpenAI's list of choices holds exactly one."""

    index: Literal[0]
    """position in the list"""
    message: CompletionText
    """the answer"""
    logprobs: None
    """always null: probabilities come with `choices`"""
    finish_reason: Literal["stop", "length"]
    """length: cut off at max_completion_tokens"""


class PromptDetails(ResponseModel):
    """Parts of the prompt's tokens."""

    audio_tokens: int
    """tokens of the audio"""
    cached_tokens: Literal[0]
    """always 0"""


class CompletionUsage(ResponseModel):
    """Tokens of the request, as OpenAI counts them."""

    prompt_tokens: int
    """tokens of the prompt, with those of the audio"""
    completion_tokens: int
    """tokens of the answer"""
    total_tokens: int
    """tokens of prompt and answer"""
    prompt_tokens_details: PromptDetails
    """parts of the prompt's tokens"""


class ChatCompletion(ResponseModel):
    """The answer of POST /v1/chat/completions: OpenAI's keys, then this server's."""

    id: str
    """id of the answer, and of its record in the listening log"""
    object: Literal["chat.completion"]
    """the kind of this body"""
    created: int
    """time of the request, in seconds since 1970"""
    model: str
    """name of the model"""
    choices: list[CompletionChoice]
    """the answer"""
    usage: CompletionUsage
    """tokens"""
    listening: Listening | None
    """how far the audio decided; null where the conversation has no audio"""
    steering: Steering
    """what was done to the answer"""
    audio: list[AudioHeard]
    """each clip"""
    timings: Timings
    """durations"""
    warnings: list[str]
    """sentences about clips that are cut off, silent or did not reach the model"""
    probabilities: list[ChoiceProbability] = Field(default=[])
    """with choices or response_format: their probabilities, in their order"""
    silent_answer: str = ""
    """with include silence: the answer to the same question about silence"""
    windows: list[WindowListening] = Field(default=[])
    """of a clip heard in windows: each window"""


class TranscriptionDetails(ResponseModel):
    """Parts of the prompt's tokens."""

    audio_tokens: int
    """tokens of the audio"""
    text_tokens: int
    """tokens of the instruction"""


class TranscriptionUsage(ResponseModel):
    """Tokens of the request, as OpenAI counts those of a transcript."""

    type: Literal["tokens"]
    """what is counted"""
    input_tokens: int
    """tokens of the prompt, with those of the audio"""
    output_tokens: int
    """tokens of the transcript"""
    total_tokens: int
    """tokens of prompt and transcript"""
    input_token_details: TranscriptionDetails
    """parts of the prompt's tokens"""


class Transcription(ResponseModel):
    """The answer of POST /v1/audio/transcriptions: OpenAI's keys, then this server's."""

    text: str
    """the transcript"""
    usage: TranscriptionUsage
    """tokens"""
    finish_reason: Literal["stop", "length"]
    """length: cut off at max_tokens"""
    id: str
    """id of the answer, and of its record in the listening log"""
    created: int
    """time of the request, in seconds since 1970"""
    model: str
    """name of the model"""
    listening: Listening
    """how far the audio decided the first word"""
    steering: Steering
    """what was done to the transcript"""
    audio: list[AudioHeard]
    """the clip"""
    timings: Timings
    """durations"""
    warnings: list[str]
    """sentences about a clip that is cut off, silent or did not reach the model"""
    windows: list[WindowListening] = Field(default=[])
    """of a clip heard in windows: each window"""


def completion(
    opened: OpenQuestion[AudioChatRequest], answer: Answer, content: Callable[[str], str]
) -> dict[str, Any]:
    """The body of a completion; `content` writes the text of the answer."""
    chat = response_bodies.audio_chat(opened, answer)
    message = {"role": "assistant", "content": content(chat.answer), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None}
    return {
        "id": chat.id,
        "created": chat.created,
        "model": chat.model,
        "object": "chat.completion",
        "choices": [{**choice, "finish_reason": chat.finish_reason}],
        "usage": _usage(chat.usage),
        **_extensions(chat),
    }


def completion_stream(
    opened: OpenQuestion[AudioChatRequest], content: Callable[[str], str], *, with_usage: bool
) -> StreamFormat:
    """The chunks of a streamed completion.

    The last one with text ends the answer; with usage another one follows. Both have all that is
    known of the answer.
    """
    start: dict[str, Any] = {"id": opened.question.id, "object": "chat.completion.chunk"}
    start |= {"created": opened.created, "model": opened.model}
    start |= {"usage": None} if with_usage else {}

    def last_chunks(answer: Answer) -> list[dict[str, Any]]:
        chat = response_bodies.audio_chat(opened, answer)
        extensions = _extensions(chat)
        chunks = [{**_chunk(start, {}, chat.finish_reason), **extensions}]
        if with_usage:
            chunks.append({**start, "choices": [], "usage": _usage(chat.usage), **extensions})
        return chunks

    return StreamFormat(
        begin=(_chunk(start, {"role": "assistant", "content": ""}),),
        piece=lambda piece: {
            **_chunk(start, {"content": content(piece.text)}),
            **response_bodies.token_scores(piece),
        },
        finish=last_chunks,
    )


def _chunk(
    start: Mapping[str, Any], delta: Mapping[str, Any], finish_reason: str | None = None
) -> dict[str, Any]:
    """A chunk with a piece of the answer; `start` is what all chunks have."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**start, "choices": [choice]}


def _extensions(chat: AudioChat) -> dict[str, Any]:
    """This server's keys beside OpenAI's."""
    body = response_bodies.dump(chat)
    extensions = {key: value for key, value in body.items() if key in _EXTENSIONS}
    return extensions | ({"probabilities": body["choices"]} if chat.choices else {})


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"audio_tokens": usage.audio_tokens, "cached_tokens": 0},
    }
