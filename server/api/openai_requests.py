"""OpenAI's chat completions as this server reads them, field by field.

Every field of OpenAI's is one of three, and its description says which: it has its effect; it is
taken only at the value that changes nothing, and refused otherwise; or it is accepted without
effect. All other fields are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from server.api.requests import (
    MAX_MESSAGES,
    AudioChatRequest,
    ChatMessage,
    Choices,
    Content,
    MaxTokens,
    Seed,
    SteeringOptions,
    StopString,
    StrictModel,
)
from steering.errors import RequestError

_SCHEMA = "response_format.json_schema.schema"
_KEYWORDS = {"type", "enum", "const", "title", "description", "default", "$schema"}
_OBJECT_KEYWORDS = {"properties", "required", "additionalProperties", "$defs"} | _KEYWORDS


def _neutral_only(why: str, *neutral: Any) -> Any:
    """A field that is taken at null and `neutral`, which change nothing, and refused otherwise."""
    allowed: list[Any] = [None, *neutral]
    shown = " or ".join(json.dumps(value) for value in allowed)
    text = f"Taken at {shown} only: {why}."
    return Field(default=None, description=text, json_schema_extra={"enum": allowed})


def _accepted(why: str) -> Any:
    """A field that is accepted without effect."""
    return Field(default=None, description=f"Accepted without effect: {why}.")


def _refuse_others(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """The value, if its field takes it."""
    field = cls.model_fields[str(info.field_name)]
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or any(_same(value, other) for other in extra["enum"]):  # type: ignore[union-attr]
        return value
    raise PydanticCustomError("unsupported", "{why}", {"why": str(field.description)})


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


class CompletionMessage(StrictModel):
    """A turn as OpenAI writes it, also one of ours that comes back."""

    role: Literal["system", "developer", "user", "assistant"]
    """the author; developer is read as system"""
    content: Content
    """text, or a list of texts and clips"""
    name: Any = _accepted("the model's template has no place for it")
    refusal: Any = _neutral_only("the model never refuses")
    annotations: Any = _neutral_only("the model makes none", [])
    audio: Any = _neutral_only("the model does not speak")
    tool_calls: Any = _neutral_only("the model calls no tools", [])
    function_call: Any = _neutral_only("the model calls no functions")

    _neutral = field_validator("*")(_refuse_others)


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool | None = Field(
        default=None, description="a last chunk with `usage` and no choices"
    )
    include_obfuscation: Any = _accepted("nothing is padded")


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

    model: str = Field(max_length=1000, description="the one that GET /v1/models names")
    messages: Annotated[list[CompletionMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    """the conversation, with the clips in it; the last turn is the user's"""

    _neutral = field_validator("*")(_refuse_others)

    # of this server
    steer: bool = Field(default=False, description="steer the answer towards the audio")
    steering: SteeringOptions | None = Field(
        default=None, description="null: adaptive, live direction"
    )
    choices: Choices | None = Field(default=None, description="the answer is one of these")
    include: list[Literal["timeline", "heads", "unsteered", "silence", "clips"]] = Field(
        default=[], max_length=16, description="more to see in `listening` and `steering`"
    )

    # with their effect
    max_completion_tokens: MaxTokens | None = Field(
        default=None, description="64 where neither this nor max_tokens is given"
    )
    max_tokens: MaxTokens | None = Field(
        default=None, description="the older name of max_completion_tokens"
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0, which is greedy, unless given: OpenAI's is 1"
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    """draw among the most likely tokens whose probabilities reach this sum"""
    seed: Seed | None = None
    """seed of the random draws; null: another one each time"""
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    """strings that end the answer; they are left out of it"""
    stream: bool | None = None
    """send the answer in pieces, as server-sent events"""
    stream_options: StreamOptions | None = None
    """options of a stream"""
    response_format: ResponseFormat | None = None
    """an answer as JSON, one of some given strings"""

    # taken at the value that changes nothing
    n: Any = _neutral_only("a request has one answer; send several requests", 1)
    logprobs: Any = _neutral_only("probabilities come with `choices`", False)
    top_logprobs: Any = _neutral_only("probabilities come with `choices`", 0)
    frequency_penalty: Any = _neutral_only("there are no penalties", 0)
    presence_penalty: Any = _neutral_only("there are no penalties", 0)
    logit_bias: Any = _neutral_only("logits are moved by steering alone", {})
    modalities: Any = _neutral_only("answers are text", ["text"])
    audio: Any = _neutral_only("answers are text; a clip is an input_audio part of a message")
    tools: Any = _neutral_only("the model calls no tools", [])
    tool_choice: Any = _neutral_only("the model calls no tools", "none", "auto")
    functions: Any = _neutral_only("the model calls no functions", [])
    function_call: Any = _neutral_only("the model calls no functions", "none", "auto")
    prediction: Any = _neutral_only("answers are not predicted")
    web_search_options: Any = _neutral_only("nothing is searched")
    moderation: Any = _neutral_only("nothing is moderated")
    reasoning_effort: Any = _neutral_only("the model does not reason apart from its answer", "none")
    verbosity: Any = _neutral_only("say in the question how long the answer should be", "medium")

    # accepted without effect
    user: Any = _accepted("nothing is kept by user")
    safety_identifier: Any = _accepted("nothing is kept by user")
    metadata: Any = _accepted("nothing is stored")
    store: Any = _accepted("nothing is stored")
    parallel_tool_calls: Any = _accepted("there are no tools")
    service_tier: Any = _accepted("there is one tier")
    prompt_cache_key: Any = _accepted("what is cached does not depend on it")
    prompt_cache_options: Any = _accepted("what is cached does not depend on it")
    prompt_cache_retention: Any = _accepted("what is cached does not depend on it")


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
    if body.stream_options and not body.stream:
        raise RequestError("stream_options was sent without stream", "stream_options")
    given: dict[str, Any] = {
        "choices": list(form.choices) if form else body.choices,
        "max_tokens": _max_tokens(body),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
        "stream": body.stream,
    }
    return AudioChatRequest(
        messages=[_message(message) for message in body.messages],
        steer=body.steer,
        steering=body.steering,
        include=body.include,
        **{name: value for name, value in given.items() if value is not None},
    )


def _message(message: CompletionMessage) -> ChatMessage:
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(role=role, content=message.content)


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
    allowed = inner.get("enum", [inner["const"]] if "const" in inner else None)
    if not isinstance(allowed, list) or set(inner) - _KEYWORDS - {"$defs"}:
        raise _unknown_schema()
    try:
        choices = TypeAdapter(Choices).validate_python(allowed, strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise RequestError(f"{_SCHEMA}: the enum can't be choices: {reason}", _SCHEMA) from None
    return JsonChoice(tuple(choices), key)


def _only_property(schema: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and schema of an object's only property, a reference to $defs followed."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or len(properties) != 1 or set(schema) - _OBJECT_KEYWORDS:
        raise _unknown_schema()
    ((key, inner),) = properties.items()
    if isinstance(inner, dict) and "$ref" in inner:
        inner = (schema.get("$defs") or {}).get(str(inner["$ref"]).removeprefix("#/$defs/"))
    if not isinstance(inner, dict):
        raise _unknown_schema()
    return key, inner


def _unknown_schema() -> RequestError:
    return RequestError(
        f"{_SCHEMA}: only a string with `enum`, or an object of one such property, can be"
        ' answered, for example {"type": "string", "enum": ["dog", "cat"]}',
        _SCHEMA,
    )
