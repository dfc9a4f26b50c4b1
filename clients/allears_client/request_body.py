"""The body of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from allears_client.audio_input import Sound, as_json, one_or_many

Sounds = Sound | Sequence[Sound]


class Options(TypedDict, total=False):
    """What may be said beside the sound and the question; the server's defaults hold else.

    None is the same as nothing said.
    """

    messages: Sequence[Mapping[str, Any]] | None  # an OpenAI message list, instead of the question
    choices: Sequence[str] | None
    steer: bool
    strength: float | Literal["adaptive"]
    direction: Literal["request", "calibrated"]
    include: Sequence[Literal["timeline", "heads", "unsteered", "silence"]]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: Sequence[str]


class ListeningOptions(TypedDict, total=False):
    """The same for a question that is only listened to."""

    messages: Sequence[Mapping[str, Any]] | None
    choices: Sequence[str] | None
    include: Sequence[Literal["timeline", "heads", "silence"]]


def body(audio: Sounds | None, question: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a question. Raises UnreadableAudio, TypeError for an option that is none."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        allowed = ", ".join(Options.__annotations__)
        raise TypeError(f"{min(unknown)!r} is no option of a question; allowed: {allowed}")
    steering = {key: options[key] for key in ("strength", "direction") if key in options}
    plain = {key: v for key, v in options.items() if v is not None and key not in steering}
    found = {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}
    sounds = one_or_many(audio)
    if sounds:
        found["audio"] = [as_json(sound) for sound in sounds]
    if question is not None:
        found["question"] = question
    return {**found, **({"steering": steering} if steering else {})}
