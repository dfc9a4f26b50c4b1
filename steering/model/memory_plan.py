"""Memory that a model takes while it answers, from its config alone: nothing is allocated.

`sizes` reads the config, `plan` adds up what so many rows of so many tokens take at most,
`refuse_short` holds that against what is free and says which rows and tokens would fit.
"""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from steering.errors import ModelError
from steering.model.families import Family

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED = ("8bit", "4bit")
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}  # 4 bits, and a float32 for each 64
_THIRTY_SECONDS = 3000  # of 30 s, at Whisper's 100 mel frames a second
_FLOAT_BYTES = 4
_KERNEL_BYTES = 630_000  # of a product of a number of rows, whatever its widths
COMPARED_TOKENS = 16  # of an answer, whose distributions with and without the sound are compared
_COMPARED_FLOATS = 7  # of each of their vocabularies, at the widest
_TOKENS_STEP = 64  # of the row lengths that are proposed
_CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model; keys are dtypes, 8bit or 4bit."""

    parameters: int  # of what is loaded: of an Omni model the thinker without its eyes
    weight_bytes: Mapping[str, int]
    kv_bytes_a_token: Mapping[str, int]  # keys and values of all layers
    audio_tokens: Callable[[int], int]  # of a number of mel frames
    hidden_size: int
    vocabulary: int
    longest_row: int  # tokens that have positions
    prefill_values_a_token: int  # numbers that a layer holds of a prompt, at its widest
    encoder_values_a_frame: float  # and the encoder of a clip, for a mel frame
    frames_a_token: float  # mel frames of an audio token
    products: int  # linear layers of different widths of the decoder
    encoder_products: int
    encoder_positions: Callable[[int], int]  # at most, of a row's tokens: rows of its products

    def row_bytes(self, dtype: str, tokens: int) -> int:
        """Keys and values of one answer's row of a number of tokens."""
        return self.kv_bytes_a_token[dtype] * tokens


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a deployment is to hold."""

    dtype: str  # or 8bit, 4bit
    rows: int
    tokens: int  # of a row
    silence_cache_bytes: int
    captured_rows: Callable[[int, int], int] = lambda rows, tokens: 0  # of all graphs together
    compiled_rows: Callable[[int], int] = lambda tokens: 0  # numbers of rows, by oneDNN


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the peak, by what takes them."""

    weights: int
    rows: int  # keys and values of answers, allocated at start
    silence: int  # at most
    graphs: int  # logits of the captured decode steps
    kernels: int  # of oneDNN, compiled as lengths come
    prompts: int  # keys and values of the one prompt that has no row yet, and of its silent twin
    activations: int  # the widest moment of the encoder, a layer or the readout

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """The bytes by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def sizes(family: Family, whole_config: Any) -> ModelSizes:
    """The sizes in a checkpoint's config, from its network on the meta device."""
    config = deepcopy(family.config(whole_config))
    with torch.device("meta"):
        network = family.network_class()(config)
    decoder = family.decoder(network)
    count = sum(p.numel() for p in network.parameters())
    linear = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear))
    text, readout = family.text_config(config), family.readout(network)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    pairs = 2 * int(text.num_hidden_layers) * int(text.num_key_value_heads) * width
    weights = {name: count * dtype.itemsize for name, dtype in DTYPES.items()}
    for name, bytes_each in _QUANTIZED_BYTES.items():
        weights[name] = int((count - linear) * 2 + linear * bytes_each)
    keys = {name: pairs * dtype.itemsize for name, dtype in DTYPES.items()}
    keys |= dict.fromkeys(QUANTIZED, pairs * 2)
    audio_tokens = partial(family.audio_tokens, config)
    frames_a_token = _THIRTY_SECONDS / audio_tokens(_THIRTY_SECONDS)
    return ModelSizes(
        parameters=count,
        weight_bytes=weights,
        kv_bytes_a_token=keys,
        audio_tokens=audio_tokens,
        hidden_size=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        longest_row=int(text.max_position_embeddings),
        products=_products(decoder, [readout]),
        encoder_products=_products(network, [decoder, readout]),
        encoder_positions=partial(_positions, family, config, network, frames_a_token),
        prefill_values_a_token=_prefill_values(text, width),
        encoder_values_a_frame=_encoder_values(network, [decoder, readout]),
        frames_a_token=frames_a_token,
    )


def _products(network: nn.Module, others: Sequence[nn.Module]) -> int:
    """Linear layers of different widths of a network, without parts of it."""
    apart = {part for other in others for part in other.modules()}
    parts = (m for m in network.modules() if isinstance(m, nn.Linear) and m not in apart)
    return len({(part.weight.shape, part.bias is None) for part in parts})


def _positions(
    family: Family, config: Any, network: nn.Module, frames_a_token: float, tokens: int
) -> int:
    """The most positions of an encoder at once, of clips that fit a row of so many tokens."""
    frames = tokens * frames_a_token
    for conv in (part for part in network.modules() if isinstance(part, nn.Conv1d | nn.Conv2d)):
        frames /= conv.stride[-1]
    window = frames if family.any_length else config.audio_config.max_source_positions
    return math.ceil(min(frames, window))


def _prefill_values(text: Any, head_dim: int) -> int:
    """Numbers a token that a pass holds at once: the embeddings, the residual, its norm, and the
    inside of attention or of the feed-forward part.
    """
    hidden, queries = int(text.hidden_size), int(text.num_attention_heads) * head_dim
    keys = int(text.num_key_value_heads) * head_dim
    attention = 4 * queries + 4 * keys
    feed_forward = 3 * int(text.intermediate_size)
    experts = int(getattr(text, "num_experts_per_tok", None) or 0)
    if experts:
        feed_forward = experts * (2 * hidden + 3 * int(text.moe_intermediate_size))
    return 3 * hidden + max(attention, feed_forward)


def _encoder_values(network: Any, others: Sequence[nn.Module]) -> float:
    """Numbers a mel frame that the encoder holds at once: around a convolution, or in a layer."""
    text = {part for other in others for part in other.modules()}
    parts = [part for part in network.modules() if part not in text]
    frames, widest, before, bins = 1.0, 0.0, 0.0, 0.0  # of a mel frame, behind the convolutions
    for conv in (part for part in parts if isinstance(part, nn.Conv1d | nn.Conv2d)):
        frames /= float(conv.stride[-1])
        bins = bins or float(network.config.audio_config.num_mel_bins)
        bins = bins / float(conv.stride[0]) if isinstance(conv, nn.Conv2d) else 1.0
        out = conv.out_channels * bins * frames
        widest, before = max(widest, before + 2 * out), out  # what goes in, comes out, is activated
    inside = [
        3 * part.in_features + 2 * part.out_features
        for part in parts
        if isinstance(part, nn.Linear) and part.out_features > part.in_features
    ]
    return max(widest, max(inside, default=0) * frames)


def plan(of: ModelSizes, wanted: Wanted) -> MemoryPlan:
    """What a deployment takes at most."""
    rows, tokens = wanted.rows, min(wanted.tokens, of.longest_row)
    row = of.row_bytes(wanted.dtype, tokens)
    item = DTYPES.get(wanted.dtype, torch.bfloat16).itemsize
    logits = of.vocabulary * (_FLOAT_BYTES + item)
    passes = wanted.compiled_rows(max(rows, 2 * tokens))  # a twin's question beside the prompt
    encoded = wanted.compiled_rows(of.encoder_positions(tokens))
    moments = (
        tokens * of.frames_a_token * of.encoder_values_a_frame * item,
        tokens * of.prefill_values_a_token * item,
        rows * logits,
        COMPARED_TOKENS * of.vocabulary * _COMPARED_FLOATS * _FLOAT_BYTES,
    )
    return MemoryPlan(
        weights=of.weight_bytes[wanted.dtype],
        rows=rows * (row + of.hidden_size * _FLOAT_BYTES),
        silence=wanted.silence_cache_bytes,
        graphs=wanted.captured_rows(rows, tokens) * of.vocabulary * _FLOAT_BYTES,
        kernels=(passes * of.products + encoded * of.encoder_products) * _KERNEL_BYTES,
        prompts=2 * row,
        activations=int(max(moments)),
    )


def refuse_short(of: ModelSizes, wanted: Wanted, free: int, where: str) -> None:
    """Raise ModelError, with the figures and what would fit, if memory is short."""
    needed = plan(of, wanted)
    if needed.total > free:
        raise ModelError(
            f"short of {gigabytes(needed.total - free)} of memory: {describe(needed)} are"
            f" {gigabytes(needed.total)}, and {gigabytes(free)} are free on {where};"
            f" {fitting(of, wanted, free)}"
        )


def fitting(of: ModelSizes, wanted: Wanted, free: int) -> str:
    """The rows and tokens that would fit into free memory, in words."""
    tokens = min(wanted.tokens, of.longest_row)

    def fit(counts: range, changed: Callable[[int], Wanted]) -> int:
        """The largest of some counts that fits, 0 for none."""
        place = bisect_right(counts, free, key=lambda n: plan(of, changed(n)).total)
        return counts[place - 1] if place else 0

    rows = fit(range(1, wanted.rows + 1), lambda n: replace(wanted, rows=n))
    lengths = range(_TOKENS_STEP, tokens + 1, _TOKENS_STEP)
    length = fit(lengths, lambda n: replace(wanted, tokens=n))
    fits = [f"{rows} rows of {tokens} tokens"] * (rows > 0)
    fits += [f"{wanted.rows} rows of {length} tokens"] * (length > 0)
    if fits:
        return f"{' or '.join(fits)} would fit (ALLEARS_MAX_BATCH_ROWS, ALLEARS_MAX_CONTEXT_TOKENS)"
    return (
        "not one row fits: use a smaller dtype, quantize to 8bit or 4bit, lower"
        " ALLEARS_SILENCE_CACHE_BYTES, or free memory"
    )


def describe(needed: MemoryPlan) -> str:
    """The parts of a plan, in words."""
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in needed.parts().items() if size)


def gigabytes(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def free_bytes(device: torch.device) -> int:
    """Free memory of a device; of the host no more than its container may still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), free_in_container(_CONTAINER))


def free_in_container(folder: Path) -> int:
    """Bytes that the control group in a folder leaves: what it keeps of files can be dropped."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        kept = re.search(
            r"^inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):  # no such group, or no limit
        return sys.maxsize
    return limit - used + (int(kept[1]) if kept else 0)


def require(needed_bytes: int, free: int, what: str, remedy: str) -> None:
    """Raise ModelError, with both figures and the remedy, if memory is short."""
    if needed_bytes > free:
        raise ModelError(
            f"short of {gigabytes(needed_bytes - free)} of memory: {what} need"
            f" {needed_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: {remedy}"
        )
