"""The room for clips: how much of each is heard, where the window or a row holds less than all.

A row has room for a prompt and its answer. What text and answer leave is the clips': where they
need more, the longest are heard up to one length, which is as long as the row allows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.engine.messages import Question
from server.engine.runtime import Runtime
from steering.audio.clip import Clip
from steering.errors import AudioTooLarge, RequestError
from steering.model.audio_model import AudioModel
from steering.prompt import Prompt
from steering.words.word import tokenize

_ANSWER_SHARE = 8  # of a row's tokens, one in so many is kept for the answer at most
_LEAST_SECONDS = 1.0  # that a clip is shortened to


@dataclass(frozen=True, slots=True)
class ClipRoom:
    """What a row holds of a question's clips."""

    clips: tuple[Clip, ...]
    heard_seconds: tuple[float, ...]  # of each clip, if it is heard as one
    text_tokens: int
    row_tokens: int
    answer_tokens: int  # kept for the answer
    needed_tokens: int  # of all clips, each as long as the model's window at most
    total_seconds: float  # that the row holds of one clip

    @property
    def shortened(self) -> list[int]:
        """Indices of clips that are not heard whole, as one."""
        heard = zip(self.clips, self.heard_seconds, strict=True)
        return [i for i, (clip, seconds) in enumerate(heard) if clip.seconds > seconds]

    def why(self) -> str:
        """What does not fit, in numbers, and what would."""
        wanted = self.text_tokens + self.needed_tokens + self.answer_tokens
        return (
            f"the audio, {sum(clip.seconds for clip in self.clips):,.1f} s in"
            f" {len(self.clips)} clip{'s' * (len(self.clips) > 1)}, is {self.needed_tokens:,}"
            f" tokens; beside {self.text_tokens:,} of text and {self.answer_tokens:,} for the"
            f" answer a row of {self.row_tokens:,} holds {self.total_seconds:.1f} s: send fewer or"
            f" shorter clips or less text, or serve with ALLEARS_MAX_CONTEXT_TOKENS={wanted}"
        )


def clips_of(question: Question) -> tuple[Clip, ...]:
    """The clips of a question, in their order."""
    return tuple(part for m in question.messages for part in m.parts if isinstance(part, Clip))


def may_be_whole(runtime: Runtime, question: Question) -> bool:
    """Whether all may be well: each clip within the window, or to be cut there, and all of them
    within a row without text.
    """
    model, clips = runtime.model, clips_of(question)
    if question.long_audio != "cut" and any(c.seconds > model.max_clip_seconds for c in clips):
        return False
    return not clips or sum(clip_tokens(model, clip) for clip in clips) < runtime.slots.tokens


def fits_row(runtime: Runtime, question: Question, prompt: Prompt) -> bool:
    """Whether a row holds the prompt and its answer. Raises RequestError if text alone does not."""
    row_tokens, tokens = runtime.slots.tokens, len(prompt.tokens)
    if prompt.clips:
        return tokens + answer_tokens(runtime, question) <= row_tokens
    limit = row_tokens - question.generate
    if tokens > limit:
        raise RequestError(f"the prompt has {tokens} tokens; at most {limit} fit here: shorten it")
    return True


def answer_tokens(runtime: Runtime, question: Question) -> int:
    """Tokens of a row that are kept for the answer; choices are no part of it."""
    if question.given_answer:
        return len(tokenize(runtime.model, question.given_answer).ids)
    if not question.generate or question.choices:
        return int(question.generate)
    return min(question.sampling.max_tokens, max(1, runtime.slots.tokens // _ANSWER_SHARE))


def clip_tokens(model: AudioModel, clip: Clip) -> int:
    """Audio tokens of a clip, up to the model's window."""
    extractor = model.processor.feature_extractor
    samples = min(len(clip.samples), int(model.max_clip_seconds * model.sample_rate_hz))
    return model.audio_tokens(-(-samples // int(extractor.hop_length)))


def measure_room(runtime: Runtime, question: Question, text_tokens: int) -> ClipRoom:
    """The room that a row has for a question's clips beside its text.

    Raises RequestError if a clip would have to be shortened to less than a second.
    """
    model, row_tokens = runtime.model, runtime.slots.tokens
    clips, kept = clips_of(question), answer_tokens(runtime, question)
    needed = [clip_tokens(model, clip) for clip in clips]
    room = row_tokens - text_tokens - kept
    share = _equal_share(needed, room)
    longest = _seconds_of(model, share)
    clip_room = ClipRoom(
        clips,
        tuple(
            min(clip.seconds, model.max_clip_seconds) if tokens <= share else longest
            for clip, tokens in zip(clips, needed, strict=True)
        ),
        text_tokens,
        row_tokens,
        kept,
        sum(needed),
        _seconds_of(model, room),
    )
    if longest < _LEAST_SECONDS and max(needed) > share:
        raise RequestError(clip_room.why())
    return clip_room


def refuse_shortened(room: ClipRoom, question: Question) -> None:
    """Raise AudioTooLarge for the first clip that is not heard whole, under its field."""
    error = AudioTooLarge(f'{room.why()}, or send long_audio "window" or "cut"')
    parts = [
        (m, i) for m in question.messages for i, p in enumerate(m.parts) if isinstance(p, Clip)
    ]
    message, index = parts[room.shortened[0]]
    error.param = message.fields[index] if message.fields else None
    raise error


def cut_clips(room: ClipRoom, question: Question) -> Question:
    """The question with its clips as long as they are heard."""
    rate_hz = room.clips[0].sample_rate_hz
    heard = {
        clip: replace(clip, samples=clip.samples[: round(seconds * rate_hz)])
        for clip, seconds in zip(room.clips, room.heard_seconds, strict=True)
    }
    return replace_clips(question, heard)


def replace_clips(question: Question, others: dict[Clip, Clip]) -> Question:
    """The question with other clips in the place of some."""
    messages = tuple(
        replace(m, parts=tuple(others.get(p, p) if isinstance(p, Clip) else p for p in m.parts))
        for m in question.messages
    )
    return replace(question, messages=messages)


def _equal_share(needed: Sequence[int], room: int) -> int:
    """The most tokens of any clip, so that all fit the room; all they need if it is enough."""
    left = max(0, room)
    for count, tokens in zip(range(len(needed), 0, -1), sorted(needed), strict=True):
        if tokens * count > left:
            return left // count
        left -= tokens
    return max(needed)


def _seconds_of(model: AudioModel, tokens: int) -> float:
    """The longest sound of at most so many audio tokens."""
    extractor = model.processor.feature_extractor
    hop = int(extractor.hop_length)
    frames = range(int(model.max_clip_seconds * model.sample_rate_hz) // hop + 1)
    longest = bisect_right(frames, tokens, key=model.audio_tokens) - 1
    return max(0, longest) * hop / model.sample_rate_hz
