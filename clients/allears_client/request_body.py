"""The body of a question."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from allears_client.audio_input import Sound, as_json, as_list
from allears_client.errors import Unsendable

Sounds = Sound | Sequence[Sound]
LongAudio = Literal["refuse", "cut", "window"]
_STEERING = ("strength", "direction", "clip")  # the options that stand under `steering`


class ListeningOptions(TypedDict, total=False):
    """Options of a question that is only listened to; None means the server's default."""

    messages: Sequence[Mapping[str, Any]] | None  # an OpenAI message list, instead of the question
    choices: Sequence[str] | None  # the answer is one of these
    long_audio: LongAudio | None  # for a clip longer than is heard as one
    answer: str  # of any origin, whose words are weighed: `listening.words`
    include: Sequence[Literal["timeline", "heads", "silence", "effect", "words"]]


class Options(TypedDict, total=False):
    """Options of a question that is answered; None means the server's default."""

    messages: Sequence[Mapping[str, Any]] | None
    choices: Sequence[str] | None
    long_audio: LongAudio | None
    steer: bool
    strength: float | Literal["adaptive"]
    direction: Literal["request", "calibrated"]
    clip: int | None  # contrast only this clip with silence; None: all
    include: Sequence[
        Literal["timeline", "heads", "unsteered", "silence", "clips", "effect", "words"]
    ]
    max_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: Sequence[str]


def body(audio: Sounds | None, question: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a question. Raises UnreadableAudio, TypeError for an option that is none."""
    known = {**Options.__annotations__, **ListeningOptions.__annotations__}
    unknown = options.keys() - known.keys()
    if unknown:
        allowed = ", ".join(known)
        raise TypeError(f"{min(unknown)!r} is no option of a question; allowed: {allowed}")
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }
    steering = {name: given.pop(name) for name in _STEERING if name in given}
    if sounds := as_list(audio):
        given["audio"] = [as_json(sound) for sound in sounds]
    if question is not None:
        given["question"] = question
    return {**given, "steering": steering} if steering else given


def encoded(content: Mapping[str, Any]) -> bytes:
    """The bytes of a body's JSON. Raises Unsendable, which names the field."""
    try:
        return _dump(content)
    except _NO_JSON as error:
        name, value = _first_without_json({**content.get("steering", {}), **content})
        raise Unsendable(
            f"{name} is {reprlib.repr(value)}, which can't be sent ({error}); text in UTF-8, finite"
            " numbers, true, false, lists and dictionaries of them can"
        ) from None


_NO_JSON = (TypeError, ValueError, RecursionError)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _first_without_json(fields: Mapping[str, Any]) -> tuple[str, Any]:
    for name, value in fields.items():
        try:
            _dump(value)
        except _NO_JSON:
            return name, value
    return "the question", fields  # nested too deep, but for a level
