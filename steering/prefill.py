"""A Prompt becomes a PrefillResult: one pass, layer by layer, with taps on the way.

Running transformers' own layers one by one lets a pass keep the last token's residual of the layers
it is asked for, stop at any depth, and keep nothing else. What has a `limit` goes in passes of at
most so many tokens, each behind the keys and values of those before: what is read comes last, so
that only the last pass has taps and keeps residuals. The results are those of one pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from steering.attention.taps import AnyTaps, BesideCache, Follower, Head, KVPairs, Taps
from steering.heads import listening_score
from steering.model.audio_model import AudioModel
from steering.model.passes import Passes, at_once, cuts
from steering.prompt import Prompt, embed_in_passes


@dataclass(frozen=True, slots=True, eq=False)
class PrefillResult:
    """The results of one pass over a prompt, on the model's device."""

    attention: Tensor  # (N, F) float32: each tapped head on each audio token, from the last token
    states: Tensor  # (K, D) residual of the last token after each of the kept layers
    final: Tensor  # (D,) residual of the last token after the last layer run, before the norm
    cache: Cache  # keys and values of the T prompt tokens, then of the answer's
    length: int  # T
    tokens: Tensor  # (T,) int64 of the prompt, on the CPU

    @property
    def score(self) -> float | None:
        """The listening score, by the tapped heads; None without any, or without audio."""
        return listening_score(self.attention.cpu().numpy()) if self.attention.numel() else None

    @property
    def has_cache(self) -> bool:
        """Whether an answer can still be generated from it."""
        return bool(self.cache.layers)

    def free_cache(self) -> None:
        """Free the keys and values, once they stand in a slot."""
        self.cache.layers.clear()


@dataclass(frozen=True, slots=True, eq=False)
class FollowerResult:
    """The results of a prompt's question behind other keys and values than the prompt's own."""

    attention: Tensor  # (N, F) float32: each tapped head on each audio token, from the last token
    states: Tensor  # (K, D) residual of the last token after each of the kept layers
    final: Tensor  # (D,) residual of the last token after the deepest layer run, before the norm
    pairs: KVPairs  # keys and values of the question, of each layer run


def run_layers(
    model: AudioModel,
    states: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    cache: Cache | None,
    *,
    layers: Sequence[int] = (),
    first: int = 0,
    depth: int | None = None,
    wanted: Literal["states", "behind", "last", "keys"] = "states",
    taps: AnyTaps | None = None,
    follower: Follower | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the decoder's layers, and keep residuals on the way.

    states (B, T, D), positions (B, T), mask (B, 1, T, S) bool, or None for causal self-attention
    (and for one new token that sees the whole cache). Runs the layers from `first` to before
    `depth`, all if None; of the last one only what is `wanted`: all states, the last token's, or
    keys and values in the cache. A follower's tokens come first; of them the last layer is run for
    the last one only, unless all states are wanted, and `behind` are that and all states behind.
    Returns (B, T, D) before the final norm (fewer if less is wanted), and (B, K, D) after each of
    `layers`.
    """
    decoder = model.decoder
    rotary = decoder.rotary_emb(states, positions)
    kept: dict[int, Tensor] = {}
    depth = model.num_layers if depth is None else depth
    context = {
        "attention_mask": mask,
        "position_ids": positions,
        cache_name(decoder.layers[0].__class__): cache,
        "use_cache": cache is not None,
        "position_embeddings": rotary,
        "taps": taps,
        "follower": follower,
    }
    followed = follower.tokens - 1 if follower else -1  # place of the follower's last token
    ends = [-1] if states.shape[1] == followed + 1 or not follower else [followed, -1]
    for layer in range(first, depth):
        if model.layer_devices:
            states, context = _to_device(states, context, model.layer_devices[layer])
        if layer == depth - 1 and wanted != "states":
            places = slice(followed, None) if wanted == "behind" else ends
            states = _run_last_layer(
                decoder.layers[layer], states, context, places, keys_only=wanted == "keys"
            )
            followed = 0
        else:
            states = decoder.layers[layer](states, **context)
        if layer in layers:
            kept[layer] = states[:, -1].to(model.device)
            if follower:
                follower.states[layer] = states[:, followed].to(model.device)
    states = states.to(model.device)
    none = states.new_empty(len(states), 0, states.shape[-1])
    return states, torch.stack([kept[layer] for layer in layers], dim=1) if kept else none


@functools.cache
def cache_name(layer: type[torch.nn.Module]) -> str:
    """Name of a decoder layer's argument for keys and values: `cache` since transformers 5.24."""
    parameters = inspect.signature(layer.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def _to_device(
    states: Tensor, context: dict[str, Any], card: torch.device
) -> tuple[Tensor, dict[str, Any]]:
    """States and what goes with them, on the card that holds the next layer."""
    mask, positions = context["attention_mask"], context["position_ids"]
    moved = {
        "attention_mask": None if mask is None else mask.to(card),
        "position_ids": positions.to(card),
        "position_embeddings": tuple(part.to(card) for part in context["position_embeddings"]),
    }
    return states.to(card), {**context, **moved}


def _run_last_layer(
    layer: Any,
    states: Tensor,
    context: dict[str, Any],
    places: slice | list[int],
    *,
    keys_only: bool,
) -> Tensor:
    """(B, n, D) states of the tokens at n places after a layer: no other token goes through its
    feed-forward part, and none does where only keys and values are wanted.
    """
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(states), **context)
    states = states[:, places] + attended[:, places]
    if keys_only:
        return states
    return states + layer.mlp(layer.post_attention_layernorm(states))  # type: ignore[no-any-return]


def causal_mask(start: int, end: int, device: torch.device) -> Tensor:
    """(1, 1, end - start, end) bool: what each of the tokens from `start` sees."""
    shape = (end - start, end)
    return torch.ones(shape, dtype=torch.bool, device=device).tril(start)[None, None]


@torch.inference_mode()
def prefill(
    model: AudioModel, prompt: Prompt, *, heads: Sequence[Head] = (), layers: Sequence[int] = ()
) -> PrefillResult:
    """Run a prompt: one pass with SDPA, taps on `heads`, residuals of `layers` kept.

    Args:
        model: the model.
        prompt: of T tokens, F of them audio.
        heads: whose attention on the audio is read.
        layers: whose residual at the last token is kept.

    Returns:
        Attention (N, F), states (K, D), the final residual (D,), keys and values.
        Source: arXiv 2603.06854, audio attention of a head: the mass that the last prompt token
        puts on the audio tokens.
    """
    return at_once(prefill_in_passes(model, prompt, None, heads=heads, layers=layers))


@torch.inference_mode()
def prefill_in_passes(
    model: AudioModel,
    prompt: Prompt,
    limit: int | None,
    *,
    heads: Sequence[Head] = (),
    layers: Sequence[int] = (),
) -> Passes[PrefillResult]:
    """The same in passes of at most `limit` tokens."""
    states = yield from embed_in_passes(model, prompt, limit)  # (1, T, D)
    cache = DynamicCache()  # of full attention, whatever window a config names and does not use
    *_, start = starts = cuts(states.shape[1], limit)
    yield from fill(model, states, cache, starts)
    yield states.shape[1] - start
    mask = causal_mask(start, states.shape[1], model.device) if start else None
    return _run_tapped(model, prompt, states[:, start:], mask, cache, heads, layers)


def fill(
    model: AudioModel, states: Tensor, cache: Cache, cut: Sequence[int], depth: int | None = None
) -> Passes[None]:
    """Keys and values of embedded tokens (1, N, D) behind those in a cache, cut by cut."""
    kept = cache.get_seq_length()
    for start, end in pairwise(cut):
        yield end - start
        places = torch.arange(kept + start, kept + end, device=model.device)[None]
        mask = causal_mask(kept + start, kept + end, model.device) if kept + start else None
        some = states[:, start:end]
        run_layers(model, some, places, mask, cache, depth=depth, wanted="keys")


@torch.inference_mode()
def continue_prefix(
    model: AudioModel,
    prompt: Prompt,
    start: int,
    cache: Cache,
    *,
    heads: Sequence[Head] = (),
    layers: Sequence[int] = (),
) -> PrefillResult:
    """The same where `cache` holds keys and values of the tokens before `start`, all audio among
    them: only the text behind is run.
    """
    tokens = prompt.tokens[start:].to(model.device)
    states = model.decoder.embed_tokens(tokens)[None]  # (1, T - start, D)
    mask = causal_mask(start, len(prompt.tokens), model.device)
    return _run_tapped(model, prompt, states, mask, cache, heads, layers)


@torch.inference_mode()
def follow(
    model: AudioModel,
    prompt: Prompt,
    pairs: KVPairs,
    limit: int | None,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
) -> Passes[FollowerResult]:
    """Run a prompt's question, the text behind its audio, behind kept keys and values.

    `pairs` are of all tokens up to the end of the audio, of as many layers as are run.
    """
    tokens = prompt.tokens[prompt.audio_end :].to(model.device)
    states = model.decoder.embed_tokens(tokens)[None]  # (1, Q, D)
    places = torch.arange(prompt.audio_end, len(prompt.tokens), device=model.device)[None]
    cache = DynamicCache()  # of the question only
    depth = len(pairs)
    *_, start = starts = cuts(len(tokens), limit)
    for begin, end in pairwise(starts):
        yield end - begin
        part, where = states[:, begin:end], places[:, begin:end]
        some = Follower(end - begin, pairs)
        run_layers(model, part, where, None, cache, depth=depth, wanted="keys", follower=some)
    yield len(tokens) - start
    follower = _question(model, prompt, pairs, heads, start)
    states, _ = run_layers(
        model,
        states[:, start:],
        places[:, start:],
        None,
        cache,
        layers=layers,
        depth=depth,
        wanted="last",
        follower=follower,
    )
    ran: list[Any] = cache.layers
    asked = [(layer.keys, layer.values) for layer in ran]
    return _result_of(prompt, follower, heads, layers, states[0, 0], asked)


@torch.inference_mode()
def prefill_beside(
    model: AudioModel,
    prompt: Prompt,
    pairs: KVPairs,
    limit: int | None,
    *,
    heads: Sequence[Head],
    layers: Sequence[int],
) -> Passes[tuple[PrefillResult, FollowerResult]]:
    """What `prefill_in_passes` and `follow` give, the twin's question beside the last of the
    passes, which has to hold the prompt's: every weight is read once for both.
    """
    own = yield from embed_in_passes(model, prompt, limit)  # (1, T, D)
    follower = _question(model, prompt, pairs, heads)
    count, length = follower.tokens, len(prompt.tokens)
    cache = DynamicCache()  # of full attention, whatever window a config names and does not use
    *_, start = starts = cuts(length + count, limit)
    yield from fill(model, own, cache, starts)
    yield length + count - start
    audio = prompt.audio_mask.to(model.device)  # (T,)
    taps = Taps.on(heads, audio[None]) if heads else None
    places = torch.arange(length, device=model.device)[None]
    mask = causal_mask(start, length, model.device) if start else None
    depth = len(pairs)
    whole = depth == model.num_layers
    states, kept = run_layers(
        model,
        torch.cat([own[:, -count:], own[:, start:]], dim=1),
        torch.cat([places[:, -count:], places[:, start:]], dim=1),
        mask,
        BesideCache(cache, follower),
        layers=layers,
        depth=depth,
        wanted="last" if whole else "behind",
        taps=taps,
        follower=follower,
    )
    asked = [follower.own[layer] for layer in range(depth)]
    silent = _result_of(prompt, follower, heads, layers, states[0, 0], asked)
    states, behind = states[:, 1:], places[:, start:]
    if not whole:
        states, _ = run_layers(model, states, behind, mask, cache, first=depth, wanted="last")
    attention = taps.rows(heads)[0][:, audio] if taps else states.new_empty(0, int(audio.sum()))
    heard = PrefillResult(attention, kept[0], states[0, -1], cache, length, prompt.tokens)
    return heard, silent


def _question(
    model: AudioModel, prompt: Prompt, pairs: KVPairs, heads: Sequence[Head], start: int = 0
) -> Follower:
    """The prompt's question, from one of its tokens on, as a follower of kept pairs."""
    assert pairs[0][0].shape[2] == prompt.audio_end, (pairs[0][0].shape, prompt.audio_end)
    taps = Taps.on(heads, prompt.audio_mask[None].to(model.device)) if heads else None
    return Follower(len(prompt.tokens) - prompt.audio_end - start, pairs, taps)


def fits_beside(prompt: Prompt, limit: int | None) -> bool:
    """Whether the last of the passes of `prefill_beside` holds the whole question."""
    question = len(prompt.tokens) - prompt.audio_end
    return cuts(len(prompt.tokens) + question, limit)[-1] <= prompt.audio_end


def _result_of(
    prompt: Prompt,
    follower: Follower,
    heads: Sequence[Head],
    layers: Sequence[int],
    final: Tensor,
    pairs: KVPairs,
) -> FollowerResult:
    """What a pass left in its follower."""
    audio, taps = prompt.audio_mask.to(final.device), follower.taps
    attention = taps.rows(heads)[0][:, audio] if taps else final.new_empty(0, int(audio.sum()))
    states = [follower.states[layer][0] for layer in layers]
    kept = torch.stack(states) if states else final.new_empty(0, len(final))
    return FollowerResult(attention, kept, final, pairs)


def _run_tapped(
    model: AudioModel,
    prompt: Prompt,
    states: Tensor,
    mask: Tensor | None,
    cache: Cache,
    heads: Sequence[Head],
    layers: Sequence[int],
) -> PrefillResult:
    """A pass over the last tokens of a prompt, whose embeddings (1, T', D) are `states`."""
    audio = prompt.audio_mask.to(model.device)  # (T,)
    taps = Taps.on(heads, audio[None]) if heads else None
    positions = torch.arange(len(audio) - states.shape[1], len(audio), device=model.device)[None]
    states, kept = run_layers(
        model,
        states,
        positions,
        mask,
        cache,
        layers=layers,
        wanted="last",
        taps=taps,
    )
    attention = taps.rows(heads)[0][:, audio] if taps else states.new_empty(0, int(audio.sum()))
    return PrefillResult(attention, kept[0], states[0, -1], cache, len(audio), prompt.tokens)


@torch.inference_mode()
def next_state(
    model: AudioModel, prefilled: PrefillResult, token: int, taps: AnyTaps | None = None
) -> Tensor:
    """(D,) final residual after one more token of the answer, which joins the cache."""
    states = model.decoder.embed_tokens(torch.tensor([[token]], device=model.device))
    position = prefilled.cache.get_seq_length()
    positions = torch.tensor([[position]], device=model.device)
    return run_layers(model, states, positions, None, prefilled.cache, taps=taps)[0][0, -1]
