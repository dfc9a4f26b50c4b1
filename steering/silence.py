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
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, causal_mask, continue_prefix, run_layers
from steering.prompt import Prompt, silent_mels
from steering.taps import Head

SilenceKey = tuple[bytes, tuple[int, ...], int]  # prefix tokens, mel frames of each clip, depth
KVPairs = list[tuple[Tensor, Tensor]]  # one pair a layer: (1, H, P, d)


@dataclass(frozen=True, slots=True, eq=False)
class SilenceContrast:
    """Clip minus silence, at the last prompt token."""

    differences: Tensor  # (K, D) residual of the prompt minus that of its silent twin, a layer each
    silence_attention: Tensor  # (N, F) float32: the tapped heads on the silent audio tokens
    from_cache: bool  # whether the silent prefix was at hand
    final: Tensor | None = None  # (D,) the twin's last residual, before the norm, if asked for


class SilenceCache:
    """Keys and values of silent prefixes, and the encoder's features of silence, in bounded bytes.

    Least recently used out first. The encoder's features serve every prompt of their duration, so
    they stay when the prefixes they were made for go; they take an eighth of the limit at most.
    Used by one thread. An entry larger than the limit is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[SilenceKey, KVPairs] = OrderedDict()
        self._features: OrderedDict[int, Tensor] = OrderedDict()  # mel frames -> (F, D)

    def get(self, key: SilenceKey) -> KVPairs | None:
        """The pairs of a prefix, or None; they become the most recently used."""
        pairs = self._kept.get(key)
        if pairs is not None:
            self._kept.move_to_end(key)
        return pairs

    def longest_prefix(self, key: SilenceKey) -> KVPairs | None:
        """The pairs of the longest prefix that `key` continues, or None."""
        tokens, frames, depth = key
        starts = [
            kept
            for kept in self._kept
            if kept[2] == depth
            and tokens.startswith(kept[0])
            and frames[: len(kept[1])] == kept[1]
            and len(kept[0]) < len(tokens)
        ]
        return self.get(max(starts, key=lambda kept: len(kept[0]))) if starts else None

    def put(self, key: SilenceKey, pairs: KVPairs) -> None:
        """Keep the pairs of a prefix and let the oldest go until all fit."""
        size = _bytes(pairs)
        if size > self.limit_bytes or key in self._kept:
            return
        self._make_room(size)
        self._kept[key] = pairs
        self.held_bytes += size

    def features(self, frames: int) -> Tensor | None:
        """(F, D) that the encoder makes of so many mel frames of silence, or None."""
        features = self._features.get(frames)
        if features is not None:
            self._features.move_to_end(frames)
        return features

    def put_features(self, frames: int, features: Tensor) -> None:
        """Keep the encoder's features (F, D) of so many mel frames of silence."""
        size, limit = features.nbytes, self.limit_bytes // 8
        if size > limit or frames in self._features:
            return
        while size + sum(kept.nbytes for kept in self._features.values()) > limit:
            self._forget_features()
        self._make_room(size)
        self._features[frames] = features
        self.held_bytes += size

    def _make_room(self, size: int) -> None:
        while self.held_bytes + size > self.limit_bytes:
            if self._kept:
                _, oldest = self._kept.popitem(last=False)
                self.held_bytes -= _bytes(oldest)
            else:
                self._forget_features()

    def _forget_features(self) -> None:
        _, oldest = self._features.popitem(last=False)
        self.held_bytes -= oldest.nbytes

    def clear(self) -> None:
        """Forget all of it."""
        self._kept.clear()
        self._features.clear()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)


def _bytes(pairs: KVPairs) -> int:
    return sum(t.numel() * t.element_size() for pair in pairs for t in pair)


class _PrefixCache(Cache):
    """The cache of a pass behind kept keys and values, which are read and never written to."""

    def __init__(self, pairs: KVPairs | None, *, keep: bool) -> None:
        super().__init__(layers=[])
        self.pairs, self.keep = pairs, keep
        self.joined: KVPairs = []  # of each layer that was run, if they are to be kept

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """(1, H, P + T, d) keys and values of a layer: the kept ones, then the new."""
        new = (key_states, value_states)
        if self.pairs is not None:
            kept = self.pairs[layer_idx]
            new = (torch.cat([kept[0], new[0]], dim=2), torch.cat([kept[1], new[1]], dim=2))
        if self.keep:
            self.joined.append(new)
        return new


@torch.inference_mode()
def contrast_with_silence(
    model: AudioModel,
    prompt: Prompt,
    prefilled: PrefillResult,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
    silence_cache: SilenceCache,
    to_readout: bool = False,
) -> SilenceContrast:
    """Contrast a prompt with its silent twin: clip minus silence, a difference each layer.

    Args:
        model: the model.
        prompt: the prompt with its clips.
        prefilled: its prefill, which kept the residuals of `layers`.
        heads: whose attention on the silent audio is read.
        layers: whose residuals at the last token are compared.
        silence_cache: silent prefixes at hand; a new one is kept there.
        to_readout: run the twin through all layers, so that its final residual is known.

    Returns:
        Differences (K, D), attention (N, F), and the final residual (D,) with `to_readout`.
        Source: arXiv 2603.06854, audio-silence direction: two passes, the clip and silence of its
        duration.
    """
    states = prefilled.states
    assert len(states) == len(layers), (states.shape, layers)
    if not prompt.audio_mask.any():  # nothing to be silent about
        final = prefilled.final if to_readout else None
        none = prefilled.attention[:, :0]
        return SilenceContrast(torch.zeros_like(states), none, from_cache=False, final=final)
    deepest = 1 + max([*layers, *(layer for layer, _ in heads)])
    depth = model.num_layers if to_readout else deepest
    end = prompt.audio_end
    prefix = prompt.tokens[:end].numpy().tobytes()
    key = (prefix, tuple(int(frames) for frames in prompt.mel_frames), depth)
    pairs = silence_cache.get(key)
    from_cache = pairs is not None
    if pairs is None:
        pairs = _run_prefix(model, prompt, key, silence_cache)
        silence_cache.put(key, pairs)
    kv_cache = _PrefixCache(pairs, keep=False)
    silent = continue_prefix(model, prompt, end, kv_cache, heads=heads, layers=layers, depth=depth)
    final = silent.final if to_readout else None
    return SilenceContrast(states - silent.states, silent.attention, from_cache, final)


def _run_prefix(
    model: AudioModel, prompt: Prompt, key: SilenceKey, silence_cache: SilenceCache
) -> KVPairs:
    """Keys and values of everything up to the end of the silent audio.

    What a kept prefix has of it already, an earlier turn of the conversation, is not run again.
    """
    _, mel_frames, depth = key
    kept = silence_cache.longest_prefix(key)
    start = 0 if kept is None else kept[0][0].shape[2]
    end = prompt.audio_end
    tokens, audio = prompt.tokens[start:end], prompt.audio_mask[start:end]
    first_clip = _clips_before(model, mel_frames, int(prompt.audio_mask[:start].sum()))
    states = model.decoder.embed_tokens(tokens.to(model.device))[None]
    features = [
        _silent_features(model, prompt, clip, silence_cache)
        for clip in range(first_clip, len(mel_frames))
    ]
    states[:, audio.to(model.device)] = torch.cat(features).to(states.device, states.dtype)
    positions = torch.arange(start, end, device=model.device)[None]
    kv_cache = _PrefixCache(kept, keep=True)
    mask = None if kept is None else causal_mask(start, end, model.device)
    run_layers(model, states, positions, mask, kv_cache, depth=depth, wanted="keys")
    return kv_cache.joined


def _clips_before(model: AudioModel, mel_frames: Sequence[int], audio_tokens: int) -> int:
    """Number of clips in the first so many audio tokens."""
    ends = accumulate(model.audio_tokens(frames) for frames in mel_frames)
    return sum(end <= audio_tokens for end in ends)


def _silent_features(
    model: AudioModel, prompt: Prompt, clip: int, silence_cache: SilenceCache
) -> Tensor:
    """(F, D) that the encoder makes of silence as long as one of the clips."""
    mel_frames = prompt.mel_frames[clip : clip + 1]  # (1,)
    features = silence_cache.features(int(mel_frames))
    if features is None:
        log_mels = silent_mels(model, prompt.heard_seconds[clip : clip + 1])
        log_mels = log_mels.to(model.device, model.dtype)
        (encoded,) = model.family.hear(model.network, log_mels, mel_frames)
        features = encoded.clone()  # its own memory: the encoder's output is longer
        silence_cache.put_features(int(mel_frames), features)
    return features
