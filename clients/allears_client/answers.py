"""What a server answers, as frozen dataclasses; `raw` is the whole body as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Listening:
    """How far the audio decided the answer; None where the server has no profile."""

    score: float | None
    percentile: float | None
    verdict: str  # not_listening, partly_listening, listening, unknown
    silence_score: float | None
    threshold: float | None
    hop_seconds: float
    timeline: tuple[float, ...] = ()  # an audio token each, every hop_seconds; sums to the score
    heads: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Steering:
    """What was done to the answer; `reason` says why nothing was."""

    applied: bool
    direction: str | None
    strength: float
    relative_norm: float
    reason: str | None
    answer_changed: bool | None = None  # with include unsteered
    unsteered_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """One clip: what was sent, and how much of it the model heard."""

    submitted_seconds: float
    heard_seconds: float
    truncated: bool
    sample_rate_hz: int
    channels: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; those of the audio are among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    audio_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds."""

    queue_seconds: float
    prefill_seconds: float
    silence_seconds: float
    decode_seconds: float
    silence_cache: str | None  # hit, miss, None where no twin was run


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer."""

    id: str
    text: str
    finish_reason: str
    probabilities: Mapping[str, float]  # of the choices
    listening: Listening
    steering: Steering
    audio: tuple[Audio, ...]
    usage: Usage
    timings: Timings
    silent_answer: str | None
    warnings: tuple[str, ...]
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the server heard of a question it did not answer."""

    id: str
    listening: Listening
    audio: tuple[Audio, ...]
    warnings: tuple[str, ...]
    raw: Mapping[str, Any]


def answer(raw: Mapping[str, Any]) -> Answer:
    """The answer in a body of POST /v1/audio-chat."""
    return Answer(
        id=raw["id"],
        text=raw["answer"],
        finish_reason=raw["finish_reason"],
        probabilities={one["text"]: one["probability"] for one in raw["choices"]},
        listening=_listening(raw["listening"]),
        steering=_known(Steering, raw["steering"]),
        audio=tuple(_known(Audio, one) for one in raw["audio"]),
        usage=_known(Usage, raw["usage"]),
        timings=_known(Timings, raw["timings"]),
        silent_answer=raw.get("silent_answer"),
        warnings=tuple(raw["warnings"]),
        raw=raw,
    )


def heard(raw: Mapping[str, Any]) -> Heard:
    """What a body of POST /v1/listening-score says."""
    audio = tuple(_known(Audio, one) for one in raw["audio"])
    return Heard(raw["id"], _listening(raw["listening"]), audio, tuple(raw["warnings"]), raw)


def _listening(raw: Mapping[str, Any]) -> Listening:
    lists = {name: tuple(raw.get(name, ())) for name in ("timeline", "heads")}
    return _known(Listening, {**raw, **lists})


def _known(kind: type[Parsed], raw: Mapping[str, Any]) -> Parsed:
    """A dataclass from the keys it knows: a newer server may send more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in raw.items() if name in names})
