"""One answer becomes text: the likeliest choice, or token by token in pieces."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from tokenizers.decoders import DecodeStream
from torch import Tensor

from server.engine.events import NeedsToken, NeedsTurn, Piece, in_turns
from server.engine.messages import Question
from server.engine.runtime import Runtime
from steering.generation import SteeringPlan, score_choices_in_passes
from steering.kv_slots import KVSlots, Row, sample_first
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult


@dataclass(slots=True)
class GeneratedText:
    """An answer while it grows."""

    text: str = ""
    finish_reason: str = "stop"
    probabilities: tuple[float, ...] = ()
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)  # none of choices
    token_scores: list[float] = field(default_factory=list)  # of each; none without audio
    states: list[Tensor] = field(default_factory=list)  # (D,) that each token is read from, if kept
    first_token_at: float = 0.0  # by the performance counter
    _in_pieces: int = 0  # tokens whose scores have been handed out

    def add_token(self, row: Row) -> None:
        """Take over the newest token of a row, and its score."""
        self.tokens += 1
        self.token_ids.append(row.token)
        if row.score is not None:
            self.token_scores.append(row.score)

    def piece(self, text: str) -> Piece:
        """A piece of the text, with the scores of the tokens since the last one."""
        scores = tuple(self.token_scores[self._in_pieces :])
        self._in_pieces = len(self.token_scores)
        return Piece(text, scores)


@dataclass(slots=True, eq=False)
class Seat:
    """Where keys and values of a question's prompt are: in a cache of their own until its first row
    is seated, then in that row's slot, which answers to the same prompt take over. Never in both.
    """

    slots: KVSlots
    prefilled: PrefillResult
    row: Row | None = None  # in the slot

    def take(self, row: Row) -> None:
        """Seat a row."""
        if self.row is None:
            self.slots.admit(row, self.prefilled)
            self.prefilled.free_cache()
        else:
            self.slots.hand_over(self.row, row, self.prefilled)
        self.row = row


@contextmanager
def seat_for(slots: KVSlots, prefilled: PrefillResult) -> Iterator[Seat]:
    """A seat, which is free again afterwards."""
    seat = Seat(slots, prefilled)
    try:
        yield seat
    finally:
        if seat.row is not None:
            slots.release(seat.row)


def generate_text(
    runtime: Runtime,
    seat: Seat,
    plan: SteeringPlan,
    question: Question,
    *,
    pieces: bool = True,
) -> Generator[Piece | NeedsToken | NeedsTurn, None, GeneratedText]:
    """Generate one answer: yields its pieces, if they are wanted, and returns the whole."""
    if not question.generate:
        return GeneratedText(finish_reason="listen")
    if question.choices:
        reply = yield from _choose(runtime, seat.prefilled, plan, question)
        if pieces:
            yield Piece(reply.text)
        return reply
    return (yield from _write_text(runtime, seat, plan, question, pieces))


def _choose(
    runtime: Runtime, prefilled: PrefillResult, plan: SteeringPlan, question: Question
) -> Generator[NeedsTurn, None, GeneratedText]:
    """The likeliest choice."""
    passes = score_choices_in_passes(
        runtime.model, prefilled, plan, question.choices, runtime.pass_limit
    )
    probabilities = yield from in_turns(passes)
    text = question.choices[int(np.argmax(probabilities))]
    tokens = len(runtime.model.processor.tokenizer(text)["input_ids"])
    return GeneratedText(
        text, "stop", tuple(probabilities), tokens, first_token_at=time.perf_counter()
    )


def _write_text(
    runtime: Runtime, seat: Seat, plan: SteeringPlan, question: Question, pieces: bool
) -> Generator[Piece | NeedsToken, None, GeneratedText]:
    """The text of at most max_tokens tokens, or as many as fit the slot, one by one."""
    prefilled = seat.prefilled
    longest = min(question.sampling.max_tokens, runtime.slots.tokens - prefilled.length)
    row = Row(plan, question.sampling)
    sample_first(runtime.model, prefilled, row)
    if runtime.slots.scored is None:
        row.score = None
    reply, assembler = GeneratedText(), _TextAssembler(runtime.model, question)
    for step in range(longest):
        if step:
            if row.slot < 0:
                seat.take(row)
            yield NeedsToken(row)
        reply.add_token(row)
        if question.with_words and pieces:
            reply.states.append(runtime.slots.finals[row.slot].clone() if step else prefilled.final)
        reply.first_token_at = reply.first_token_at or time.perf_counter()
        text = assembler.add(row.token)
        reply.text += text
        if text and pieces:
            yield reply.piece(text)
        if assembler.ended:
            return reply
    reply.finish_reason = "length"
    rest = assembler.rest()
    reply.text += rest
    if rest and pieces:
        yield reply.piece(rest)
    return reply


class _TextAssembler:
    """Tokens become text: whole characters only, nothing of a stop string."""

    def __init__(self, model: AudioModel, question: Question) -> None:
        self._tokenizer = model.processor.tokenizer.backend_tokenizer
        self._model, self._sampling = model, question.sampling
        self._stops = (*question.stop, *filter(None, [model.prompt_style.after]))
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = ""  # not handed out yet: it may be the start of a stop string
        self.ended = False

    def add(self, token: int) -> str:
        """The text that a token completes, which may be none."""
        if self._sampling.is_end(token, self._model):
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
        """The text that was held back."""
        held, self._held = self._held, ""
        return held


def _could_stop(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of `text` that may be the start of a stop string: held back."""
    lengths = (n for s in stops for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
    return max(lengths, default=0)
