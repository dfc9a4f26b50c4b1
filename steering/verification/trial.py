"""A trial: one question, run by allears and by transformers, and the checks of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from steering.attention.taps import Head
from steering.audio.clip import Clip
from steering.generation import UNSTEERED, steered_logits
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, next_state, prefill
from steering.prompt import Prompt, build_question, embed
from steering.readout import logits
from steering.silence import (
    SilenceContrast,
    contrast_with_silence,
    prefill_with_silence,
    silent_prefix,
)
from steering.silence_cache import Ladder, SilenceCache
from steering.verification.findings import Finding, distance, logit_distance, tolerance
from steering.verification.plain_transformers import PlainPass, plain_pass

QUESTION = "What do you hear?"
ANSWER = "It may be a dog that barks, far away."  # its first tokens, whatever the model would say
ANSWER_TOKENS = 5
TAP_FLOORS = 3.0  # eager attention rounds scores and weights besides
_CACHE_BYTES = 1 << 40  # whatever the model: one silence is kept
LADDER = Ladder()
ERRORS = (
    *(RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError),
)


@dataclass(frozen=True, slots=True)
class Rounding:
    """Distances that rounding alone makes: transformers against itself, computed otherwise."""

    embedded: float = 0.0
    logits: float = 0.0
    differences: float = 0.0  # of residuals, clip minus silence


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A question about noise, the start of an answer, and what transformers makes of both."""

    model: AudioModel
    prompt: Prompt
    answer: tuple[int, ...]
    heads: tuple[Head, ...]  # every head
    layers: tuple[int, ...]  # every layer
    plain: PlainPass
    silent: PlainPass  # of the same question about silence as long as the clip
    cut: PlainPass  # about as much silence, cut from a longer one
    rounding: Rounding

    @classmethod
    def of(cls, model: AudioModel, seconds: float = 1.0) -> Trial:
        """A trial of a clip so long."""
        clips = (noise(model, seconds),)
        prompt, answer = build_question(model, clips, QUESTION), answer_tokens(model)
        layers = range(model.num_layers)
        plain = plain_pass(model, clips, QUESTION, answer)
        silence, heard = [clip.silent() for clip in clips], _cut_silence(model, prompt)
        silent = plain_pass(model, silence, QUESTION)
        cut = plain_pass(model, silence, QUESTION, heard=heard)
        return cls(
            model=model,
            prompt=prompt,
            answer=answer,
            heads=tuple((layer, head) for layer in layers for head in range(model.num_heads)),
            layers=tuple(layers),
            plain=plain,
            silent=silent,
            cut=cut,
            rounding=_rounding(model, prompt, answer, plain, {silent: None, cut: heard}),
        )

    def allowed(self, rounding: float, floors: float = 1.0) -> float:
        """The distance allowed on this model where rounding alone makes `rounding`."""
        return tolerance(self.model.dtype, rounding, floors)


def noise(model: AudioModel, seconds: float, seed: int = 0) -> Clip:
    """A clip of quiet noise, another for every seed."""
    rate_hz = model.sample_rate_hz
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate_hz)) * 0.05
    return Clip(samples.astype(np.float32), rate_hz, seconds, rate_hz, 1)


def _cut_silence(model: AudioModel, prompt: Prompt) -> Tensor:
    """(F, D) the first part of what transformers hears of the ladder's silence for the clip."""
    hop_seconds = model.processor.feature_extractor.hop_length / model.sample_rate_hz
    rung = LADDER.rung(int(prompt.mel_frames[0]), model.window_frames)
    longer = plain_pass(model, [noise(model, rung * hop_seconds).silent()], QUESTION)
    audio_token = model.audio_token_id
    return longer.embedded[longer.tokens == audio_token][: int(prompt.audio_mask.sum())]


def answer_tokens(model: AudioModel) -> tuple[int, ...]:
    """Tokens of an answer that is not the model's own."""
    ids: list[int] = model.processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    return tuple(ids[:ANSWER_TOKENS])


def _rounding(
    model: AudioModel,
    prompt: Prompt,
    answer: Sequence[int],
    plain: PlainPass,
    twins: Mapping[PlainPass, Tensor | None],
) -> Rounding:
    """Distances of the same passes by another kernel in a batch of two.

    In float32 on a CPU they are far below the floor, and are not measured.
    """
    if model.dtype == torch.float32 and model.device.type == "cpu":
        return Rounding()
    again = partial(plain_pass, model, text=QUESTION, kernel="sdpa", copies=2)
    loud = again(prompt.clips, answer=answer)
    silence = [clip.silent() for clip in prompt.clips]
    apart = [
        (loud.residuals - again(silence, heard=heard).residuals, plain.residuals - twin.residuals)
        for twin, heard in twins.items()
    ]
    return Rounding(
        embedded=distance(loud.embedded[None], plain.embedded[None]),
        logits=logit_distance(loud.logits, plain.logits),
        differences=max(distance(ours[None], theirs[None]) for ours, theirs in apart),
    )


def attempt(name: str, allowed: float, compared: str, measure: Callable[[], float]) -> Finding:
    """The finding of a check; what it raises is one, too."""
    try:
        return Finding(name, measure(), allowed, compared)
    except ERRORS as error:
        first = (str(error) or "no message").splitlines()[0]
        return Finding(name, float("inf"), allowed, f"{type(error).__name__}: {first}")


@torch.inference_mode()
def check_prompt(trial: Trial) -> Iterator[Finding]:
    """Prompt ids, what the encoder makes, logits, taps, and the silent twin."""
    model, prompt, plain, rounding = trial.model, trial.prompt, trial.plain, trial.rounding
    yield attempt(
        "prompt ids",
        0,
        "tokens that differ from the processor's own",
        lambda: float(_differing(prompt.tokens, plain.tokens)),
    )
    yield attempt(
        "encoder",
        trial.allowed(rounding.embedded),
        "the decoder's input against transformers'",
        lambda: distance(embed(model, prompt), plain.embedded[None]),
    )
    results: list[PrefillResult] = []

    def first_logits() -> float:
        results.append(prefill(model, prompt, heads=trial.heads, layers=trial.layers))
        first = steered_logits(model, results[0].final[None], UNSTEERED, 0)
        return logit_distance(first, plain.logits[:1])

    yield attempt(
        "logits",
        trial.allowed(rounding.logits),
        "after the last prompt token, against eager attention",
        first_logits,
    )
    if not results:
        return
    heard = results[0]
    yield attempt(
        "taps",
        trial.allowed(rounding.logits, TAP_FLOORS),
        "every head of every layer, against eager attention",
        lambda: distance(_by_layer(trial, heard.attention), _on_audio(trial, plain)),
    )
    yield from _check_twin(trial, heard)


def _check_twin(trial: Trial, heard: PrefillResult) -> Iterator[Finding]:
    """The silent twin in all its ways, against a full second pass about the same silence."""
    exact, ladder = (SilenceCache(_CACHE_BYTES, each) for each in (Ladder(0), LADDER))
    allowed = trial.allowed(max(trial.rounding.differences, trial.rounding.logits))

    def second_pass(silence_cache: SilenceCache, silent: PlainPass, *, kept: bool) -> float:
        twin = contrast_with_silence(
            trial.model,
            trial.prompt,
            heard,
            heads=trial.heads,
            layers=trial.layers,
            silence_cache=silence_cache,
        )
        if twin.from_cache != kept:
            raise RuntimeError(f"from the cache: {twin.from_cache}")
        return _twin_distance(trial, twin, silent)

    for name, silence_cache, silent, kept, compared in (
        ("twin", exact, trial.silent, False, "clip minus silence, against a full second pass"),
        ("kept twin", exact, trial.silent, True, "the same from kept keys and values"),
        (
            "cut silence",
            ladder,
            trial.cut,
            False,
            "of a longer silence, against a full second pass",
        ),
    ):
        measure = partial(second_pass, silence_cache, silent, kept=kept)
        yield attempt(name, allowed, compared, measure)
    yield attempt(
        "one pass",
        allowed,
        "prompt and twin together, against two full passes",
        lambda: _one_pass(trial, exact),
    )


def _one_pass(trial: Trial, silence_cache: SilenceCache) -> float:
    """The distance of prompt, twin and next token, if prompt and twin share a pass."""
    model, plain = trial.model, trial.plain
    prefix = silent_prefix(model, trial.prompt, silence_cache, model.num_layers)
    heard, twin = prefill_with_silence(
        model, trial.prompt, prefix, heads=trial.heads, layers=trial.layers
    )
    finals = [heard.final, next_state(model, heard, trial.answer[0])]  # its keys are the prompt's
    return max(
        logit_distance(logits(model, torch.stack(finals)), plain.logits[:2]),
        distance(_by_layer(trial, heard.attention), _on_audio(trial, plain)) / TAP_FLOORS,
        _twin_distance(trial, twin, trial.silent),
    )


def _twin_distance(trial: Trial, twin: SilenceContrast, silent: PlainPass) -> float:
    """The distance of a twin from the passes of transformers about clip and silence."""
    expected = trial.plain.residuals - silent.residuals  # (L, D)
    attention = _by_layer(trial, twin.silence_attention)
    return max(
        distance(twin.differences[None], expected[None]),
        distance(attention, _on_audio(trial, silent)) / TAP_FLOORS,
    )


def _differing(ours: Tensor, theirs: Tensor) -> int:
    """Number of places in which two prompts differ."""
    shorter = min(len(ours), len(theirs))
    return abs(len(ours) - len(theirs)) + int((ours[:shorter] != theirs[:shorter]).sum())


def _by_layer(trial: Trial, attention: Tensor) -> Tensor:
    """(L, H, F) from the attention (L x H, F) of every head."""
    return attention.reshape(trial.model.num_layers, trial.model.num_heads, -1)


def _on_audio(trial: Trial, plain: PlainPass) -> Tensor:
    """(L, H, F) eager attention on the audio tokens."""
    return plain.attention[:, :, trial.prompt.audio_mask]
