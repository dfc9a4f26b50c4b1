"""One question's way, in order: prompt, prefill, silence twin, strength, steered readout, answer.

`prepare` makes the prompt, which needs no network. `listen` is a generator: it yields Heeded once
it knows how far the model listened, then pieces of the answer's text as they come and, last, the
Answer with all of it. Where it needs a next token it yields its Row and expects it drawn when it
goes on: whoever runs it makes one decode step for many questions. Streaming, plain requests and
benchmarks all run it. It knows no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from server.windows import HeardWindow, listen_in_windows, long_clip
from steering import heads
from steering.answer import (
    BARE,
    Plan,
    Sampling,
    mean_log_probabilities,
    plan_logits,
    score_choices,
)
from steering.errors import RequestError
from steering.influence import ClipHeard, clips_heard, contrast_clip, with_influence
from steering.model import AudioModel
from steering.prefill import Heard, prefill
from steering.profile import Profile
from steering.prompt import Message, Prompt, build, silent_twin, with_choices
from steering.readout import pool, relative_norm
from steering.silence import Contrast, SilentPrefixes, contrast
from steering.slots import Row, Slots, draw_rows
from steering.style import PLAIN, Style

NO_PROFILE = "this deployment has no listening profile (--profile none)"


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
    clips: tuple[ClipHeard, ...] = ()


@dataclass(frozen=True, slots=True)
class Steering:
    """What was done to the answer; `reason` says why nothing was."""

    applied: bool
    direction: str | None = None
    strength: float = 0.0
    relative_norm: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Heeded:
    """What is known before the first piece of the answer."""

    listening: Listening
    steering: Steering


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds each step took; `silence_cache` is hit, miss or None if no twin was run."""

    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    silence_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0  # from the end of the wait to the first piece of the answer
    silence_cache: str | None = None


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
    windows: tuple[HeardWindow, ...] = ()  # of a clip longer than the model's window


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A model, its profile, and what its questions share: silent prefixes, and rows to write in."""

    model: AudioModel
    profile: Profile | None
    prefixes: SilentPrefixes
    slots: Slots
    unprofiled: str = NO_PROFILE  # why there is no profile, where there is none

    @classmethod
    def of(
        cls,
        model: AudioModel,
        profile: Profile | None,
        *,
        silence_cache_bytes: int = 1_000_000_000,
        rows: int = 16,
        tokens: int = 2048,
        unprofiled: str = NO_PROFILE,
    ) -> Listener:
        """A listener that writes up to `rows` answers at once, prompt and answer <= `tokens`."""
        tokens = min(tokens, int(model.text_config.max_position_embeddings))
        slots = Slots(model, rows, tokens, profile.how if profile else None)
        prefixes = SilentPrefixes(silence_cache_bytes)
        return cls(model, profile, prefixes, slots, unprofiled)


Writing = Generator[str | Row, None, None]


def prepare(listener: Listener, question: Question) -> Prompt | None:
    """The question's prompt: tokens and features, made without the network, in any thread.

    None where a clip is to be heard in windows: they are prepared one after the other.
    Raises RequestError for what can't be asked, and for what can never fit.
    """
    if question.windowed and long_clip(question, listener.model) is not None:
        return None
    return _prompt(listener, question)


def _prompt(listener: Listener, question: Question) -> Prompt:
    prompt = build(listener.model, _with_choices(question, listener.model.style))
    _check_length(listener, prompt, question)
    return prompt


def listen(
    listener: Listener, question: Question, prompt: Prompt | None
) -> Generator[Heeded | str | Answer | Row, None, None]:
    """Heeded, pieces of the answer's text, the Answer. RequestError for what can't be done."""
    if prompt is not None:
        yield from listen_once(listener, question, prompt)
        return
    answer = yield from listen_in_windows(
        listener, question, lambda part: listen_once(listener, part, _prompt(listener, part))
    )
    yield Heeded(answer.listening, answer.steering)
    if answer.text:
        yield answer.text
    yield answer


def listen_once(
    listener: Listener, question: Question, prompt: Prompt
) -> Generator[Heeded | str | Answer | Row, None, None]:
    """The same for clips that fit the model's window, or are cut there."""
    model, profile = listener.model, listener.profile
    started = time.perf_counter()

    # 1. One pass over the prompt, with taps on the specialist heads.
    tapped = profile.heads if profile else ()
    layers = profile.layers if profile else ()
    heard = prefill(model, prompt, heads=tapped, layers=layers)
    after_prefill = time.perf_counter()

    # 2. The silence twin, where a live direction or its score is wanted.
    live = question.steer and question.direction == "request" and refusal(listener) is None
    twin: Contrast | None = None
    if profile and live and question.contrast_clip is not None:
        index = _clip_index(question.contrast_clip, prompt)
        twin = contrast_clip(model, prompt, heard, index, heads=tapped, layers=layers)
    elif profile and (live or question.with_silence):
        twin = contrast(
            model, prompt, heard, heads=tapped, layers=layers, prefixes=listener.prefixes
        )
    after_silence = time.perf_counter()

    # 3. Listening score, strength, plan.
    listening = _listening(listener, prompt, heard, twin)
    plan, steering = _plan(listener, question, heard, twin, listening)
    yield Heeded(listening, steering)

    # 4. The answer, and for comparison the bare and the silent one.
    reply = _Reply()
    yield from _reply(listener, heard, plan, question, reply)
    after_decode = time.perf_counter()
    unsteered = _Reply() if question.with_unsteered and steering.applied else reply
    if unsteered is not reply:
        yield from _rows(_reply(listener, heard, BARE, question, unsteered))
    if question.with_clips and reply.text:
        likelihood = partial(_log_probability, model, question, reply.text)
        clips = with_influence(model, prompt, heard, listening.clips, likelihood)
        listening = replace(listening, clips=clips)
    silent = _Reply()
    if question.with_silence:
        twin_heard = prefill(model, silent_twin(model, prompt))
        yield from _rows(_reply(listener, twin_heard, BARE, question, silent))
    yield Answer(
        id=question.id,
        text=reply.text,
        finish_reason=reply.finish_reason,
        probabilities=reply.probabilities,
        listening=listening,
        steering=steering,
        unsteered=unsteered.text if question.with_unsteered and question.generate else None,
        silent=silent.text if question.with_silence and question.generate else None,
        prompt=prompt,
        completion_tokens=reply.tokens,
        timings=Timings(
            prefill_seconds=after_prefill - started,
            silence_seconds=after_silence - after_prefill if twin else 0.0,
            decode_seconds=after_decode - after_silence,
            first_token_seconds=reply.first_token_at - started if reply.tokens else 0.0,
            silence_cache=("hit" if twin.from_cache else "miss") if twin else None,
        ),
    )


def _with_choices(question: Question, style: Style) -> tuple[Message, ...]:
    """The messages, with the choices written under the last text of the last turn."""
    if not question.choices and style is PLAIN:
        return question.messages
    *before, last = question.messages
    at = max((i for i, part in enumerate(last.parts) if isinstance(part, str)), default=None)
    if at is None and not question.choices:
        return question.messages
    if at is None:
        raise RequestError(
            "choices need a text to stand under: the last message has none", "messages"
        )
    parts = list(last.parts)
    parts[at] = with_choices(str(parts[at]), question.choices, style)
    return (*before, Message(last.role, tuple(parts)))


def _check_length(listener: Listener, prompt: Prompt, question: Question) -> None:
    """Nothing, if the prompt and the longest answer fit a row."""
    limit = listener.slots.tokens
    answer = question.sampling.max_tokens if question.generate else 0
    if len(prompt.tokens) + answer > limit:
        raise RequestError(
            f"the prompt has {len(prompt.tokens)} tokens, {int(prompt.audio.sum())} of them audio;"
            f" with max_tokens {answer} at most {limit - answer} fit here: shorten the text,"
            " send fewer or shorter clips, or lower max_tokens"
        )


def refusal(listener: Listener) -> str | None:
    """Why this deployment steers no answer, in plain words; None where it may steer."""
    profile = listener.profile
    if profile is None:
        return listener.unprofiled
    if profile.max_strength == 0:
        why = profile.refusal or "calibration found no gain from steering this model"
        return f"{why}: strength 0"
    return None


def _clip_index(wanted: int, prompt: Prompt) -> int:
    if wanted >= len(prompt.clips):
        raise RequestError(
            f"steering.clip is {wanted}; clips count from 0, and {len(prompt.clips)} were sent",
            "steering.clip",
        )
    return wanted


def _log_probability(model: AudioModel, question: Question, text: str, heard: Heard) -> float:
    """Of an answer, by the bare model: among the choices, or a token's mean."""
    if question.choices:
        found = score_choices(model, heard, BARE, question.choices)
        return float(np.log(max(found[question.choices.index(text)], 1e-30)))
    return mean_log_probabilities(model, heard, BARE, [text])[0]


def _listening(
    listener: Listener, prompt: Prompt, heard: Heard, twin: Contrast | None
) -> Listening:
    profile, hop = listener.profile, listener.model.hop_seconds
    if profile is None:
        return Listening(None, None, "unknown", None, None, np.zeros(0, np.float32), hop, ())
    attention = heard.attention.cpu().numpy()
    score = heads.listening_score(attention)
    mass = heads.audio_mass(attention).tolist()
    silent = heads.listening_score(twin.silence_attention.cpu().numpy()) if twin else None
    return Listening(
        score=score,
        percentile=profile.percentile(score),
        verdict=profile.verdicts.of(score),
        threshold=profile.verdicts.listening,
        silence_score=silent,
        timeline=heads.timeline(attention),
        hop_seconds=hop,
        heads=tuple((la, h, m) for (la, h), m in zip(profile.heads, mass, strict=True)),
        clips=clips_heard(listener.model, prompt, heads.timeline(attention)),
    )


def _plan(
    listener: Listener, question: Question, heard: Heard, twin: Contrast | None, found: Listening
) -> tuple[Plan, Steering]:
    """How the answer is steered, and how that is reported."""
    profile = listener.profile
    why = refusal(listener)
    if why is not None or profile is None:
        return BARE, Steering(False, reason=why)
    if not question.steer:
        return BARE, Steering(False, reason="steer is false")
    assert found.score is not None
    strength = question.strength
    if strength is None:
        strength = profile.gate.strength(found.score)
    if strength > profile.max_strength:
        raise RequestError(
            f"steering.strength {strength:g} is over this profile's max_strength"
            f' {profile.max_strength:g}; send a number from 0 to that, or "adaptive"',
            "steering.strength",
        )
    if strength == 0:
        return BARE, Steering(False, question.direction, reason="strength is 0")
    if question.direction == "calibrated":
        direction = profile.direction.to(listener.model.device)
    else:
        assert twin is not None
        direction = pool(twin.differences, profile.how)
    size = relative_norm(heard.final, direction, strength, profile.how)
    return Plan(direction, strength, profile.how), Steering(
        True, question.direction, strength, size
    )


@dataclass(slots=True)
class _Reply:
    """An answer while it grows."""

    text: str = ""
    finish_reason: str = "stop"
    probabilities: tuple[float, ...] = ()
    tokens: int = 0
    first_token_at: float = 0.0  # by the performance counter


def _reply(
    listener: Listener, heard: Heard, plan: Plan, question: Question, reply: _Reply
) -> Writing:
    """Pieces of text of one answer; `reply` holds the whole when they end."""
    model = listener.model
    if not question.generate:
        reply.finish_reason = "listen"
        return
    if question.choices:
        probabilities = score_choices(model, heard, plan, question.choices)
        reply.probabilities = tuple(probabilities)
        reply.text = question.choices[int(np.argmax(probabilities))]
        reply.tokens = len(model.processor.tokenizer(reply.text)["input_ids"])
        reply.first_token_at = time.perf_counter()
        yield reply.text
        return
    text = _Text(model, question)
    with closing(_tokens(listener, heard, plan, question.sampling)) as tokens:
        for event in tokens:
            if isinstance(event, Row):
                yield event
                continue
            reply.tokens += 1
            reply.first_token_at = reply.first_token_at or time.perf_counter()
            piece = text.add(event)
            reply.text += piece
            if piece:
                yield piece
            if text.ended:
                return
    reply.finish_reason = "length"
    rest = text.rest()
    reply.text += rest
    if rest:
        yield rest


def _tokens(
    listener: Listener, heard: Heard, plan: Plan, sampling: Sampling
) -> Generator[int | Row, None, None]:
    """Tokens of one answer, at most max_tokens; a Row where it waits for the next decode step."""
    row = Row(plan, sampling)
    row.token = draw_rows(plan_logits(listener.model, heard.final[None], plan, 0), [row])[0]
    try:
        for step in range(sampling.max_tokens):
            yield row.token
            if step + 1 == sampling.max_tokens:
                return
            if row.place < 0:
                listener.slots.seat(row, heard)
            yield row
    finally:
        if row.place >= 0:
            listener.slots.leave(row)


def _rows(writing: Writing) -> Generator[Row, None, None]:
    """What a writing waits for, without its text."""
    for event in writing:
        if isinstance(event, Row):
            yield event


class _Text:
    """Tokens become text: whole characters only, nothing of a stop string."""

    def __init__(self, model: AudioModel, question: Question) -> None:
        self._tokenizer = model.processor.tokenizer.backend_tokenizer
        self._model, self._sampling = model, question.sampling
        self._stops = (*question.stop, *filter(None, [model.style.after]))
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = ""  # not handed out yet: it may be the start of a stop string
        self.ended = False

    def add(self, token: int) -> str:
        """The text that a token completes, which may be none."""
        if self._sampling.ends(token, self._model):
            self.ended = True
            return self.rest()
        text = self._held + (self._stream.step(self._tokenizer, token) or "")
        cut = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self.ended, self._held = True, ""
            return text[:cut]
        keep = len(text) - _could_stop(text, self._stops)
        self._held = text[keep:]
        return text[:keep]

    def rest(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _could_stop(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of `text` that may be the start of a stop string: held back."""
    lengths = (n for s in stops for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
    return max(lengths, default=0)


def with_queue_time(answer: Answer, seconds: float) -> Answer:
    """The answer, with the time it waited for its turn."""
    return replace(answer, timings=replace(answer.timings, queue_seconds=seconds))
