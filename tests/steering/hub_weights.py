"""Weights named as in the hub's checkpoints, in shards with an index; never trained."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.steering.hub_vocabulary import write

D, HEADS, KV_HEADS, LAYERS, FFN = 64, 4, 2, 3, 96  # of the decoder
E, ENCODER_LAYERS, ENCODER_FFN = 32, 2, 48
MEL_BINS = 128
EXPERTS, EXPERT_FFN = 8, 16
END = 151645  # <|im_end|>
_SHARDS = 3
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, width: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def encoder_layers(prefix: str, *, key_bias: bool) -> Shapes:
    """The layers of a Whisper encoder."""
    shapes: Shapes = {}
    for i in range(ENCODER_LAYERS):
        layer = f"{prefix}layers.{i}."
        for part in ("k_proj", "q_proj", "v_proj", "out_proj"):
            bias = key_bias or part != "k_proj"
            shapes |= linear(f"{layer}self_attn.{part}", E, E, bias=bias)
        shapes |= linear(f"{layer}fc1", ENCODER_FFN, E) | linear(f"{layer}fc2", E, ENCODER_FFN)
        shapes |= norm(f"{layer}self_attn_layer_norm", E) | norm(f"{layer}final_layer_norm", E)
    return shapes


def convolutions(prefix: str) -> Shapes:
    """The two convolutions before a Whisper encoder's layers."""
    return {
        f"{prefix}conv1.weight": (E, MEL_BINS, 3),
        f"{prefix}conv1.bias": (E,),
        f"{prefix}conv2.weight": (E, E, 3),
        f"{prefix}conv2.bias": (E,),
    }


def decoder(prefix: str, head_dim: int, kv_heads: int, *, experts: bool = False) -> Shapes:
    """The layers of a Qwen decoder: of Qwen2, or of Qwen3 with experts, one tensor each."""
    shapes = norm(f"{prefix}norm", D, bias=False)
    for i in range(LAYERS):
        layer = f"{prefix}layers.{i}."
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes |= norm(layer + part, D, bias=False)
        for part, heads in (("q_proj", HEADS), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            shapes |= linear(f"{layer}self_attn.{part}", heads * head_dim, D, bias=not experts)
        shapes |= linear(f"{layer}self_attn.o_proj", D, HEADS * head_dim, bias=False)
        if not experts:
            shapes |= _feed_forward(f"{layer}mlp.", FFN)
            continue
        for part in ("q_norm", "k_norm"):
            shapes |= norm(f"{layer}self_attn.{part}", head_dim, bias=False)
        shapes |= linear(f"{layer}mlp.gate", EXPERTS, D, bias=False)
        for expert in range(EXPERTS):
            shapes |= _feed_forward(f"{layer}mlp.experts.{expert}.", EXPERT_FFN)
    return shapes


def _feed_forward(prefix: str, width: int) -> Shapes:
    """Gate, up and down."""
    up = linear(f"{prefix}gate_proj", width, D, bias=False)
    up |= linear(f"{prefix}up_proj", width, D, bias=False)
    return up | linear(f"{prefix}down_proj", D, width, bias=False)


def write_weights(folder: Path, shapes: Shapes) -> None:
    """Random bfloat16 weights of these shapes, in shards with an index."""
    random = torch.Generator().manual_seed(zlib.crc32(folder.name.encode()))
    weights = {name: _weight(name, shape, random) for name, shape in shapes.items()}
    share = sum(w.nbytes for w in weights.values()) / _SHARDS
    shards: list[dict[str, Tensor]] = [{}]
    for name, weight in weights.items():
        if sum(w.nbytes for w in shards[-1].values()) >= share and len(shards) < _SHARDS:
            shards.append({})
        shards[-1][name] = weight
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(w.nbytes for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write(folder, "model.safetensors.index.json", index)


def _weight(name: str, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """A weight whose layer keeps the size of what it gets; attention looks somewhere, and answers
    end.
    """
    values = torch.randn(shape, generator=random)
    if name.endswith(".bias"):
        values *= 0.02
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    elif "embed" not in name:
        values /= (values[0].numel()) ** 0.5
        if ".q_proj." in name or ".k_proj." in name:
            values *= 2
    if "lm_head" in name:
        values[END] *= 5
    return values.bfloat16()
