"""OpenAI's chat completions as this server reads them, field by field.

A field has its effect, or stands in `neutral_fields`: it is taken only at the values that change
nothing, or accepted without effect. All others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from server.api import neutral_fields
from server.api.requests import (
    MAX_MESSAGES,
    AudioChatRequest,
    ChatMessage,
    Choices,
    Include,
    LongAudio,
    MaxTokens,
    MinP,
    RepetitionPenalty,
    Seed,
    SteeringOptions,
    Stop,
    TopK,
    TopP,
)
from server.api.strict_model import Extra, StrictModel
from steering.errors import RequestError

_SCHEMA = "response_format.json_schema.schema"
_KEYWORDS: Mapping[str, tuple[type, ...]] = {  # with the types of their values
    "type": (str, list),
    "enum": (list,),
    "const": (object,),
    "title": (str,),
    "description": (str,),
    "default": (object,),
    "$schema": (str,),
    "$defs": (dict,),
}
_OBJECT_KEYWORDS: Mapping[str, tuple[type, ...]] = {
    "properties": (dict,),
    "required": (list,),
    "additionalProperties": (bool, dict),
    **_KEYWORDS,
}


class StreamOptions(StrictModel):
    """Options of a stream."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.STREAM_OPTIONS
    include_usage: bool | None = Field(
        default=None, description="a last chunk with `usage` and no choices"
    )


class ResponseFormat(StrictModel):
    """The answer as text, or one of some given strings as JSON."""

    type: Literal["text", "json_schema"]
    """text is the same as no response_format"""
    json_schema: dict[str, Any] | None = Field(
        default=None,
        description="`schema` is a string with `enum`, or an object of one such property: the"
        " answer is one of these, scored by the model",
    )


class ChatCompletionRequest(StrictModel):
    """POST /v1/chat/completions."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.OPENAI
    model: str = Field(max_length=1000, description="the one that GET /v1/models names")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    """the conversation, with the clips in it; the last turn is the user's"""

    # of this server
    steer: bool = Field(default=False, description="steer the answer towards the audio")
    steering: SteeringOptions | None = Field(
        default=None, description="null: adaptive, live direction"
    )
    choices: Choices | None = Field(default=None, description="the answer is one of these")
    include: list[Include] = Field(
        default=[], max_length=16, description="more to see in `listening` and `steering`"
    )
    long_audio: LongAudio | None = Field(
        default=None,
        description="what becomes of a clip longer than is heard as one; null: as deployed",
    )

    top_k: TopK | None = None
    """draw among so many of the most likely tokens; 0 or -1: among all"""
    min_p: MinP | None = None
    """draw among tokens at least this times as likely as the likeliest"""
    repetition_penalty: RepetitionPenalty | None = None
    """as in /v1/audio-chat"""

    # with their effect
    max_completion_tokens: MaxTokens | None = Field(
        default=None,
        description="longest answer, in tokens: 64 where neither this nor max_tokens is given; over"
        " what this deployment allows, or what fits behind the prompt, the answer ends there with"
        " the finish_reason `length`",
    )
    max_tokens: MaxTokens | None = Field(
        default=None, description="the older name of max_completion_tokens"
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, which is greedy, unless given: OpenAI's is 1"
    )
    top_p: TopP | None = None
    """draw among the most likely tokens whose probabilities reach this sum"""
    seed: Seed | None = None
    """seed of the random draws; null: another one each time"""
    stop: Stop | None = None
    """a string, or up to four, that end the answer; they are left out of it"""
    stream: bool | None = None
    """send the answer in pieces, as server-sent events; `token_scores` of a piece are the listening
    scores of its tokens"""
    stream_options: StreamOptions | None = None
    """options of a stream"""
    response_format: ResponseFormat | None = None
    """an answer as JSON, one of some given strings"""


@dataclass(frozen=True, slots=True)
class JsonChoice:
    """A choice as JSON: a string, or an object that holds it under `key`."""

    choices: tuple[str, ...]
    key: str | None

    def write(self, choice: str) -> str:
        """The content of an answer."""
        return json.dumps(choice if self.key is None else {self.key: choice}, ensure_ascii=False)


def to_audio_chat(body: ChatCompletionRequest) -> AudioChatRequest:
    """The same request in this server's own form. RequestError for fields that clash."""
    form = json_choice(body)
    if body.choices and form:
        raise RequestError("choices and response_format were sent; send one of them", "choices")
    if body.stream_options and body.stream_options.include_usage and not body.stream:
        raise RequestError("stream_options was sent without stream", "stream_options")
    shared = AudioChatRequest.model_fields.keys() & type(body).model_fields.keys()
    given: dict[str, Any] = {name: getattr(body, name) for name in shared}
    given["choices"] = list(form.choices) if form else body.choices
    given["max_tokens"] = _max_tokens(body)
    return AudioChatRequest(**given)


def _max_tokens(body: ChatCompletionRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(
            f"max_tokens is {old} and max_completion_tokens {new}; send one of them", "max_tokens"
        )
    return new if old is None else old


def json_choice(body: ChatCompletionRequest) -> JsonChoice | None:
    """The strings that response_format allows; None for plain text. RequestError for others."""
    form = body.response_format
    if form is None or form.type == "text":
        return None
    schema = (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise RequestError(f"{_SCHEMA} is missing; send a JSON schema", _SCHEMA)
    key, inner = _only_property(schema) if schema.get("type") == "object" else (None, schema)
    _check_keywords(inner, _KEYWORDS)
    allowed = inner.get("enum", [inner["const"]] if "const" in inner else None)
    if allowed is None:
        raise _unknown_schema()
    try:
        choices = TypeAdapter(Choices).validate_python(allowed, strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise RequestError(f"{_SCHEMA}: the enum can't be choices: {reason}", _SCHEMA) from None
    return JsonChoice(tuple(choices), key)


def _only_property(schema: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and schema of an object's only property, a reference to $defs followed."""
    _check_keywords(schema, _OBJECT_KEYWORDS)
    properties = schema.get("properties") or {}
    if len(properties) != 1:
        raise _unknown_schema()
    ((key, inner),) = properties.items()
    if isinstance(inner, dict) and isinstance(reference := inner.get("$ref"), str):
        inner = (schema.get("$defs") or {}).get(reference.removeprefix("#/$defs/"))
    if not isinstance(inner, dict):
        raise _unknown_schema()
    return key, inner


def _check_keywords(schema: Mapping[str, Any], known: Mapping[str, tuple[type, ...]]) -> None:
    """Raise unless each keyword is known, and null or of one of its types."""
    for keyword, value in schema.items():
        if keyword not in known or not (value is None or isinstance(value, known[keyword])):
            raise _unknown_schema()


def _unknown_schema() -> RequestError:
    return RequestError(
        f"{_SCHEMA}: only a string with `enum`, or an object of one such property, can be"
        ' answered, for example {"type": "string", "enum": ["dog", "cat"]}',
        _SCHEMA,
    )
