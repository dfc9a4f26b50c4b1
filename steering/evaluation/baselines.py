"""Baselines: Audio-Aware Decoding, and a direction made from text only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steering.attention.taps import KVPairs
from steering.evaluation.shared_audio import prefill_on_prefix
from steering.generation import (
    UNSTEERED,
    Sampling,
    choice_probabilities,
    crop_to_prompt,
    read_choices,
    steered_logits,
)
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, next_state
from steering.prompt import Prompt

LISTEN_CAREFULLY = "Listen carefully and trust only what you hear. "


@torch.inference_mode()
def audio_aware_decoding(
    model: AudioModel,
    heard: PrefillResult,
    silent: PrefillResult,
    sampling: Sampling,
    weight: float = 1.0,
) -> Iterator[int]:
    """Greedy tokens from (1 + weight) z_audio - weight z_silence, two branches at every token.

    Source: Audio-Aware Decoding, arXiv 2506.07233; weight 1 is its published setting.
    """
    branches = (heard, silent)
    for branch in branches:
        crop_to_prompt(branch)
    finals = [branch.final[None] for branch in branches]
    for step in range(sampling.max_tokens):
        audio, silence = (steered_logits(model, final, UNSTEERED, step)[0] for final in finals)
        token = int(((1 + weight) * audio - weight * silence).argmax())
        yield token
        if sampling.is_end(token, model) or step + 1 == sampling.max_tokens:
            return
        finals = [next_state(model, branch, token)[None] for branch in branches]


def audio_aware_choices(
    model: AudioModel,
    heard: PrefillResult,
    silent: PrefillResult,
    choices: Sequence[str],
    weight: float = 1.0,
) -> list[float]:
    """Probabilities of the choices, as `score_choices`, from the contrast of two branches."""
    branches = [read_choices(model, branch, choices) for branch in (heard, silent)]
    both = [torch.cat(pair, dim=-1) for pair in zip(*(b.states for b in branches), strict=True)]

    def contrast(states: Tensor, step: int) -> Tensor:
        audio, silence = (
            steered_logits(model, half, UNSTEERED, step)
            for half in states.split(model.hidden_size, dim=-1)
        )
        return (1 + weight) * audio - weight * silence

    return choice_probabilities(replace(branches[0], states=both), contrast)


def text_only_direction(
    model: AudioModel,
    silent: PrefillResult,
    instructed: Prompt,
    pairs: KVPairs,
    layers: Sequence[int],
) -> Tensor:
    """(K, D): what an instruction to listen adds to the last token's states, about silence.

    `silent` heard the plain prompt's silent twin and kept the same layers; `pairs` are its keys
    and values up to the audio's end. No sound takes part: what this direction gains, steering does
    not owe to the audio.
    """
    return prefill_on_prefix(model, instructed, pairs, layers=layers).states - silent.states
