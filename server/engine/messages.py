"""The engine's messages: a Question goes in, an Answer comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from steering.decision import Listening, Steering, SteeringRequest
from steering.generation import Sampling
from steering.prompt import Message, Prompt

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Question:
    """A request as the engine takes it: checked, its audio decoded."""

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...] = ()
    steering: SteeringRequest = field(default_factory=SteeringRequest)
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    with_unsteered: bool = False  # answer bare as well
    with_silence: bool = False  # answer the silent twin as well, and score it
    with_clips: bool = False  # find out which clip decided
    with_effect: bool = False  # measure what the sound did to the answer, steered or not
    with_words: bool = False  # and to each of its words
    given_answer: str = ""  # whose words are weighed in place of a generated one's
    contrast_clip: int | None = None  # contrast this clip with its silence; None is all of them
    long_audio: Literal["refuse", "cut", "window"] = "cut"  # a clip longer than a row hears as one
    generate: bool = True  # False: only listen


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that each step of an answer took; of a clip heard in windows, of all windows."""

    queue_seconds: float
    """wait for a place in the model's batch"""
    prefill_seconds: float
    """run of the prompt, and of the silent twin's question beside it"""
    silence_seconds: float
    """run of the silent twin up to the question, where it was not cached"""
    decode_seconds: float
    """run of the answer's tokens"""
    silence_cache: Literal["hit", "miss"] | None
    """whether the silent twin's prefix was cached; null if no twin was run"""

    def seconds(self) -> dict[str, float]:
        """The durations by their names, in the order of the steps."""
        return {name: value for name, value in asdict(self).items() if name.endswith("_seconds")}

    def rounded(self) -> Timings:
        """The same in whole microseconds: what is beyond is noise."""
        rounded: dict[str, Any] = {k: round(x, _DIGITS) for k, x in self.seconds().items()}
        return replace(self, **rounded)


@dataclass(frozen=True, slots=True, eq=False)
class WindowAnswer:
    """One window of a long clip, and the answer about it alone."""

    clip: int  # index of the clip
    start_seconds: float
    end_seconds: float
    score: float | None
    verdict: str
    strength: float
    answer: str
    effect_bits: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One answered question: text, measurements, steering, sizes, times."""

    id: str
    text: str
    finish_reason: str  # stop, length; listen if nothing was generated
    probabilities: tuple[float, ...]  # of the choices, in their order
    listening: Listening
    steering: Steering
    unsteered: str | None
    silent: str | None
    prompt: Prompt
    completion_tokens: int
    token_ids: tuple[int, ...]  # as written, an end token included; none of choices
    token_scores: tuple[float, ...]  # listening score of each; none without a profile, or audio
    timings: Timings
    began_at: float  # time.perf_counter() when the wait was over and prefill began
    first_token_seconds: float  # from then to the first piece of the answer; 0 without one
    windows: tuple[WindowAnswer, ...] = ()  # of a clip longer than the model's window


def with_queue_time(answer: Answer, seconds: float) -> Answer:
    """The answer, with the time it waited for its turn."""
    return replace(answer, timings=replace(answer.timings, queue_seconds=seconds))
