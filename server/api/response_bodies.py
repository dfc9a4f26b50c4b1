"""The bodies of answers, built from an Answer: all at once, or in the pieces of a stream."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from server.api.open_question import OpenQuestion
from server.api.requests import AudioChatRequest, ListeningRequest
from server.api.responses import (
    AudioChat,
    AudioHeard,
    ChoiceProbability,
    ClipListening,
    HeadScore,
    Listening,
    ListeningReport,
    Steering,
    Usage,
    WindowListening,
    WordListening,
)
from server.api.sse import StreamFormat
from server.engine.events import Piece, Started
from server.engine.messages import Answer
from steering import decision
from steering.audio.clip import Clip
from steering.clip_attribution import ClipAttribution
from steering.words.word import Word

_ROUNDING_SECONDS = 0.001  # that resampling may add or take
_DIGITS = 6  # of scores and seconds: what is beyond is noise


def audio_chat(opened: OpenQuestion[AudioChatRequest], answer: Answer) -> AudioChat:
    """The answer of POST /v1/audio-chat."""
    return AudioChat(
        id=answer.id,
        object="audio.chat",
        created=opened.created,
        model=opened.model,
        answer=answer.text,
        finish_reason="length" if answer.finish_reason == "length" else "stop",
        choices=[
            ChoiceProbability(text=text, probability=probability)
            for text, probability in zip(opened.question.choices, answer.probabilities, strict=True)
        ],
        listening=_listening(answer.listening, opened.body.include)
        if answer.prompt.clips
        else None,
        steering=_steering(answer),
        audio=_audio(answer),
        usage=_usage(answer),
        timings=answer.timings.rounded(),
        warnings=_warnings(answer),
        **_silent_answer(answer),
        **_windows(answer),
    )


def audio_chat_stream(opened: OpenQuestion[AudioChatRequest]) -> StreamFormat:
    """The events of a streamed answer; the last has all of the answer but its text."""
    start: dict[str, Any] = {"id": opened.question.id, "object": "audio.chat.chunk"}
    start |= {"created": opened.created, "model": opened.model}
    return StreamFormat(
        begin=(),
        piece=lambda piece: {**start, "delta": piece.text, **token_scores(piece)},
        finish=lambda answer: [
            {**start, "delta": "", **dump(audio_chat(opened, answer)), "object": start["object"]}
        ],
    )


def token_scores(piece: Piece) -> dict[str, Any]:
    """The scores of a piece's tokens as a key of its event, where there are any."""
    return {"token_scores": [round(x, _DIGITS) for x in piece.scores]} if piece.scores else {}


def listening_report(opened: OpenQuestion[ListeningRequest], answer: Answer) -> ListeningReport:
    """The answer of POST /v1/listening-score."""
    return ListeningReport(
        id=answer.id,
        object="listening",
        created=opened.created,
        model=opened.model,
        listening=_listening(answer.listening, opened.body.include),
        audio=_audio(answer),
        timings=answer.timings.rounded(),
        warnings=_warnings(answer),
        **_windows(answer),
    )


def dump(body: BaseModel) -> dict[str, Any]:
    """The JSON object of a body; keys that come with `include` only are left out without it."""
    return body.model_dump(exclude_unset=True)


def headers(started: Started) -> dict[str, str]:
    """The two headers of every answer; the score is `unknown` without a profile or audio."""
    score, strength = started.listening.score, started.steering.strength
    return {
        "x-listening-score": "unknown" if score is None else f"{score:.{_DIGITS}f}",
        "x-steering-strength": f"{strength:.{_DIGITS}g}",
    }


def _listening(listening: decision.Listening, include: Collection[str]) -> Listening:
    extra: dict[str, Any] = {}
    if "timeline" in include:
        extra["timeline"] = [round(x, _DIGITS) for x in listening.timeline.tolist()]
    if "heads" in include:
        extra["heads"] = [
            HeadScore(layer=layer, head=head, score=round(score, _DIGITS))
            for layer, head, score in listening.heads
        ]
    if len(listening.clips) > 1 or "clips" in include:
        extra["clips"] = [_clip(i, clip, include) for i, clip in enumerate(listening.clips)]
    if "words" in include or listening.words:
        extra["words"] = [_word(word) for word in listening.words]
    return Listening(
        score=_round(listening.score),
        percentile=_round(listening.percentile),
        verdict=listening.verdict,  # type: ignore[arg-type]  # pydantic holds it to the four
        silence_score=_round(listening.silence_score),
        effect_bits=_round(listening.effect_bits),
        threshold=_round(listening.threshold),
        hop_seconds=listening.hop_seconds,
        **extra,
    )


def _clip(index: int, clip: ClipAttribution, include: Collection[str]) -> ClipListening:
    extra: dict[str, Any] = {}
    if "clips" in include:
        extra = {"influence": _round(clip.influence), "rank": clip.rank}
    if "timeline" in include:
        extra["timeline"] = [round(x, _DIGITS) for x in clip.timeline.tolist()]
    return ClipListening(index=index, score=round(clip.score, _DIGITS), **extra)


def _word(word: Word) -> WordListening:
    return WordListening(
        text=word.text,
        start=word.start,
        end=word.end,
        score=_round(word.score),
        effect_bits=round(word.effect_bits, _DIGITS),
    )


def _silent_answer(answer: Answer) -> dict[str, Any]:
    return {} if answer.silent is None else {"silent_answer": answer.silent}


def _windows(answer: Answer) -> dict[str, Any]:
    """The windows of a clip that was heard in windows, as keys of a body."""
    if not answer.windows:
        return {}
    windows = [
        WindowListening(
            clip=window.clip,
            start_seconds=round(window.start_seconds, _DIGITS),
            end_seconds=round(window.end_seconds, _DIGITS),
            score=_round(window.score),
            verdict=window.verdict,
            strength=window.strength,
            answer=window.answer,
            effect_bits=_round(window.effect_bits),
        )
        for window in answer.windows
    ]
    return {"windows": windows}


def _steering(answer: Answer) -> Steering:
    extra: dict[str, Any] = {}
    if answer.unsteered is not None:
        changed = answer.unsteered != answer.text
        extra = {"answer_changed": changed, "unsteered_answer": answer.unsteered}
    return Steering(**asdict(answer.steering), **extra)


def _truncated(clip: Clip, heard_seconds: float) -> bool:
    return clip.submitted_seconds - heard_seconds > _ROUNDING_SECONDS


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
    """Sentences about clips that are cut off, silent or did not reach the model."""
    warnings, prompt = [], answer.prompt
    if not prompt.clips:
        return ["the conversation holds no audio: the answer is from its text alone"]
    if not prompt.audio_mask.any():
        warnings.append("the audio never reached the model: its prompt holds no audio token")
    for i, (clip, heard) in enumerate(zip(prompt.clips, prompt.heard_seconds, strict=True)):
        if _truncated(clip, heard):
            warnings.append(
                f"clip {i} is {clip.submitted_seconds:.2f} s long; the model hears the first"
                f' {heard:g} s. Send the rest in another request, or long_audio "window"'
            )
        warnings += [f"clip {i}: {warning}" for warning in clip.warnings]
        if not clip.samples.any():
            warnings.append(
                f"clip {i} is digital silence: every sample is zero. Check the recording"
            )
    return warnings


def _usage(answer: Answer) -> Usage:
    prompt, completion = len(answer.prompt.tokens), answer.completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        audio_tokens=int(answer.prompt.audio_mask.sum()),
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
