"""What steering is compared with: Audio-Aware Decoding, and a direction made from text only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from steering.answer import (
    BARE,
    Choices,
    Sampling,
    choice_probabilities,
    plan_logits,
    read_choices,
    rewind,
)
from steering.evaluation.reworded import hear_again
from steering.model import AudioModel
from steering.prefill import Heard, walk
from steering.prompt import Prompt
from steering.silence import KeysAndValues

LISTEN_CAREFULLY = "Listen carefully and trust only what you hear. "


@torch.inference_mode()
def audio_aware_decoding(
    model: AudioModel, heard: Heard, silent: Heard, sampling: Sampling, weight: float = 1.0
) -> Iterator[int]:
    """Greedy tokens from (1 + weight) z_audio - weight z_silence, two branches at every token.

    Source: Audio-Aware Decoding; weight 1 is its published setting.
    """
    branches = (heard, silent)
    for branch in branches:
        rewind(branch)
    finals = [branch.final[None] for branch in branches]
    for step in range(sampling.max_tokens):
        audio, silence = (plan_logits(model, final, BARE, step)[0] for final in finals)
        token = int(((1 + weight) * audio - weight * silence).argmax())
        yield token
        if sampling.ends(token, model) or step + 1 == sampling.max_tokens:
            return
        states = model.decoder.embed_tokens(torch.tensor([[token]], device=model.device))
        for i, branch in enumerate(branches):
            positions = torch.tensor([[branch.length + step]], device=model.device)
            finals[i] = walk(model, states, positions, None, branch.cache)[0][:, -1]


def audio_aware_choices(
    model: AudioModel, heard: Heard, silent: Heard, choices: Sequence[str], weight: float = 1.0
) -> list[float]:
    """Probabilities of the choices as `score_choices` has them, by the contrast of two branches."""
    branches = [read_choices(model, branch, choices) for branch in (heard, silent)]
    both = [torch.cat(pair, dim=-1) for pair in zip(*(b.states for b in branches), strict=True)]

    def contrast(states: Tensor, step: int) -> Tensor:
        audio, silence = (
            plan_logits(model, half, BARE, step) for half in states.split(model.width, dim=-1)
        )
        return (1 + weight) * audio - weight * silence

    return choice_probabilities(Choices(branches[0].tokens, both), contrast)


def text_only_direction(
    model: AudioModel,
    silent: Heard,
    instructed: Prompt,
    pairs: KeysAndValues,
    layers: Sequence[int],
) -> Tensor:
    """(K, D): what an instruction to listen adds to the last token's states, about silence.

    `silent` heard the plain prompt's silent twin and kept the same layers; `pairs` are its keys
    and values up to the audio's end. No sound takes part: what this direction gains, steering does
    not owe to the audio.
    """
    return hear_again(model, instructed, pairs, layers=layers).states - silent.states
