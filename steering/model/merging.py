"""Fewer, larger products: the query, key and value of an attention as one, gate and up as one.

What is multiplied with the same states shares one weight: the rows of the parts, one after the
other, so that every number is the product that it was, and a decode step reads the states once and
starts a kernel where it started three. Merged are plain linear layers only: what an adapter or a
quantization put in their place stays as it is. The separate weights are freed layer by layer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from steering.model.audio_model import AudioModel

_ATTENTION = ("q_proj", "k_proj", "v_proj")
_FEED_FORWARD = ("gate_proj", "up_proj")
_NORMS = ("q_norm", "k_norm")  # of each head, in some families
_SETTINGS = (
    *("config", "layer_idx", "head_dim", "scaling", "num_key_value_groups", "is_causal"),
    "sliding_window",
)
_KERNELS = AttentionInterface()


class MergedLinear(nn.Module):
    """Linear layers of the same input as one."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [part.out_features for part in parts]
        self.weight = _joined([part.weight for part in parts])  # (sum of sizes, D)
        biases = [part.bias for part in parts]
        self.bias = None if biases[0] is None else _joined(biases)  # (sum of sizes,)

    def forward(self, states: Tensor) -> Sequence[Tensor]:
        """The output of each layer, views of one product."""
        return nn.functional.linear(states, self.weight, self.bias).split(self.sizes, dim=-1)


class MergedAttention(nn.Module):
    """An attention of transformers whose query, key and value are one product.

    It has the parts and the settings of the one it replaces, as attention kernels read them.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv_proj = _merge(attention, _ATTENTION)
        self.o_proj = attention.o_proj
        self.q_norm, self.k_norm = (getattr(attention, n, nn.Identity()) for n in _NORMS)
        for name in _SETTINGS:
            setattr(self, name, getattr(attention, name, None))
        its_own = sys.modules[type(attention).__module__]
        self._rotate, self._eager = its_own.apply_rotary_pos_emb, its_own.eager_attention_forward

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D), and what the kernel gives of its weights."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)) for part in self.qkv_proj(hidden_states)
        )
        query, key = self.q_norm(query).transpose(1, 2), self.k_norm(key).transpose(1, 2)
        value = value.transpose(1, 2)  # (B, H, T, d) each
        query, key = self._rotate(query, key, *position_embeddings)
        kept = past_key_values if cache is None else cache
        if kept is not None:
            key, value = kept.update(key, value, self.layer_idx)
        kernel = _KERNELS.get_interface(self.config._attn_implementation, self._eager)
        attended, weights = kernel(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **options
        )
        return self.o_proj(attended.flatten(2)), weights


class MergedFeedForward(nn.Module):
    """A feed-forward part of transformers whose gate and up are one product."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        self.gate_up_proj = _merge(feed_forward, _FEED_FORWARD)
        self.down_proj, self.act_fn = feed_forward.down_proj, feed_forward.act_fn

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, D)."""
        gate, up = self.gate_up_proj(states)
        output: Tensor = self.down_proj(self.act_fn(gate) * up)
        return output


@torch.inference_mode(False)
def merge_products(model: AudioModel) -> int:
    """Merge the products of a model's decoder in place.

    Returns:
        How many products a token takes less. A model whose layers are on several cards stays as it
        is: hooks of its linear layers move their inputs.
    """
    fewer = 0
    if model.layer_devices:
        return fewer
    for layer in model.decoder.layers:
        if _are_plain(layer.self_attn, _ATTENTION):
            layer.self_attn = MergedAttention(layer.self_attn).eval()
            fewer += len(_ATTENTION) - 1
        if _are_plain(layer.mlp, _FEED_FORWARD):
            layer.mlp = MergedFeedForward(layer.mlp).eval()
            fewer += len(_FEED_FORWARD) - 1
    return fewer


def _are_plain(module: Any, names: Sequence[str]) -> bool:
    """Whether a module's parts of these names are nothing but linear layers with their weights."""
    parts = [getattr(module, name, None) for name in names]
    if any(type(part) is not nn.Linear or hasattr(part, "_hf_hook") for part in parts):
        return False
    return len({(part.bias is None, part.weight.device) for part in parts}) == 1


def _merge(module: Any, names: Sequence[str]) -> MergedLinear:
    """One layer in the place of some of a module, which are gone from there."""
    merged = MergedLinear([getattr(module, name) for name in names])
    for name in names:
        delattr(module, name)
    return merged


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), requires_grad=False)
