"""One clip with other texts: only the text after the audio is run again, over kept keys and values.

Evaluation asks one question about a clip, its silence, with its options in another order and with
an instruction before it. All of these begin alike, and most of their tokens are audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from steering.attention.taps import Head, KVPairs
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, continue_prefix
from steering.prompt import Prompt


def copy_kv_prefix(heard: PrefillResult, end: int) -> KVPairs:
    """Keys and values of the first `end` tokens of a prompt, a pair for each layer: their own
    memory, so that they outlive what is written behind them.
    """
    layers: list[Any] = heard.cache.layers
    return [(kept.keys[:, :, :end].clone(), kept.values[:, :, :end].clone()) for kept in layers]


@torch.inference_mode()
def prefill_on_prefix(
    model: AudioModel,
    prompt: Prompt,
    pairs: KVPairs,
    *,
    heads: Sequence[Head] = (),
    layers: Sequence[int] = (),
) -> PrefillResult:
    """What `prefill` gives of a prompt whose keys and values up to the audio's end are `pairs`."""
    end = prompt.audio_end
    assert pairs[0][0].shape[2] == end, (pairs[0][0].shape, end)
    cache = DynamicCache()  # of full attention, whatever window a config names and does not use
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return continue_prefix(model, prompt, end, cache, heads=heads, layers=layers)
