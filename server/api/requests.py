"""The bodies of requests. Everything else is refused, with the name of the key.

Unions are told apart by a function, so an error speaks of the branch that was meant. The tags of
the branches stand in angle brackets and are left out of `error.param`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from steering.errors import RequestError

MAX_MESSAGES = 64
MAX_TEXT_CHARACTERS = 50_000
_SHOWN_CHARACTERS = 60


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must hold more than spaces")
    return text


_NOT_BLANK = {"pattern": r"\S"}  # for the document; users get the message of _not_blank
Text = Annotated[
    str,
    Field(max_length=MAX_TEXT_CHARACTERS, json_schema_extra=dict(_NOT_BLANK)),
    AfterValidator(_not_blank),
]


def _whole(value: Any) -> Any:
    """3.0 as 3: JSON has one kind of number, and some clients write all of them with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


MaxTokens = Annotated[int, Field(ge=1, le=1024), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
ClipIndex = Annotated[int, Field(ge=0, le=63), BeforeValidator(_whole)]


class StrictModel(BaseModel):
    """A JSON object of ours: no unknown keys, no NaN, no infinity.

    The text below a field is its description in /docs.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """The data as it came; pydantic's own refusal does not say which keys there are."""
        unknown = [key for key in data if key not in cls.model_fields] if _is_object(data) else []
        if unknown:
            key, allowed = str(unknown[0])[:_SHOWN_CHARACTERS], list(cls.model_fields)
            close = difflib.get_close_matches(key, allowed, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise PydanticCustomError(
                "unknown_key",
                "unknown key; allowed: {allowed}{meant}",
                {"key": key, "allowed": ", ".join(allowed), "meant": meant},
            )
        return data


class AudioFile(StrictModel):
    """An audio file in base64. What it is, is read from its bytes; `format` may say it as well."""

    data: str = Field(
        min_length=1,
        description="a whole WAV, FLAC, OGG or MP3 file in base64",
        json_schema_extra={"format": "byte"},
    )
    format: Literal["wav", "flac", "ogg", "opus", "mp3"] | None = None
    """format of the file; read from its bytes in any case"""


def _known_part(kind: str) -> str:
    if kind != "text":
        raise PydanticCustomError("part", "must be text, input_audio or audio_url")
    return kind


class TextPart(StrictModel):
    """Words in a message."""

    type: Annotated[str, AfterValidator(_known_part), Field(json_schema_extra={"const": "text"})]
    """kind of this part"""
    text: Text
    """the words"""


class InputAudioPart(StrictModel):
    """A clip in a message."""

    type: Literal["input_audio"]
    """kind of this part"""
    input_audio: AudioFile
    """the clip"""


class AudioUrl(StrictModel):
    """Place of a clip: a data: URI, or a host that this deployment allows."""

    url: str = Field(
        min_length=1,
        description="data:audio/wav;base64,... or a URL on a host of ALLEARS_ALLOWED_AUDIO_HOSTS",
    )


class AudioUrlPart(StrictModel):
    """A clip in a message, by its URL."""

    type: Literal["audio_url"]
    """kind of this part"""
    audio_url: AudioUrl
    """place of the clip"""


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


def _part_tag(value: Any) -> str:
    kind = value.get("type") if _is_object(value) else getattr(value, "type", None)
    return {"input_audio": "<audio>", "audio_url": "<url>"}.get(str(kind), "<text>")


def _count_tag(value: Any) -> str:
    return "<many>" if isinstance(value, list | tuple) else "<one>"


def _content_tag(value: Any) -> str:
    return "<parts>" if isinstance(value, list | tuple) else "<string>"


def _strength_tag(value: Any) -> str:
    return "<word>" if isinstance(value, str) else "<number>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[InputAudioPart, Tag("<audio>")]
    | Annotated[AudioUrlPart, Tag("<url>")],
    Discriminator(_part_tag),
]
Content = Annotated[
    Annotated[Text, Tag("<string>")]
    | Annotated[list[Part], Field(min_length=1, max_length=64), Tag("<parts>")],
    Discriminator(_content_tag),
]
Audio = Annotated[
    Annotated[AudioFile, Tag("<one>")]
    | Annotated[list[AudioFile], Field(min_length=1), Tag("<many>")],
    Discriminator(_count_tag),
]
Strength = Annotated[
    Annotated[Literal["adaptive"], Tag("<word>")] | Annotated[float, Field(ge=0), Tag("<number>")],
    Discriminator(_strength_tag),
]


class ChatMessage(StrictModel):
    """One turn, as OpenAI writes it; audio stands in the user's."""

    role: Literal["system", "user", "assistant"]
    """the author"""
    content: Content
    """text, or a list of texts and clips"""


def _distinct(choices: list[str]) -> list[str]:
    seen: set[str] = set()
    for choice in choices:
        if choice.strip() in seen:
            raise PydanticCustomError(
                "repeated", "{choice} stands twice; choices must differ", {"choice": repr(choice)}
            )
        seen.add(choice.strip())
    return choices


Choice = Annotated[
    str, Field(max_length=1000, json_schema_extra=dict(_NOT_BLANK)), AfterValidator(_not_blank)
]
Choices = Annotated[
    list[Choice],
    Field(min_length=2, max_length=26, json_schema_extra={"uniqueItems": True}),
    AfterValidator(_distinct),
]
StopString = Annotated[str, Field(min_length=1, max_length=200)]


class SteeringOptions(StrictModel):
    """How to steer if `steer` is true."""

    direction: Literal["request", "calibrated"] = "request"
    """request: this audio minus its silence; calibrated: the profile's mean direction"""
    strength: Strength = Field(
        default="adaptive",
        description='"adaptive", or a number from 0 to the profile\'s max_strength',
    )
    clip: ClipIndex | None = Field(
        default=None, description="contrast only this clip with silence; null: all"
    )


class ListeningRequest(StrictModel):
    """POST /v1/listening-score."""

    audio: Audio | None = Field(
        default=None, description="one clip or several, heard before the question"
    )
    question: Text | None = None
    """the question about the clips, unless there are `messages`"""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        Field(None, description="an OpenAI message list, instead of `question`")
    )
    choices: Choices | None = Field(default=None, description="the answer is one of these")
    long_audio: Literal["refuse", "cut", "window"] | None = Field(
        default=None,
        description="what becomes of a clip longer than the model's window; null: as deployed",
    )
    include: list[Literal["timeline", "heads", "silence"]] = Field(default=[], max_length=16)
    """more to see in `listening`"""


class AudioChatRequest(ListeningRequest):
    """POST /v1/audio-chat."""

    steer: bool = False
    """steer the answer towards the audio"""
    steering: SteeringOptions | None = Field(
        default=None, description="null: adaptive, live direction"
    )
    max_tokens: MaxTokens = 64
    """longest answer, in tokens"""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0: the most likely token each time; more: more random"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """draw among the most likely tokens whose probabilities reach this sum"""
    seed: Seed | None = None
    """seed of the random draws; null: another one each time"""
    stop: list[StopString] = Field(default=[], max_length=4)
    """strings that end the answer; they are left out of it"""
    stream: bool = False
    """send the answer in pieces, as server-sent events"""
    include: list[Literal["timeline", "heads", "unsteered", "silence", "clips"]] = Field(  # type: ignore[assignment]
        default=[], max_length=16
    )
    """more to see in `listening` and `steering`"""


Body = TypeVar("Body", bound=StrictModel)


def parse_json(kind: type[Body], body: bytes) -> Body:
    """The request in a JSON body; RequestError for text that is not JSON, or a wrong field."""
    try:
        data = from_json(body, allow_inf_nan=True)  # the fields refuse them, by name
    except ValueError as error:
        raise RequestError(f"the body is not JSON that can be read: {error}") from None
    return _validate(kind, data, strict=True)


def parse_form(kind: type[Body], fields: Sequence[tuple[str, str]]) -> Body:
    """The request in the text fields of a form; lists are JSON or a field repeated."""
    data: dict[str, Any] = {}
    if any(name == "audio" for name, _ in fields):
        raise RequestError("audio came as text; in a form it is a file, with a file name", "audio")
    for name in dict.fromkeys(name for name, _ in fields):
        data[name] = _form_value(name, [value for key, value in fields if key == name])
    return _validate(kind, data, strict=False)


def _form_value(name: str, values: list[str]) -> Any:
    if name in ("choices", "stop", "include"):
        if len(values) == 1 and values[0].lstrip().startswith("["):
            return _field_json(name, values[0])
        if name == "include":
            return [name.strip() for value in values for name in value.split(",") if name.strip()]
        return values
    if len(values) > 1:
        raise RequestError(f"{name} stands {len(values)} times; send it once", name)
    return _field_json(name, values[0]) if name in ("steering", "messages") else values[0]


def _field_json(name: str, value: str) -> Any:
    try:
        return from_json(value)
    except ValueError as error:
        raise RequestError(f"{name} is not JSON that can be read: {error}", name) from None


def _validate(kind: type[Body], data: Any, *, strict: bool) -> Body:
    try:
        return kind.model_validate(data, strict=strict)
    except ValidationError as error:
        raise wrong_field(error.errors(include_url=False)) from None


def wrong_field(errors: Sequence[Any]) -> RequestError:
    """A RequestError that names the first of pydantic's errors, and how many there are."""
    first = errors[0]
    context = first.get("ctx") or {}
    key = [context["key"]] if first["type"] == "unknown_key" else []
    names = [str(part) for part in (*first["loc"], *key) if not str(part).startswith("<")]
    param = ".".join(names)[:200]
    more = f" ({len(errors) - 1} more fields are wrong)" if len(errors) > 1 else ""
    return RequestError(
        f"{param or 'the body'}: {first['msg']}{_value_seen(first)}{more}", param or None
    )


def _value_seen(details: Any) -> str:
    """`; got ...`: the wrong value, cut short; empty for values that explain nothing."""
    value = details["input"]
    if details["type"] in ("missing", "unknown_key", "repeated") or isinstance(value, dict | list):
        return ""
    shown = json.dumps(value, default=repr)
    cut = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"
    return f"; got {cut}"
