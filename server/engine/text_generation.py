"""One answer is written: the likeliest choice, or token by token, as pieces of text."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from tokenizers.decoders import DecodeStream

from server.engine.messages import Question
from server.engine.runtime import Runtime
from steering.generation import Sampling, SteeringPlan, score_choices, steered_logits
from steering.kv_slots import Row, sample_rows
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult

TextEvents = Generator[str | Row, None, None]


@dataclass(slots=True)
class GeneratedText:
    """An answer while it grows."""

    text: str = ""
    finish_reason: str = "stop"
    probabilities: tuple[float, ...] = ()
    tokens: int = 0
    first_token_at: float = 0.0  # by the performance counter


def generate_text(
    runtime: Runtime,
    heard: PrefillResult,
    plan: SteeringPlan,
    question: Question,
    reply: GeneratedText,
) -> TextEvents:
    """Pieces of text of one answer; `reply` holds the whole when they end."""
    model = runtime.model
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
    text = _TextAssembler(model, question)
    with closing(_generate_tokens(runtime, heard, plan, question.sampling)) as tokens:
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


def _generate_tokens(
    runtime: Runtime, heard: PrefillResult, plan: SteeringPlan, sampling: Sampling
) -> Generator[int | Row, None, None]:
    """Tokens of one answer, at most max_tokens; a Row where it waits for the next decode step."""
    row = Row(plan, sampling)
    row.token = sample_rows(steered_logits(runtime.model, heard.final[None], plan, 0), [row])[0]
    try:
        for step in range(sampling.max_tokens):
            yield row.token
            if step + 1 == sampling.max_tokens:
                return
            if row.slot < 0:
                runtime.slots.admit(row, heard)
            yield row
    finally:
        if row.slot >= 0:
            runtime.slots.release(row)


def without_text(writing: TextEvents) -> Generator[Row, None, None]:
    """What a writing waits for, without its text."""
    for event in writing:
        if isinstance(event, Row):
            yield event


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
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _could_stop(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of `text` that may be the start of a stop string: held back."""
    lengths = (n for s in stops for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
    return max(lengths, default=0)
