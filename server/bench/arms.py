"""The ways of answering that are compared, each for one question from start to last token.

Every arm starts from the same messages, makes its own prompt from them, and runs as long as asked,
past end tokens. Those named hf, naive, two_passes and aad are what others do; the rest is allears.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.bench.models import BenchModel
from server.engine.answering import answer_question, prepare_prompt
from server.engine.events import Finished, NeedsToken, NeedsTurn, Piece, Started
from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime
from steering.decision import SteeringRequest
from steering.evaluation.baselines import audio_aware_decoding
from steering.generation import Sampling
from steering.prefill import prefill
from steering.prompt import Prompt, build_prompt, silent_twin
from steering.silence_cache import SilenceCache

_ROOM_TOKENS = 128  # of a row, for words before the clip
BARE, STEERED = SteeringRequest(), SteeringRequest(steer=True)


@dataclass(frozen=True, slots=True)
class Run:
    """Times of one answer, in seconds."""

    prefill_seconds: float  # from the prompt to the first token, the silent twin's part included
    first_token_seconds: float  # from the messages to the first token
    seconds_a_token: float  # of the tokens after the first; 0 where there are none
    total_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A model with its runtimes, with a profile and without one."""

    subject: BenchModel
    runtime: Runtime
    without_profile: Runtime
    tokens: int
    clock: Callable[[], float]  # seconds: of the wall, or of this process on the CPU

    @classmethod
    def of(
        cls,
        subject: BenchModel,
        tokens: int,
        rows: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Bench:
        """A bench for answers of `tokens` tokens, up to `rows` at once."""
        length = len(build_prompt(subject.model, subject.messages(0)).tokens) + tokens
        runtime = Runtime.of(
            subject.model, subject.profile, rows=rows, tokens=length + _ROOM_TOKENS
        )
        return cls(subject, runtime, replace(runtime, profile=None), tokens, clock)

    def now(self) -> float:
        """The clock's seconds, once the device has finished its work."""
        device = self.subject.model.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return self.clock()

    def question(self, seed: int, steering: SteeringRequest = BARE) -> Question:
        """The question of a seed, which is answered with exactly `tokens` tokens."""
        sampling = Sampling(self.tokens, ignore_end=True)
        messages = self.subject.messages(seed)
        return Question("bench", messages, steering=steering, sampling=sampling)


Arm = Callable[[Bench, int], Run]  # of the question of a seed


# ---- allears


def _bare_without_profile(bench: Bench, seed: int) -> Run:
    return _answered(bench, bench.without_profile, bench.question(seed))


def _bare(bench: Bench, seed: int) -> Run:
    return _answered(bench, bench.runtime, bench.question(seed))


def _words(bench: Bench, seed: int) -> Run:
    return _answered(bench, bench.runtime, replace(bench.question(seed), with_words=True))


def _cold(bench: Bench, seed: int) -> Run:
    kept = bench.runtime.silence_cache
    empty = SilenceCache(kept.limit_bytes, kept.ladder)
    return _answered(
        bench, replace(bench.runtime, silence_cache=empty), bench.question(seed, STEERED)
    )


def _new_words(bench: Bench, seed: int) -> Run:
    """A known length of audio after new words: a cache miss that encodes nothing."""
    question = bench.question(seed, STEERED)
    (message,) = question.messages
    message = replace(message, parts=(f"Number {seed}. ", *message.parts))
    return _answered(bench, bench.runtime, replace(question, messages=(message,)))


def _warm(bench: Bench, seed: int) -> Run:
    return _answered(bench, bench.runtime, bench.question(seed, STEERED))


def _effect(bench: Bench, seed: int) -> Run:
    """The twin runs through all layers, to what it would answer."""
    question = replace(bench.question(seed, STEERED), with_effect=True)
    return _answered(bench, bench.runtime, question)


def _warm_words(bench: Bench, seed: int) -> Run:
    question = replace(bench.question(seed, STEERED), with_words=True)
    return _answered(bench, bench.runtime, question)


def _calibrated(bench: Bench, seed: int) -> Run:
    return _answered(
        bench,
        bench.runtime,
        bench.question(seed, SteeringRequest(steer=True, direction="calibrated")),
    )


def _answered(bench: Bench, runtime: Runtime, question: Question) -> Run:
    return _run_of(bench, runtime, question)[0]


def first_token(bench: Bench, runtime: Runtime, question: Question) -> tuple[float, Answer]:
    """Seconds to the only token of an answer, and the answer."""
    assert question.sampling.max_tokens == 1, question.sampling
    run, answer = _run_of(bench, runtime, question)
    return run.total_seconds, answer


def _run_of(bench: Bench, runtime: Runtime, question: Question) -> tuple[Run, Answer]:
    """One question by itself, with a decode step wherever it waits for one."""
    start = bench.now()
    prompt = prepare_prompt(runtime, question)
    prepared = bench.now()
    first = 0.0
    answer: Answer | None = None
    for event in answer_question(runtime, question, prompt):
        match event:
            case Piece():
                first = first or bench.now() - start
            case NeedsToken():
                first = first or bench.now() - start
                runtime.slots.step()
            case Finished(finished):
                answer = finished
            case Started() | NeedsTurn():
                pass
    total = bench.now() - start
    assert answer is not None and answer.steering.applied == question.steering.steer, answer
    assert answer.completion_tokens == question.sampling.max_tokens, answer.completion_tokens
    return _run(first - (prepared - start), first, total, answer.completion_tokens), answer


# ---- others


def _hf(bench: Bench, seed: int) -> Run:
    """The generate of transformers, with its SDPA attention."""
    start = bench.now()
    inputs = _inputs(bench, build_prompt(bench.subject.plain, bench.subject.messages(seed)))
    prepared = bench.now()
    clock = Stopwatch(bench)
    with _attention(bench, "sdpa"):
        out = bench.subject.plain.network.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=bench.tokens,
            min_new_tokens=bench.tokens,
            streamer=clock,
        )
    total = bench.now() - start
    assert out.shape[1] == inputs["input_ids"].shape[1] + bench.tokens
    return _run(clock.first - prepared, clock.first - start, total, bench.tokens)


def _naive(bench: Bench, seed: int) -> Run:
    """The paper as its formulas stand: all attentions and states of two passes, to a token."""
    return _two_forwards(bench, seed, "eager", output_attentions=True)


def _two_passes(bench: Bench, seed: int) -> Run:
    """The same direction from two passes with SDPA, without attention outputs."""
    return _two_forwards(bench, seed, "sdpa", output_attentions=False)


@torch.inference_mode()
def _two_forwards(bench: Bench, seed: int, attention: str, *, output_attentions: bool) -> Run:
    """Two forward passes to the first token only: these arms do not measure decoding."""
    model = bench.subject.plain
    start = bench.now()
    prompt = build_prompt(model, bench.subject.messages(seed))
    twin = silent_twin(model, prompt)
    prepared = bench.now()
    layers = [layer + 1 for layer in bench.subject.profile.layers]
    finals: list[Tensor] = []  # (K, D) final positions, of the prompt and of its twin
    with _attention(bench, attention):
        for variant in (prompt, twin):
            out = model.network(
                **_inputs(bench, variant),
                output_hidden_states=True,
                output_attentions=output_attentions,
                use_cache=True,
                logits_to_keep=1,
            )
            finals.append(torch.stack([out.hidden_states[layer][0, -1] for layer in layers]))
            if output_attentions:
                heads = bench.subject.profile.heads
                mass = [out.attentions[la][0, h, -1, prompt.audio_mask].sum() for la, h in heads]
                float(torch.stack(mass).mean())
    direction = (finals[0] - finals[1]).mean(0)
    final = model.network.lm_head(out.hidden_states[-1][:, -1] + 0.5 * direction)
    int(final.argmax())
    first = bench.now()
    return Run(first - prepared, first - start, 0.0, first - start)


def _aad(bench: Bench, seed: int) -> Run:
    """Audio-Aware Decoding (arXiv 2506.07233): a branch with the clip and one with silence."""
    model = bench.subject.plain
    start = bench.now()
    prompt = build_prompt(model, bench.subject.messages(seed))
    twin = silent_twin(model, prompt)
    prepared = bench.now()
    with_clip, with_silence = prefill(model, prompt), prefill(model, twin)
    first = 0.0
    sampling = Sampling(bench.tokens, ignore_end=True)
    for _ in audio_aware_decoding(model, with_clip, with_silence, sampling):
        first = first or bench.now()
    return _run(first - prepared, first - start, bench.now() - start, bench.tokens)


class Stopwatch:
    """A streamer of transformers that notes the time of the first token."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._puts = bench, 0
        self.first = 0.0

    def put(self, tokens: Tensor) -> None:
        """Called with the prompt, then with every token."""
        self._puts += 1
        if self._puts == 2:
            self.first = self._bench.now()

    def end(self) -> None:
        """Nothing to do."""


def _inputs(bench: Bench, prompt: Prompt) -> dict[str, Tensor]:
    """A prompt as transformers takes it."""
    tokens = prompt.tokens[None]
    frames = torch.arange(prompt.log_mels.shape[-1])[None] < prompt.mel_frames[:, None]
    model = bench.subject.plain
    return {
        "input_ids": tokens.to(model.device),
        "attention_mask": torch.ones_like(tokens).to(model.device),
        "input_features": prompt.log_mels.to(model.device, model.dtype),
        "feature_attention_mask": frames.long().to(model.device),
    }


@contextmanager
def _attention(bench: Bench, name: str) -> Iterator[None]:
    """Encoder and decoder with this attention, as transformers loads them."""
    model = bench.subject.plain
    tower = model.network.model.audio_tower.config
    ours = (tower._attn_implementation, model.decoder.config._attn_implementation)
    tower._attn_implementation = model.decoder.config._attn_implementation = name
    try:
        yield
    finally:
        tower._attn_implementation, model.decoder.config._attn_implementation = ours


def _run(prefill_seconds: float, first: float, total: float, tokens: int) -> Run:
    return Run(prefill_seconds, first, (total - first) / (tokens - 1) if tokens > 1 else 0.0, total)


ARMS: Mapping[str, tuple[str, Arm]] = {
    "hf": ("transformers generate, bare", _hf),
    "naive": ("two passes, eager attention outputs", _naive),
    "two_passes": ("two SDPA passes", _two_passes),
    "aad": ("Audio-Aware Decoding", _aad),
    "bare_without_profile": ("allears bare, no profile, no taps", _bare_without_profile),
    "bare": ("allears bare, taps on", _bare),
    "words": ("allears bare, its words weighed", _words),
    "cold": ("allears steered, nothing kept", _cold),
    "new_words": ("allears steered, silence of that length known", _new_words),
    "warm": ("allears steered, warm", _warm),
    "effect": ("allears steered, warm, with the effect", _effect),
    "warm_words": ("allears steered, warm, its words weighed", _warm_words),
    "calibrated": ("allears steered, calibrated direction", _calibrated),
}
