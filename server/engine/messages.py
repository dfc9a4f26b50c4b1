"""What goes into the engine and what comes out: a Question, and in the end its Answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steering.clip_attribution import ClipAttribution
from steering.generation import Sampling
from steering.prompt import Message, Prompt


@dataclass(frozen=True, slots=True)
class Question:
    """A request as the engine takes it: checked, its audio decoded."""

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...] = ()
    steer: bool = False
    direction: Literal["request", "calibrated"] = "request"
    strength: float | None = None  # None is adaptive
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    with_unsteered: bool = False  # answer bare as well
    with_silence: bool = False  # answer the silent twin as well, and score it
    with_clips: bool = False  # find out which clip decided
    contrast_clip: int | None = None  # contrast this clip with its silence; None is all of them
    windowed: bool = False  # hear a clip longer than the model's window in windows
    generate: bool = True  # False: only listen


@dataclass(frozen=True, slots=True, eq=False)
class Listening:
    """How far the sound decided; None where the deployment has no profile to read it with."""

    score: float | None
    percentile: float | None
    verdict: str
    threshold: float | None
    silence_score: float | None
    timeline: NDArray[np.float32]  # (F,) sums to the score
    hop_seconds: float
    heads: tuple[tuple[int, int, float], ...]  # (layer, head, audio mass)
    clips: tuple[ClipAttribution, ...] = ()


@dataclass(frozen=True, slots=True)
class Steering:
    """What was done to the answer; `reason` says why nothing was."""

    applied: bool
    direction: str | None = None
    strength: float = 0.0
    relative_norm: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds each step took; `silence_cache` is hit, miss or None if no twin was run."""

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    silence_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0  # from the end of the wait to the first piece of the answer
    silence_cache: str | None = None
    began_at: float = 0.0  # time.perf_counter() when the wait was over and prefill began


@dataclass(frozen=True, slots=True, eq=False)
class WindowAnswer:
    """One window of a long clip, and what was answered about it alone."""

    clip: int  # index of the clip
    start_seconds: float
    end_seconds: float
    score: float | None
    verdict: str
    strength: float
    answer: str


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Everything that is known about one answered question."""

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
    timings: Timings
    windows: tuple[WindowAnswer, ...] = ()  # of a clip longer than the model's window


def with_queue_time(answer: Answer, seconds: float) -> Answer:
    """The answer, with the time it waited for its turn."""
    return replace(answer, timings=replace(answer.timings, queue_seconds=seconds))
