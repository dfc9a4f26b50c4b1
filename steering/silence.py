"""The silence twin: the same prompt about silence of the same length, made cheap.

Requests with the same words before the audio and the same durations share everything up to the
end of the audio, so keys and values of that silent prefix are kept, and only the question is run
against them; only as deep as the deepest layer asked for, and without logits. The result is the
full second pass within float tolerance. Source: arXiv 2603.06854, audio-silence direction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from steering.model import AudioModel
from steering.prefill import Heard, walk
from steering.prompt import Prompt, embed, silent_twin
from steering.taps import Head, Taps

PrefixKey = tuple[bytes, tuple[int, ...], int]  # prefix tokens, mel frames of each clip, depth
KeysAndValues = list[tuple[Tensor, Tensor]]  # one pair a layer: (1, H, P, d)


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """What the clip adds to silence, at the last prompt token."""

    differences: Tensor  # (K, D) residual heard minus residual of the silent twin, a layer each
    silence_attention: Tensor  # (N, F) float32: the tapped heads on the silent audio tokens
    from_cache: bool  # whether the silent prefix was at hand


class SilentPrefixes:
    """Keys and values of silent prefixes, least recently used out first, bounded in bytes.

    Used by one thread. An entry larger than the limit is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[PrefixKey, KeysAndValues] = OrderedDict()

    def get(self, key: PrefixKey) -> KeysAndValues | None:
        """The pairs of a prefix, or None; found ones become the most recently used."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: PrefixKey, pairs: KeysAndValues) -> None:
        """Keep the pairs of a prefix and let the oldest go until all fit."""
        size = _bytes(pairs)
        if size > self.limit_bytes or key in self._kept:
            return
        while self.held_bytes + size > self.limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.held_bytes -= _bytes(oldest)
        self._kept[key] = pairs
        self.held_bytes += size

    def __len__(self) -> int:
        return len(self._kept)


def _bytes(pairs: KeysAndValues) -> int:
    return sum(t.numel() * t.element_size() for pair in pairs for t in pair)


@torch.inference_mode()
def contrast(
    model: AudioModel,
    prompt: Prompt,
    heard: Heard,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
    prefixes: SilentPrefixes,
) -> Contrast:
    """Differences of `layers` between a prompt and its silent twin; `heard` kept those layers."""
    assert len(heard.states) == len(layers), (heard.states.shape, layers)
    depth = 1 + max([*layers, *(layer for layer, _ in heads)])
    end = prompt.audio_end
    tokens = prompt.tokens[:end]
    key = (tokens.numpy().tobytes(), tuple(int(n) for n in prompt.frames), depth)
    pairs = prefixes.get(key)
    from_cache = pairs is not None
    if pairs is None:
        pairs = _run_prefix(model, prompt, end, depth)
        prefixes.put(key, pairs)
    states, attention = _run_question(model, prompt, end, depth, pairs, heads, layers)
    return Contrast(heard.states - states, attention, from_cache)


def _run_prefix(model: AudioModel, prompt: Prompt, end: int, depth: int) -> KeysAndValues:
    """Keys and values of everything up to the end of the silent audio."""
    states = embed(model, silent_twin(model, prompt))[:, :end]
    positions = torch.arange(end, device=model.device)[None]
    cache = DynamicCache(config=model.text_config)
    walk(model, states, positions, None, cache, depth=depth)
    layers: list[Any] = cache.layers[:depth]
    return [(layer.keys, layer.values) for layer in layers]


def _run_question(
    model: AudioModel,
    prompt: Prompt,
    end: int,
    depth: int,
    pairs: KeysAndValues,
    heads: Sequence[Head],
    layers: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """(K, D) last-token states and (N, F) attention of the text after the audio."""
    length = len(prompt.tokens)
    cache = DynamicCache(config=model.text_config)
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)  # concatenation: the kept pair itself is not written to
    text = prompt.tokens[end:].to(model.device)
    states = model.decoder.embed_tokens(text)[None]
    positions = torch.arange(end, length, device=model.device)[None]
    shape = (length - end, length)
    mask = torch.ones(shape, dtype=torch.bool, device=model.device).tril(end)[None, None]
    audio = prompt.audio.to(model.device)
    taps = Taps.on(heads, audio[None]) if heads else None
    _, kept = walk(model, states, positions, mask, cache, layers=layers, depth=depth, taps=taps)
    attention = taps.rows(heads)[0][:, audio] if taps else states.new_empty(0, int(audio.sum()))
    return kept[0], attention
