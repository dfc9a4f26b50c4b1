"""The bodies of requests. Everything else is refused, with the name of the key.

Unions are told apart by a function, so an error speaks of the branch that was meant. The tags of
the branches stand in angle brackets and are left out of `error.param`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError, from_json

from server.api import neutral_fields
from server.api.strict_model import Body, Extra, StrictModel, validate
from steering.errors import RequestError

MAX_MESSAGES = 64
MAX_TEXT_CHARACTERS = 50_000
_MAX_STOPS = 4
_SHOWN_CHARACTERS = 60
_TEXTS = ("question", "answer")  # fields of a form that may hold the word null


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must hold more than spaces")
    return text


_NOT_BLANK = {"pattern": r"\S"}  # for the document; users get the message of _not_blank
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
WrittenText = Annotated[Text, Field(json_schema_extra=dict(_NOT_BLANK)), AfterValidator(_not_blank)]


def _whole(value: Any) -> Any:
    """3.0 as 3: JSON has one kind of number, and some clients write all of them with a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


MaxTokens = Annotated[int, Field(ge=1), BeforeValidator(_whole)]  # capped later, never refused
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_whole)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, le=1_000_000), BeforeValidator(_whole)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=2)]
ClipIndex = Annotated[int, Field(ge=0, le=63), BeforeValidator(_whole)]


class AudioFile(StrictModel):
    """An audio file in base64. What it is, is read from its bytes."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.FILE
    data: str = Field(
        min_length=1,
        description="a whole audio file in base64, also URL-safe, unpadded or as a data: URI",
        json_schema_extra={"format": "byte"},
    )
    format: str | None = Field(
        default=None, max_length=100, description="any name: the format is read from the bytes"
    )


class TextPart(StrictModel):
    """Words in a message."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.PART
    type: Literal["text"]
    """kind of this part"""
    text: Text
    """the words"""


class InputAudioPart(StrictModel):
    """A clip in a message."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.PART
    type: Literal["input_audio"]
    """kind of this part"""
    input_audio: AudioFile
    """the clip"""


class AudioUrl(StrictModel):
    """Place of a clip: a data: URI, or a host that this deployment allows."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.FILE
    url: str = Field(
        min_length=1,
        description="data:audio/wav;base64,... or a URL on a host of ALLEARS_ALLOWED_AUDIO_HOSTS",
    )


class AudioUrlPart(StrictModel):
    """A clip in a message, by its URL."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.PART
    type: Literal["audio_url"]
    """kind of this part"""
    audio_url: AudioUrl
    """place of the clip"""


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)


_PART_TAGS = {"text": "<text>", "input_audio": "<audio>", "audio_url": "<url>"}


def _known_part(value: Any) -> Any:
    kind = value.get("type") if _is_object(value) else "text"
    if isinstance(kind, str) and kind in _PART_TAGS:
        return value
    raise PydanticCustomError(
        "unsupported",
        "a part of type {kind} can't be heard; its type must be one of: {allowed}",
        {"kind": repr(kind)[:_SHOWN_CHARACTERS], "allowed": ", ".join(_PART_TAGS)},
    )


def _part_tag(value: Any) -> str:
    kind = value.get("type") if _is_object(value) else getattr(value, "type", None)
    return _PART_TAGS.get(str(kind), "<text>")


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
    BeforeValidator(_known_part),
]
Content = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[list[Part], Field(max_length=64), Tag("<parts>")],
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
    """A turn as OpenAI writes it, also one of ours that comes back; audio stands in the user's."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.MESSAGE
    role: Literal["system", "developer", "user", "assistant"]
    """the author; developer is read as system"""
    content: Content
    """text, or a list of texts and clips; of the user's last turn not empty"""

    @model_validator(mode="before")
    @classmethod
    def _allow_no_content(cls, data: Any) -> Any:
        """A turn that is not the user's may have no content: it is an empty one."""
        others = ("system", "developer", "assistant")
        if _is_object(data) and data.get("role") in others and data.get("content") is None:
            return {**data, "content": ""}
        return data


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


def _stop_list(value: Any) -> Any:
    """A single string as a list of it."""
    if value == "":
        raise PydanticCustomError("empty_stop", "an empty string is in every answer; leave it out")
    if isinstance(value, list) and len(value) > _MAX_STOPS:
        raise PydanticCustomError(
            "stops",
            "at most {limit} strings are allowed; {count} were sent",
            {"limit": _MAX_STOPS, "count": len(value)},
        )
    return [value] if isinstance(value, str) else value


StopList = Annotated[list[StopString], Field(max_length=_MAX_STOPS)]
Stop = Annotated[
    StopList, BeforeValidator(_stop_list, json_schema_input_type=StopString | StopList)
]
LongAudio = Literal["refuse", "cut", "window"]
Include = Literal["timeline", "heads", "unsteered", "silence", "clips", "effect", "words"]


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


class AudioQuestion(StrictModel):
    """A question about clips, to be answered or only to be listened to."""

    audio: Audio | None = Field(
        default=None, description="one clip or several, heard before the question"
    )
    question: WrittenText | None = None
    """the question about the clips, unless there are `messages`"""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        Field(None, description="an OpenAI message list, instead of `question`")
    )
    choices: Choices | None = Field(default=None, description="the answer is one of these")
    long_audio: LongAudio | None = Field(
        default=None,
        description="what becomes of a clip longer than is heard as one; null: as deployed",
    )
    include: list[Include] = Field(default=[], max_length=16)
    """more to see in `listening` and `steering`"""


class ListeningRequest(AudioQuestion):
    """POST /v1/listening-score."""

    answer: WrittenText | None = None
    """an answer of any origin, whose words are weighed one by one: `listening.words`"""
    include: list[Literal["timeline", "heads", "silence", "effect", "words"]] = Field(  # type: ignore[assignment]
        default=[], max_length=16
    )
    """more to see in `listening`; words come with an `answer`"""


class AudioChatRequest(AudioQuestion):
    """POST /v1/audio-chat."""

    extras: ClassVar[Mapping[str, Extra]] = neutral_fields.SAMPLING
    steer: bool = False
    """steer the answer towards the audio"""
    steering: SteeringOptions | None = Field(
        default=None, description="null: adaptive, live direction"
    )
    max_tokens: MaxTokens = 64
    """longest answer, in tokens; above what this deployment allows, or what fits behind the
    prompt, the answer ends there with the finish_reason `length`"""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0: the most likely token each time; more: more random, and the sampling fields that are left
    out are those of the checkpoint's generation_config.json, which GET /v1/models shows"""
    top_p: TopP | None = None
    """draw among the most likely tokens whose probabilities reach this sum"""
    top_k: TopK | None = None
    """draw among so many of the most likely tokens; 0 or -1: among all"""
    min_p: MinP | None = None
    """draw among tokens at least this times as likely as the likeliest"""
    repetition_penalty: RepetitionPenalty | None = None
    """above 1: tokens of the prompt and the answer come less easily again, as in `generate` of
    transformers; null: 1, or the checkpoint's own where tokens are drawn"""
    seed: Seed | None = None
    """seed of the random draws; null: another one each time"""
    stop: Stop = Field(
        default=[],
        description="a string, or up to four, that end the answer; they are left out of it",
    )
    stream: bool = False
    """send the answer in pieces, as server-sent events; `token_scores` of a piece are the listening
    scores of its tokens"""


def parse_json(kind: type[Body], body: bytes) -> Body:
    """The request in a JSON body; RequestError for text that is not JSON, or a wrong field."""
    try:
        data = from_json(body, allow_inf_nan=True)  # the fields refuse them, by name
    except ValueError as error:
        raise RequestError(f"the body is not JSON that can be read: {error}") from None
    return validate(kind, data, strict=True)


def parse_form(
    kind: type[Body], fields: Sequence[tuple[str, str]], file_field: str = "audio"
) -> Body:
    """The request in the text fields of a form; lists are JSON or a field repeated.

    An empty field is as left out, and `null` is null but for a question or an answer.
    """
    given = [(name, value) for name, value in fields if not _is_left_out(name, value)]
    data: dict[str, Any] = {}
    if any(name == file_field for name, _ in given):
        raise RequestError(
            f"{file_field} came as text; in a form it is a file, with a file name", file_field
        )
    for name in dict.fromkeys(name for name, _ in given):
        values = [value for key, value in given if key == name]
        data[name] = _extra_value(values) if name in kind.extras else _form_value(name, values)
    return validate(kind, data, strict=False)


def _is_left_out(name: str, value: str) -> bool:
    return not value.strip() or (value.strip() == "null" and name not in _TEXTS)


def _extra_value(values: list[str]) -> Any:
    """The value of another server's field: JSON, or else a text."""
    try:
        return from_json(values[0])
    except ValueError:
        return values[0]


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
