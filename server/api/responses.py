"""What an answer says: the bodies that go out, built from an Answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel

from server.engine import messages
from server.engine.messages import Answer, Question
from steering import decision
from steering.audio.clip import Clip
from steering.clip_attribution import ClipAttribution

_DIGITS = 6  # of scores and seconds: what is beyond is noise


class HeadScore(BaseModel):
    layer: int
    head: int
    score: float


class ClipListening(BaseModel):
    """One clip's part of the listening; influence and rank come with include clips."""

    index: int
    score: float
    influence: float | None = None
    rank: int | None = None
    timeline: list[float] = []  # with include timeline


class WindowListening(BaseModel):
    """One window of a clip that is longer than the model's own."""

    clip: int
    start_seconds: float
    end_seconds: float
    score: float | None
    verdict: str
    strength: float
    answer: str


class Listening(BaseModel):
    """How far the audio decided; null where this deployment has no profile."""

    score: float | None
    percentile: float | None
    verdict: Literal["not_listening", "partly_listening", "listening", "unknown"]
    silence_score: float | None
    threshold: float | None
    hop_seconds: float
    timeline: list[float] = []  # with include timeline
    heads: list[HeadScore] = []  # with include heads
    clips: list[ClipListening] = []  # of several clips, or with include clips


class Steering(BaseModel):
    """What was done to the answer; `reason` says why nothing was."""

    applied: bool
    direction: str | None
    strength: float
    relative_norm: float
    reason: str | None
    answer_changed: bool = False  # with include unsteered
    unsteered_answer: str = ""  # with include unsteered


class ChoiceProbability(BaseModel):
    text: str
    probability: float


class AudioHeard(BaseModel):
    """One clip: what was sent, and how much of it the model heard."""

    submitted_seconds: float
    heard_seconds: float
    truncated: bool
    sample_rate_hz: int
    channels: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    audio_tokens: int


class Timings(BaseModel):
    queue_seconds: float
    prefill_seconds: float
    silence_seconds: float
    decode_seconds: float
    silence_cache: Literal["hit", "miss"] | None


class AudioChat(BaseModel):
    """The answer of POST /v1/audio-chat."""

    id: str
    object: Literal["audio.chat", "audio.chat.chunk"]
    created: int
    model: str
    answer: str
    finish_reason: Literal["stop", "length"]
    choices: list[ChoiceProbability]
    listening: Listening
    steering: Steering
    silent_answer: str = ""  # with include silence
    windows: list[WindowListening] = []  # of a clip heard in windows
    audio: list[AudioHeard]
    usage: Usage
    timings: Timings
    warnings: list[str]


class ListeningReport(BaseModel):
    """The answer of POST /v1/listening-score."""

    id: str
    object: Literal["listening"]
    created: int
    model: str
    listening: Listening
    audio: list[AudioHeard]
    timings: Timings
    warnings: list[str]
    windows: list[WindowListening] = []  # of a clip heard in windows


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReport(BaseModel):
    """The body of every error."""

    error: ErrorDetails


def audio_chat(
    model: str, created: int, question: Question, answer: Answer, include: Iterable[str]
) -> dict[str, Any]:
    """The body of an answer; keys that come with `include` only are left out without it."""
    body = AudioChat(
        id=answer.id,
        object="audio.chat",
        created=created,
        model=model,
        answer=answer.text,
        finish_reason="length" if answer.finish_reason == "length" else "stop",
        choices=[
            ChoiceProbability(text=text, probability=probability)
            for text, probability in zip(question.choices, answer.probabilities, strict=True)
        ],
        listening=_listening(answer.listening, set(include)),
        steering=_steering(answer),
        audio=_audio(answer),
        usage=_usage(answer),
        timings=_timings(answer.timings),
        warnings=_warnings(answer),
        **_extras(answer),
    )
    return body.model_dump(exclude_unset=True)


def chunk_start(id: str, created: int, model: str) -> dict[str, Any]:
    """What every event of a stream has."""
    return {"id": id, "object": "audio.chat.chunk", "created": created, "model": model}


def listening_report(
    model: str, created: int, answer: Answer, include: Iterable[str]
) -> dict[str, Any]:
    """The body for a question that was only listened to."""
    body = ListeningReport(
        id=answer.id,
        object="listening",
        created=created,
        model=model,
        listening=_listening(answer.listening, set(include)),
        audio=_audio(answer),
        timings=_timings(answer.timings),
        warnings=_warnings(answer),
        **_windows(answer),
    )
    return body.model_dump(exclude_unset=True)


def headers(listening: decision.Listening, steering: decision.Steering) -> dict[str, str]:
    """The two headers of every answer; the score is `unknown` without a profile."""
    score = "unknown" if listening.score is None else f"{listening.score:.{_DIGITS}f}"
    return {"x-listening-score": score, "x-steering-strength": f"{steering.strength:.{_DIGITS}g}"}


def _listening(found: decision.Listening, include: set[str]) -> Listening:
    extra: dict[str, Any] = {}
    if "timeline" in include:
        extra["timeline"] = [round(x, _DIGITS) for x in found.timeline.tolist()]
    if "heads" in include:
        extra["heads"] = [
            HeadScore(layer=layer, head=head, score=round(score, _DIGITS))
            for layer, head, score in found.heads
        ]
    if len(found.clips) > 1 or "clips" in include:
        extra["clips"] = [_clip(i, one, include) for i, one in enumerate(found.clips)]
    return Listening(
        score=_round(found.score),
        percentile=_round(found.percentile),
        verdict=found.verdict,  # type: ignore[arg-type]  # pydantic holds it to the four
        silence_score=_round(found.silence_score),
        threshold=_round(found.threshold),
        hop_seconds=found.hop_seconds,
        **extra,
    )


def _clip(index: int, found: ClipAttribution, include: set[str]) -> ClipListening:
    extra: dict[str, Any] = {}
    if "clips" in include:
        extra = {"influence": _round(found.influence), "rank": found.rank}
    if "timeline" in include:
        extra["timeline"] = [round(x, _DIGITS) for x in found.timeline.tolist()]
    return ClipListening(index=index, score=round(found.score, _DIGITS), **extra)


def _extras(answer: Answer) -> dict[str, Any]:
    """What only some answers have."""
    silent = {} if answer.silent is None else {"silent_answer": answer.silent}
    return silent | _windows(answer)


def _windows(answer: Answer) -> dict[str, Any]:
    """The windows, of a clip that was heard in some."""
    found = [
        WindowListening(
            clip=one.clip,
            start_seconds=round(one.start_seconds, _DIGITS),
            end_seconds=round(one.end_seconds, _DIGITS),
            score=_round(one.score),
            verdict=one.verdict,
            strength=one.strength,
            answer=one.answer,
        )
        for one in answer.windows
    ]
    return {"windows": found} if found else {}


def _steering(answer: Answer) -> Steering:
    steering, extra = answer.steering, {}
    if answer.unsteered is not None:
        changed = answer.unsteered != answer.text
        extra = {"answer_changed": changed, "unsteered_answer": answer.unsteered}
    return Steering(
        applied=steering.applied,
        direction=steering.direction,
        strength=steering.strength,
        relative_norm=steering.relative_norm,
        reason=steering.reason,
        **extra,  # type: ignore[arg-type]
    )


def _truncated(clip: Clip, heard_seconds: float) -> bool:
    return clip.seconds > heard_seconds


def _audio(answer: Answer) -> list[AudioHeard]:
    prompt = answer.prompt
    return [
        AudioHeard(
            submitted_seconds=round(clip.submitted_seconds, _DIGITS),
            heard_seconds=round(heard, _DIGITS),
            truncated=_truncated(clip, heard),
            sample_rate_hz=clip.submitted_rate_hz,
            channels=clip.channels,
        )
        for clip, heard in zip(prompt.clips, prompt.heard_seconds, strict=True)
    ]


def _warnings(answer: Answer) -> list[str]:
    """What is worth knowing about the clips, a sentence each."""
    found, prompt = [], answer.prompt
    if not prompt.audio_mask.any():
        found.append("the audio never reached the model: its prompt holds no audio token")
    for i, (clip, heard) in enumerate(zip(prompt.clips, prompt.heard_seconds, strict=True)):
        if _truncated(clip, heard):
            found.append(
                f"clip {i} is {clip.submitted_seconds:.2f} s long; the model hears the first"
                f" {heard:g} s. Send the rest as another clip"
            )
        if not clip.samples.any():
            found.append(f"clip {i} is digital silence: every sample is zero. Check the recording")
    return found


def _usage(answer: Answer) -> Usage:
    prompt, completion = len(answer.prompt.tokens), answer.completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        audio_tokens=int(answer.prompt.audio_mask.sum()),
    )


def _timings(timings: messages.Timings) -> Timings:
    return Timings(
        queue_seconds=round(timings.queue_seconds, _DIGITS),
        prefill_seconds=round(timings.prefill_seconds, _DIGITS),
        silence_seconds=round(timings.silence_seconds, _DIGITS),
        decode_seconds=round(timings.decode_seconds, _DIGITS),
        silence_cache=timings.silence_cache,
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
