"""The silence twin: the same prompt about silence, made cheap.

A clip's twin is the first F tokens of the shortest rung of a ladder of silences that is as long as
the clip. Attention in the decoder is causal, so keys and values of "words before the clip, then a
rung" are also those of any shorter cut: a few kept entries serve every length, as views. Only the
question is run behind them, beside the prompt or after it, as deep as asked and without logits: the
full second pass about that silence, within float tolerance. Only the encoder knew how long it was;
where every length is a rung, it was as long as the clip.
Source: arXiv 2603.06854, audio-silence direction; the ladder is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from steering.attention.taps import Head, KVPairs
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes, at_once, cuts
from steering.prefill import (
    FollowerResult,
    PrefillResult,
    fill,
    fits_beside,
    follow,
    prefill_beside,
    prefill_in_passes,
)
from steering.prompt import Prompt, encode_in_passes, silent_mels
from steering.silence_cache import (
    SILENCE_BYTES,
    TOP_FRAMES,
    Ladder,
    SilenceCache,
    SilenceKey,
)


@dataclass(frozen=True, slots=True, eq=False)
class SilentPrefix:
    """Keys and values of a prompt's twin up to the end of its audio."""

    pairs: KVPairs  # of each layer down to the deepest asked for; none for a prompt without audio
    from_cache: bool  # whether they were at hand


@dataclass(frozen=True, slots=True, eq=False)
class SilenceContrast:
    """Clip minus silence, at the last prompt token."""

    differences: Tensor  # (K, D) residual of the prompt minus that of its silent twin, a layer each
    silence_attention: Tensor  # (N, F) float32: the tapped heads on the silent audio tokens
    from_cache: bool  # whether the silent prefix was at hand
    silent: PrefillResult | None = None  # the twin's own pass, if it went through all layers


class TwinCache(Cache):
    """Keys and values of a twin: kept silence, then its question; read, and never written to.

    Those of tokens behind, of choices, stand apart until they are taken back.
    """

    def __init__(self, *parts: KVPairs) -> None:
        super().__init__(layers=[])
        self.parts, self.behind = parts, DynamicCache()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens of prefix and question, and behind."""
        kept = sum(int(pairs[layer_idx][0].shape[2]) for pairs in self.parts)
        return kept + int(self.behind.get_seq_length(layer_idx))

    def crop(self, max_length: int) -> None:
        """Take back tokens behind, as many as a number below 0 says."""
        self.behind.crop(max_length)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """(1, H, T + N, d) keys and values of a layer, those of N new tokens last."""
        behind = self.behind.update(key_states, value_states, layer_idx)
        pairs = [*(pairs[layer_idx] for pairs in self.parts), behind]
        keys, values = zip(*pairs, strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def new_silence_cache(
    model: AudioModel, ladder: Ladder, limit_bytes: int = SILENCE_BYTES
) -> SilenceCache:
    """An empty cache; its ladder, where there is one, is as fine as its bytes allow."""
    if ladder.steps:
        token_bytes = model.token_bytes(model.num_layers)
        longest = min(model.window_frames, TOP_FRAMES)
        ladder = Ladder.within(limit_bytes, token_bytes, model.audio_tokens, longest)
    return SilenceCache(limit_bytes, ladder)


def silent_prefix(
    model: AudioModel, prompt: Prompt, silence_cache: SilenceCache, depth: int
) -> SilentPrefix:
    """Find or make the keys and values of a prompt's silent twin, as views of kept ones."""
    return at_once(silent_prefix_in_passes(model, prompt, silence_cache, depth, None))


def silent_prefix_in_passes(
    model: AudioModel, prompt: Prompt, silence_cache: SilenceCache, depth: int, limit: int | None
) -> Passes[SilentPrefix]:
    """The same in passes of at most `limit` tokens; none where it is at hand."""
    if not prompt.audio_mask.any():  # nothing to be silent about
        return SilentPrefix((), from_cache=False)
    longest, frames = model.window_frames, [int(n) for n in prompt.mel_frames]
    *counts, last = [model.audio_tokens(n) for n in frames]
    words = prompt.tokens[: prompt.audio_end - last]
    rungs = tuple(silence_cache.ladder.rung(n, longest) for n in frames)
    key = SilenceKey(words.numpy().tobytes(), rungs, tuple(counts))
    pairs = silence_cache.get(key, depth)
    from_cache = pairs is not None
    if pairs is None:
        pairs = yield from _run_prefix(model, key, depth, silence_cache, limit)
        silence_cache.put(key, pairs)
        if not counts:
            silence_cache.want(key.tokens, depth, longest)
    end = prompt.audio_end
    return SilentPrefix([(k[:, :, :end], v[:, :, :end]) for k, v in pairs[:depth]], from_cache)


def make_ahead(model: AudioModel, silence_cache: SilenceCache) -> None:
    """Make the next entry that may be asked for, if there is free room for it."""
    key, depth = silence_cache.ahead.pop()
    tokens = len(key.tokens) // 8 + model.audio_tokens(key.rungs[-1])
    free = silence_cache.limit_bytes - silence_cache.held_bytes
    if silence_cache.get(key, depth) is None and tokens * model.token_bytes(depth) <= free:
        silence_cache.put(key, at_once(_run_prefix(model, key, depth, silence_cache, None)))


@torch.inference_mode()
def _run_prefix(
    model: AudioModel, key: SilenceKey, depth: int, silence_cache: SilenceCache, limit: int | None
) -> Passes[KVPairs]:
    """Keys and values of everything up to the end of the last clip's whole rung.

    What a kept prefix has of it already, an earlier turn of the conversation, is not run again.
    """
    token_id = model.audio_token_id
    features: list[Tensor] = []
    for rung in key.rungs:
        features.append((yield from _silent_features(model, rung, silence_cache, limit)))
    words = torch.from_numpy(np.frombuffer(key.tokens, np.int64).copy())  # maybe none
    tokens = torch.cat([words, torch.full((len(features[-1]),), token_id)]).to(model.device)
    audio = tokens == token_id  # (P,)
    states = model.decoder.embed_tokens(tokens)[None]
    silence = [f[:n] for f, n in zip(features, (*key.counts, len(features[-1])), strict=True)]
    states[:, audio] = torch.cat(silence).to(states.device, states.dtype)
    clips, whole = silence_cache.beginning(key, depth)
    start = int(audio.nonzero()[sum(key.counts[:clips]) - 1]) + 1 if clips else 0
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(whole[:depth]):
        cache.update(keys[:, :, :start], values[:, :, :start], layer)
    new = len(tokens) - start
    yield from fill(model, states[:, start:], cache, [*cuts(new, limit), new], depth)
    ran: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in ran]


def _silent_features(
    model: AudioModel, frames: int, silence_cache: SilenceCache, limit: int | None
) -> Passes[Tensor]:
    """(F, D) that the encoder makes of silence of so many mel frames."""
    features = silence_cache.features(frames)
    if features is None:
        hop_seconds = model.processor.feature_extractor.hop_length / model.sample_rate_hz
        log_mels = silent_mels(model, [frames * hop_seconds]).to(model.device, model.dtype)
        encoded = yield from encode_in_passes(model, log_mels, torch.tensor([frames]), limit)
        features = encoded.clone()  # its own memory: the encoder's output is longer
        silence_cache.put_features(frames, features)
    return features


def prefill_with_silence(
    model: AudioModel,
    prompt: Prompt,
    prefix: SilentPrefix,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
    one_pass: bool = True,
) -> tuple[PrefillResult, SilenceContrast]:
    """What `prefill` and `contrast_with_silence` give, from one pass through the layers or two."""
    return at_once(
        prefill_with_silence_in_passes(
            model, prompt, prefix, None, heads=heads, layers=layers, one_pass=one_pass
        )
    )


@torch.inference_mode()
def prefill_with_silence_in_passes(
    model: AudioModel,
    prompt: Prompt,
    prefix: SilentPrefix,
    limit: int | None,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
    one_pass: bool = True,
) -> Passes[tuple[PrefillResult, SilenceContrast]]:
    """The same in passes of at most `limit` tokens; without `one_pass` the twin has its own."""
    pairs = prefix.pairs
    if pairs and one_pass and fits_beside(prompt, limit):
        heard, silent = yield from prefill_beside(
            model, prompt, pairs, limit, heads=heads, layers=layers
        )
        return heard, _contrast(model, heard, silent, prefix)
    heard = yield from prefill_in_passes(model, prompt, limit, heads=heads, layers=layers)
    if not pairs:
        return heard, _without_audio(heard)
    silent = yield from follow(model, prompt, pairs, limit, heads=heads, layers=layers)
    return heard, _contrast(model, heard, silent, prefix)


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
        to_readout: run the twin through all layers, so that what it would answer is known.

    Returns:
        Differences (K, D), attention (N, F), and the twin's own pass with `to_readout`.
        Source: arXiv 2603.06854, audio-silence direction: two passes, the clip and silence of its
        duration.
    """
    assert len(prefilled.states) == len(layers), (prefilled.states.shape, layers)
    deepest = 1 + max([*layers, *(layer for layer, _ in heads)], default=0)
    depth = model.num_layers if to_readout else deepest
    prefix = silent_prefix(model, prompt, silence_cache, depth)
    if not prefix.pairs:
        return _without_audio(prefilled)
    asked = follow(model, prompt, prefix.pairs, None, heads=heads, layers=layers)
    return _contrast(model, prefilled, at_once(asked), prefix)


def _contrast(
    model: AudioModel, heard: PrefillResult, silent: FollowerResult, prefix: SilentPrefix
) -> SilenceContrast:
    whole: PrefillResult | None = None
    if len(prefix.pairs) == model.num_layers:
        cache = TwinCache(prefix.pairs, silent.pairs)
        attention, states, final = silent.attention, silent.states, silent.final
        whole = PrefillResult(attention, states, final, cache, heard.length, heard.tokens)
    differences = heard.states - silent.states
    return SilenceContrast(differences, silent.attention, prefix.from_cache, whole)


def _without_audio(heard: PrefillResult) -> SilenceContrast:
    none = heard.attention[:, :0]
    return SilenceContrast(torch.zeros_like(heard.states), none, from_cache=False, silent=heard)
