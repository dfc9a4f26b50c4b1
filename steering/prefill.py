"""A Prompt becomes Heard: the decoder walked once, layer by layer, with taps on the way.

Walking by hand, over transformers' own layers, lets a pass keep the last token's residual of the
layers it is asked for, stop at any depth, and keep nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from steering.model import AudioModel
from steering.prompt import Prompt, embed
from steering.taps import Head, Taps


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What one pass over a prompt leaves behind, on the model's device."""

    attention: Tensor  # (N, F) float32: each tapped head on each audio token, from the last token
    states: Tensor  # (K, D) residual of the last token after each of the kept layers
    final: Tensor  # (D,) residual of the last token after the last layer, before the norm
    cache: Cache  # keys and values of the T prompt tokens
    length: int  # T


def walk(
    model: AudioModel,
    states: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    cache: Cache | None,
    *,
    layers: Sequence[int] = (),
    depth: int | None = None,
    taps: Taps | None = None,
) -> tuple[Tensor, Tensor]:
    """Residuals after a pass: all tokens' after the last layer run, and the last token's.

    states (B, T, D), positions (B, T), mask (B, 1, T, S) bool, or None for causal self-attention
    (and for one new token that sees the whole cache). Runs `depth` layers, all if None.
    Returns (B, T, D) before the final norm, and (B, K, D) after each of `layers`.
    """
    decoder = model.decoder
    rotary = decoder.rotary_emb(states, positions)
    kept: dict[int, Tensor] = {}
    for layer in range(model.layers if depth is None else depth):
        states = decoder.layers[layer](
            states,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=rotary,
            taps=taps,
        )
        if layer in layers:
            kept[layer] = states[:, -1]
    none = states.new_empty(len(states), 0, states.shape[-1])
    return states, torch.stack([kept[layer] for layer in layers], dim=1) if kept else none


@torch.inference_mode()
def prefill(
    model: AudioModel, prompt: Prompt, *, heads: Sequence[Head] = (), layers: Sequence[int] = ()
) -> Heard:
    """What the model heard of a prompt: one pass, SDPA, taps on `heads`, states of `layers`."""
    audio = prompt.audio.to(model.device)
    taps = Taps.on(heads, audio[None]) if heads else None
    positions = torch.arange(len(audio), device=model.device)[None]
    cache = DynamicCache(config=model.text_config)
    states, kept = walk(
        model, embed(model, prompt), positions, None, cache, layers=layers, taps=taps
    )
    attention = taps.rows(heads)[0][:, audio] if taps else states.new_empty(0, int(audio.sum()))
    return Heard(attention, kept[0], states[0, -1], cache, len(audio))
