"""Fewer, larger products: the query, key and value of an attention as one, gate and up as one.

What is multiplied with the same states shares one weight: the rows of the parts, one after the
other, so that every number is the product that it was, and a step starts one kernel where it
started three. Merged are plain linear layers only: what an adapter or a quantization put in their
place stays as it is. The modules remain those of transformers, with another `forward`: what looks
for them by class finds them.

In bfloat16 on an x86 CPU the weights, those of the encoder too, are also laid out as oneDNN's
kernels read them, in place of the plain ones; in float32 those of a large model are where a trial
on this CPU shows a gain: on some nothing is gained, on others half of the time. For every number of
rows oneDNN compiles kernels of its own, half a megabyte a product, and keeps them: prompts and
clips of all lengths would fill gigabytes. So rows are filled up to one of few numbers.

One layer follows the other, and what it replaced is given back to the system before the next: no
more than a layer is in memory twice, of a model that `load` did not map.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import time
from collections.abc import Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from steering.model.audio_model import AudioModel
from steering.model.loading import bfloat16_instructions

_ATTENTION = ("q_proj", "k_proj", "v_proj")
_FEED_FORWARD = ("gate_proj", "up_proj")
_KERNELS = AttentionInterface()
_PACKED_FOR_ROWS = 16  # and as fast for fewer
_LARGE = 50_000_000  # parameters: a smaller model's float32 is the same on every x86 CPU
_TRIED_ROWS, _TRIALS, _GAIN = (1, 4), 30, 0.75  # of the plain time
_ROWS_STEP = 32  # to a multiple of which more rows are filled up, fewer to a power of two


class MergedLinear(nn.Module):
    """Linear layers of the same input as one."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [part.out_features for part in parts]
        biased = parts[0].bias is not None
        self.whole = nn.Linear(parts[0].in_features, sum(self.sizes), biased, device="meta")
        self.whole.weight = _joined([part.weight for part in parts])  # (sum of sizes, D)
        if biased:
            self.whole.bias = _joined([part.bias for part in parts])  # (sum of sizes,)

    def forward(self, states: Tensor) -> Sequence[Tensor]:
        """The output of each layer, views of one product."""
        outputs: Sequence[Tensor] = self.whole(states).split(self.sizes, dim=-1)
        return outputs


class PackedLinear(nn.Module):
    """A linear layer whose weight only oneDNN can read."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.bias = plain.bias  # (N,)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(  # (N, D)
            plain.weight.detach(), _PACKED_FOR_ROWS
        )

    def forward(self, states: Tensor) -> Tensor:
        """(..., N) of states (..., D)."""
        rows = states.flatten(0, -2)  # (R, D)
        rows = pad(rows, (0, 0, 0, _filled_up(len(rows)) - len(rows)))
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._packed, self.bias, "none", [], ""
        )
        shape = (*states.shape[:-1], product.shape[-1])
        return product[: states.shape[:-1].numel()].view(shape)


def merge_and_pack(model: AudioModel) -> tuple[int, int]:
    """Merge the products of a model's decoder in place, and pack the weights of all linear layers
    but the readout where that is faster.

    Returns:
        How many products a token takes less, and how many weights were packed. A model whose
        layers are on several cards stays as it is: hooks of its linear layers move their inputs.
    """
    if model.layer_devices:
        return 0, 0
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    packing = packs(model.device, model.dtype, parameters)
    fewer = packed = 0
    for layer in model.decoder.layers:
        fewer += _merge(layer.self_attn, _ATTENTION, _attend)
        fewer += _merge(layer.mlp, _FEED_FORWARD, _feed_forward)
        packed += _pack(model, layer) if packing else 0
        _give_back()
    packed += _pack(model, model.network) if packing else 0
    _give_back()
    return fewer, packed


def packs(device: torch.device, dtype: torch.dtype, parameters: int = 0) -> bool:
    """Whether a model's weights of this dtype are packed on a device."""
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if dtype == torch.float32:
        return parameters >= _LARGE and gains_in_float32()
    return dtype == torch.bfloat16 and bool(bfloat16_instructions())


@functools.cache
def gains_in_float32() -> bool:
    """Whether this CPU multiplies few rows by a packed weight in much less time, tried once."""
    if not torch.backends.mkldnn.is_available():
        return False
    plain = nn.Linear(1024, 4096, bias=False, dtype=torch.float32, device="cpu")
    packed = PackedLinear(plain)
    with torch.inference_mode():
        taken = [[_seconds(plain), _seconds(packed)] for _ in range(_TRIALS)]  # by turns
    plain_seconds, packed_seconds = np.min(taken, axis=0).sum(-1)
    return bool(packed_seconds < _GAIN * plain_seconds)


def _seconds(layer: nn.Module) -> list[float]:
    """Of a product with each number of rows."""
    taken = []
    for rows in _TRIED_ROWS:
        states, began = torch.zeros(rows, 1024), time.perf_counter()
        layer(states)
        taken.append(time.perf_counter() - began)
    return taken


def compiled_rows(tokens: int) -> int:
    """How many numbers of rows oneDNN is given, of passes over at most so many tokens."""
    return _PACKED_FOR_ROWS.bit_length() + -(-tokens // _ROWS_STEP)


def _pack(model: AudioModel, part: nn.Module) -> int:
    """Pack the weights of a part of a model, the readout apart: how many."""
    packed, readout = 0, model.family.readout(model.network)
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if child is readout or type(child) is not nn.Linear:
                continue
            if child.weight.dtype == model.dtype:
                setattr(parent, name, PackedLinear(child))
                packed += 1
    return packed


def _give_back() -> None:
    """Let the allocator give what is free back to the system, where it is glibc's."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _filled_up(rows: int) -> int:
    """The number of rows that oneDNN is given for so many."""
    if rows <= _PACKED_FOR_ROWS:
        return 1 << max(0, rows - 1).bit_length()
    return -(-rows // _ROWS_STEP) * _ROWS_STEP


def _merge(module: Any, names: Sequence[str], forward: Any) -> int:
    """One layer in the place of a module's parts, if these are nothing but linear layers."""
    parts: list[Any] = [getattr(module, name, None) for name in names]
    if any(type(part) is not nn.Linear or hasattr(part, "_hf_hook") for part in parts):
        return 0
    if len({(part.bias is None, part.weight.device) for part in parts}) > 1:
        return 0
    module.merged_proj = MergedLinear(parts)
    module.forward = MethodType(forward, module)
    for name in names:
        delattr(module, name)
    return len(names) - 1


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    with torch.inference_mode(False):
        return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)


def _attend(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    cache: Any = None,
    past_key_values: Any = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """(B, T, D) of an attention, by its own parts and kernel, and what the kernel gives beside."""
    its_own = sys.modules[type(attention).__module__]
    query, key, value = (
        part.unflatten(-1, (-1, attention.head_dim))  # (B, T, H, d)
        for part in attention.merged_proj(hidden_states)
    )
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    query, key = its_own.apply_rotary_pos_emb(query, key, *position_embeddings)
    kept = past_key_values if cache is None else cache
    if kept is not None:
        key, value = kept.update(key, value, attention.layer_idx)
    name = attention.config._attn_implementation
    attended, weights = _KERNELS.get_interface(name, its_own.eager_attention_forward)(
        *(attention, query, key, value, attention_mask),
        scaling=attention.scaling,
        dropout=0.0,
        **options,
    )
    return attention.o_proj(attended.flatten(2)), weights


def _feed_forward(feed_forward: Any, states: Tensor) -> Tensor:
    """(B, T, D) of a feed-forward part."""
    gate, up = feed_forward.merged_proj(states)
    output: Tensor = feed_forward.down_proj(feed_forward.act_fn(gate) * up)
    return output
