"""The server's answers as frozen dataclasses; `raw` is the whole body as it came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class ClipListening:
    """One clip's part of the listening; `influence` and `rank` come with include clips."""

    index: int
    score: float
    influence: float | None = None
    rank: int | None = None
    timeline: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class WindowListening:
    """One window of a clip that is longer than the model's own window."""

    clip: int  # index of the clip
    start_seconds: float
    end_seconds: float
    score: float | None
    verdict: str
    strength: float
    answer: str  # to this window alone
    effect_bits: float | None = None


@dataclass(frozen=True, slots=True)
class WordListening:
    """One word of the answer."""

    text: str
    start: int  # in characters of the answer's text
    end: int
    score: float | None  # mean listening score of its tokens
    effect_bits: float  # of the sound on the word, in the bare model


@dataclass(frozen=True, slots=True)
class Listening:
    """Listening measurements of one answer; None where the server has no profile, or no audio."""

    score: float | None
    percentile: float | None
    verdict: str  # not_listening, partly_listening, listening, unknown
    silence_score: float | None
    threshold: float | None
    hop_seconds: float
    timeline: tuple[float, ...] = ()  # an audio token each, every hop_seconds; sums to the score
    heads: tuple[Mapping[str, Any], ...] = ()
    clips: tuple[ClipListening, ...] = ()  # of several clips, or with include clips
    effect_bits: float | None = None  # of the sound on the bare answer; with include effect
    words: tuple[WordListening, ...] = ()  # with include words


@dataclass(frozen=True, slots=True)
class Steering:
    """The steering of an answer; `reason` says why there was none."""

    applied: bool
    direction: str | None
    strength: float
    relative_norm: float
    reason: str | None
    answer_changed: bool | None = None  # with include unsteered
    unsteered_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """One clip as it was sent, and the part of it that the model heard."""

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
    """Seconds of each step."""

    queue_seconds: float
    prefill_seconds: float
    silence_seconds: float
    decode_seconds: float
    silence_cache: str | None  # hit, miss, None where no twin was run


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer."""

    id: str
    created: int  # seconds since 1970
    model: str
    text: str
    finish_reason: str
    probabilities: Mapping[str, float]  # of the choices
    listening: Listening
    steering: Steering
    audio: tuple[Audio, ...]
    usage: Usage
    timings: Timings
    silent_answer: str | None  # with include silence
    windows: tuple[WindowListening, ...]  # of a clip heard in windows
    warnings: tuple[str, ...]
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heard:
    """Listening measurements of a question that was not answered."""

    id: str
    created: int  # seconds since 1970
    model: str
    listening: Listening
    audio: tuple[Audio, ...]
    timings: Timings
    windows: tuple[WindowListening, ...]  # of a clip heard in windows
    warnings: tuple[str, ...]
    raw: Mapping[str, Any]


def parse_answer(raw: Mapping[str, Any]) -> Answer:
    """The answer in a body of POST /v1/audio-chat."""
    return Answer(
        **_of_both(raw),
        text=raw["answer"],
        finish_reason=raw["finish_reason"],
        probabilities={choice["text"]: choice["probability"] for choice in raw["choices"]},
        steering=_from_known_keys(Steering, raw["steering"]),
        usage=_from_known_keys(Usage, raw["usage"]),
        silent_answer=raw.get("silent_answer"),
    )


def parse_heard(raw: Mapping[str, Any]) -> Heard:
    """The listening in a body of POST /v1/listening-score."""
    return Heard(**_of_both(raw))


_NO_AUDIO: Mapping[str, Any] = {
    **dict.fromkeys(("score", "percentile", "silence_score", "threshold")),
    "verdict": "unknown",
    "hop_seconds": 0.0,
}


def _of_both(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that an answer and a listening have in common."""
    windows = raw.get("windows", ())
    return {
        "id": raw["id"],
        "created": raw["created"],
        "model": raw["model"],
        "listening": _parse_listening(raw["listening"] or _NO_AUDIO),
        "audio": tuple(_from_known_keys(Audio, clip) for clip in raw["audio"]),
        "timings": _from_known_keys(Timings, raw["timings"]),
        "windows": tuple(_from_known_keys(WindowListening, window) for window in windows),
        "warnings": tuple(raw["warnings"]),
        "raw": raw,
    }


def _parse_listening(raw: Mapping[str, Any]) -> Listening:
    lists = {name: tuple(raw.get(name, ())) for name in ("timeline", "heads")}
    clips = tuple(
        _from_known_keys(ClipListening, {**clip, "timeline": tuple(clip.get("timeline", ()))})
        for clip in raw.get("clips", ())
    )
    words = tuple(_from_known_keys(WordListening, word) for word in raw.get("words", ()))
    return _from_known_keys(Listening, {**raw, **lists, "clips": clips, "words": words})


def _from_known_keys(kind: type[Parsed], raw: Mapping[str, Any]) -> Parsed:
    """A dataclass from the keys it knows: a newer server may send more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in raw.items() if name in names})
