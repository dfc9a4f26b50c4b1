"""How the model families differ, in one table: everything else is the same code for all.

A family is found by `model_type` of the checkpoint's own config. What a size or an id is, is read
from the checkpoint, never from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """What one architecture calls its parts."""

    name: str
    model_class: str  # in transformers
    decoder: Callable[[Any], Any]  # the module with embed_tokens, layers, rotary_emb, norm
    readout: Callable[[Any], Any]  # (B, D) normed states -> (B, V) logits
    hear: Callable[[Any, Tensor, Tensor], list[Tensor]]  # (C, M, N), (C,) -> C x (F, D)
    text_config: Callable[[Any], Any]
    audio_token_id: Callable[[Any], int]
    audio_tokens: Callable[[int], int]  # mel frames -> audio tokens


def _qwen2_audio_tokens(frames: int) -> int:
    """Audio tokens of so many mel frames: a strided convolution, then a pooling by two."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _qwen2_audio_hear(network: Any, mels: Tensor, frames: Tensor) -> list[Tensor]:
    """Audio embeddings of C clips: each (F, D), from log-mels (C, M, N) and frame counts (C,)."""
    core = network.model
    filled = (frames.to(mels.device) - 1) // 2 + 1  # encoder positions after the strided layer
    positions = torch.arange((mels.shape[-1] - 2) // 2 + 1, device=mels.device)
    mask = (positions[None] < filled[:, None])[:, None, None]  # (C, 1, 1, N/2) bool
    heard = core.audio_tower(mels, attention_mask=mask).last_hidden_state
    audio = core.multi_modal_projector(heard)  # (C, N/4, D)
    counts = [_qwen2_audio_tokens(int(count)) for count in frames]
    return [audio[i, :count] for i, count in enumerate(counts)]


QWEN2_AUDIO = Family(
    name="qwen2_audio",
    model_class="Qwen2AudioForConditionalGeneration",
    decoder=lambda network: network.model.language_model,
    readout=lambda network: network.lm_head,
    hear=_qwen2_audio_hear,
    text_config=lambda config: config.text_config,
    audio_token_id=lambda config: int(config.audio_token_id),
    audio_tokens=_qwen2_audio_tokens,
)

FAMILIES: Mapping[str, Family] = {QWEN2_AUDIO.name: QWEN2_AUDIO}


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`; ModelError with the known ones if unknown."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"model_type {model_type!r} is not a family allears knows; known: "
            f"{', '.join(sorted(FAMILIES))}. Serve one of these, or add a row to steering/family.py"
        )
    return FAMILIES[model_type]
