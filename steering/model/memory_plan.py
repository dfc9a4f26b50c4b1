"""Memory needs of a model, from its config alone: nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn

from steering.errors import ModelError
from steering.model.families import Family

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = ("8bit", "4bit")
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}  # 4 bits, and a float32 for each 64


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a model needs; keys are dtypes, 8bit or 4bit."""

    parameters: int  # of what is loaded: of an Omni model the thinker without its eyes
    weight_bytes: Mapping[str, int]
    kv_bytes_a_token: Mapping[str, int]  # keys and values of all layers
    audio_tokens: Callable[[int], int]  # of a number of mel frames

    def row_bytes(self, dtype: str, tokens: int) -> int:
        """Keys and values of one answer's row of a number of tokens."""
        return self.kv_bytes_a_token[dtype] * tokens


def plan(family: Family, whole_config: Any) -> MemoryPlan:
    """The plan of a checkpoint's config, from its network on the meta device."""
    config = deepcopy(family.config(whole_config))
    with torch.device("meta"):
        network = family.network_class()(config)
    count = sum(p.numel() for p in network.parameters())
    linear = sum(
        module.weight.numel()
        for module in family.decoder(network).modules()
        if isinstance(module, nn.Linear)
    )
    text = family.text_config(config)
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    pairs = 2 * int(text.num_hidden_layers) * int(text.num_key_value_heads) * width
    weights = {name: count * dtype.itemsize for name, dtype in DTYPES.items()}
    for name, bytes_each in _QUANTIZED_BYTES.items():
        weights[name] = int((count - linear) * 2 + linear * bytes_each)
    keys = {name: pairs * dtype.itemsize for name, dtype in DTYPES.items()}
    keys |= dict.fromkeys(QUANTIZED, pairs * 2)
    return MemoryPlan(count, weights, keys, partial(family.audio_tokens, config))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def require(needed_bytes: int, free: int, what: str, remedy: str) -> None:
    """Raise ModelError, with both figures and the remedy, if memory is short."""
    if needed_bytes > free:
        raise ModelError(
            f"{what} need {needed_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: {remedy}"
        )
