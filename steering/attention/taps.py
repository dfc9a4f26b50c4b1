"""Taps: the attention of chosen heads, read beside the ordinary attention kernel.

The kernel makes the output, untouched. Beside it, for the tapped heads only, one query row is
computed, the last token's: softmax(q . K' * scale + mask). So nothing of size T x T is ever kept,
and an untapped pass costs nothing. A pass carries its own taps as an argument of the call; nothing
is stored on the model. Source: arXiv 2603.06854, audio attention of a head.

`Taps` keep the attention of each head on each token, for a prompt; `ScoreTaps` only the listening
score, for a token of the answer; `AnswerTaps` those of all tokens of an answer that is known.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from steering.attention.one_token import attend_one_token, is_one_token_on_cpu

ATTENTION = "allears_sdpa"  # the name under which transformers finds `tapped_attention`

Head = tuple[int, int]  # (layer, head), both from 0
KVPairs = Sequence[tuple[Tensor, Tensor]]  # keys and values, a pair a layer: each (1, H, P, d)


@dataclass(frozen=True, slots=True, eq=False)
class TappedHeads:
    """The heads to read, by layer, known to the host and to a device: no pass waits for them."""

    numbers: Mapping[int, tuple[int, ...]]  # layer -> its h heads
    indices: Mapping[int, Tensor]  # layer -> (h,) int64, the same

    @classmethod
    @functools.lru_cache(maxsize=64)
    def on(cls, heads: tuple[Head, ...], device: torch.device) -> TappedHeads:
        """The heads on a device; made once for all passes."""
        numbers: dict[int, tuple[int, ...]] = {}
        for layer, head in heads:
            numbers[layer] = (*numbers.get(layer, ()), head)
        with torch.inference_mode(False):
            indices = {k: torch.tensor(v, device=device) for k, v in numbers.items()}
        return cls(numbers, indices)

    def of_each(self, heads: Iterable[Head], read: Mapping[int, Tensor]) -> list[Tensor]:
        """(..., T) of each of `heads`, from what was read (..., h, T) of a layer."""
        return [read[layer][..., self.numbers[layer].index(head), :] for layer, head in heads]


@dataclass(slots=True, eq=False)
class Taps:
    """The heads to read in one pass, and their attention, filled in by that pass."""

    heads: TappedHeads
    audio: Tensor  # (B, A) bool, true at audio tokens, of at least the T that are seen
    read: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B, h, T) float32

    @classmethod
    def on(cls, heads: Iterable[Head], audio: Tensor) -> Taps:
        """Taps on `heads` for rows whose audio tokens stand where `audio` (B, T) is true."""
        return cls(TappedHeads.on(tuple(heads), audio.device), audio)

    def tap(
        self,
        layer: int,
        query: Tensor,
        keys: Sequence[Tensor],
        mask: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Read a layer, if any head of it is wanted; arguments as those of `last_row`."""
        if layer in self.heads.indices:
            heads = self.heads.indices[layer].to(query.device)  # maybe another card
            mass = last_row(query, keys, mask, scaling, heads).to(self.audio.device)
            self.read[layer] = mass * self.audio[:, None, : mass.shape[-1]]

    def rows(self, heads: Iterable[Head]) -> Tensor:
        """(B, N, T) float32: attention of each of `heads` on every token, zero off the audio."""
        return torch.stack(self.heads.of_each(heads, self.read), dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredHeads:
    """The heads whose mean audio attention is the listening score, by the keys that they share.

    All query heads from the first to the last that is wanted of a key head are multiplied with its
    keys at once, as a view: that costs less than to pick them. Those between weigh nothing.
    """

    spans: Mapping[int, Sequence[tuple[int, slice]]]  # layer -> key heads, and their query heads
    weights: Tensor  # (N,) float32 of all query heads in the spans: 1 / K, or 0

    @classmethod
    def of(cls, heads: Iterable[Head], queries_a_key: int, device: torch.device) -> ScoredHeads:
        """K heads of a model with so many query heads to a key head."""
        by_key: dict[tuple[int, int], list[int]] = {}
        for layer, head in sorted(heads):
            by_key.setdefault((layer, head // queries_a_key), []).append(head)
        spans: dict[int, list[tuple[int, slice]]] = {}
        weights: list[float] = []
        for (layer, key), wanted in by_key.items():
            spans.setdefault(layer, []).append((key, slice(wanted[0], wanted[-1] + 1)))
            weights += [float(head in wanted) for head in range(wanted[0], wanted[-1] + 1)]
        return cls(spans, torch.tensor(weights, device=device) / sum(weights))


@dataclass(slots=True, eq=False)
class ScoreTaps:
    """The taps of a step of one new token a row, and what they read: enough for its score.

    The score is exact: the softmax is over all tokens that the new one sees. Nothing waits for the
    device, and all shapes are the step's own, so that it can be recorded.
    """

    heads: ScoredHeads
    audio: Tensor  # (B, A) float32, 1 at audio tokens, which are among the first A
    products: list[Tensor] = field(default_factory=list)  # (B, h, T) float32, q . K' of each span
    scale: float = 1.0
    mask: Tensor | None = None  # (B, 1, 1, T), as `last_row` takes it

    def tap(
        self,
        layer: int,
        query: Tensor,
        keys: Sequence[Tensor],
        mask: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Multiply a layer's wanted heads, if it has any; `keys` in one part."""
        for key, span in self.heads.spans.get(layer, ()):
            (part,) = keys
            self.products.append(_products(query[:, span, -1], part[:, key]))
            self.scale, self.mask = scaling or query.shape[-1] ** -0.5, mask

    def scores(self) -> Tensor:
        """(B,) float32, the listening score of each row."""
        device = self.audio.device
        products = torch.cat([part.to(device) for part in self.products], dim=1)  # (B, N, T)
        if self.mask is None:
            shares = (products * self.scale).softmax(-1)
        else:
            mask = self.mask[:, 0].to(device)  # (B, 1, T)
            hidden = mask.log() if mask.dtype == torch.bool else mask  # 0 or -inf
            shares = torch.add(hidden, products, alpha=self.scale).softmax(-1)
        mass = torch.bmm(shares[..., : self.audio.shape[1]], self.audio[..., None])  # (B, N, 1)
        return mass[..., 0] @ self.heads.weights


@dataclass(slots=True, eq=False)
class AnswerTaps:
    """The heads to read from every token of a pass behind a prompt, and what they read."""

    heads: TappedHeads
    audio: Tensor  # (P,) bool, true at the prompt's audio tokens
    mass: dict[int, Tensor] = field(default_factory=dict)  # layer -> (h, Q) float32 on the audio

    def tap(
        self,
        layer: int,
        query: Tensor,
        keys: Sequence[Tensor],
        mask: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Read a layer, if any head of it is wanted; arguments as those of `attention_rows`."""
        if layer in self.heads.indices:
            heads = self.heads.indices[layer].to(query.device)
            (rows,) = attention_rows(query, keys, mask, scaling, heads).to(self.audio.device)
            self.mass[layer] = rows[..., : len(self.audio)][..., self.audio].sum(-1)

    def rows(self, heads: Iterable[Head]) -> Tensor:
        """(Q, N) float32: audio mass of each of `heads` from every token."""
        return torch.stack(self.heads.of_each(heads, self.mass), dim=1)


AnyTaps = Taps | ScoreTaps | AnswerTaps


@dataclass(slots=True, eq=False)
class Follower:
    """The first Q tokens of a pass, which follow kept keys and values and see no other token.

    They share every linear layer with the tokens behind them, so that weights are read once for
    both; only attention tells the two apart. What the pass's cache holds already stands between
    the kept keys and theirs, unless a BesideCache keeps `own` for them.
    """

    tokens: int  # Q
    pairs: KVPairs  # of the P tokens that they follow; read, never written to
    taps: Taps | None = None
    states: dict[int, Tensor] = field(default_factory=dict)  # layer -> (1, D) of their last token
    own: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # layer -> (1, H, Q, d) two
    mask: Tensor | None = None  # (1, 1, Q, T) added, of the layer before: that of every layer


class BesideCache(Cache):
    """Keys and values of the tokens behind a follower, whose own stay out of the cache."""

    def __init__(self, cache: Cache, follower: Follower) -> None:
        super().__init__(layers=[])
        self.cache, self.follower = cache, follower

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """(1, H, T, d) keys and values of all tokens behind the follower in a layer."""
        count = self.follower.tokens
        followers = key_states[:, :, :count].clone(), value_states[:, :, :count].clone()
        self.follower.own[layer_idx] = followers
        keys, values = key_states[:, :, count:], value_states[:, :, count:]
        return self.cache.update(keys, values, layer_idx)


def tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    taps: AnyTaps | None = None,
    follower: Follower | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """SDPA attention of transformers; fills `taps` on the way, if the pass has any."""
    if follower is not None:
        k, v = follower.own.get(module.layer_idx, (key, value))  # type: ignore[call-overload]
        q, query = query.tensor_split([follower.tokens], dim=2)
        followed = _follow(module, q, k, v, scaling, follower)
        if not query.shape[2]:
            return followed, None
        output, _ = tapped_attention(
            module, query, key, value, attention_mask, scaling, taps, **options
        )
        return torch.cat([followed, output], dim=1), None
    if taps is not None:  # first, so that the kernel finds these keys in a cache
        layer: int = module.layer_idx  # type: ignore[assignment]
        taps.tap(layer, query, [key], attention_mask, scaling)
    if is_one_token_on_cpu(query, attention_mask):
        return attend_one_token(query, key, value, attention_mask, scaling), None
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return output, None


def _follow(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    follower: Follower,
) -> Tensor:
    """(1, Q, H, d): attention of Q tokens on the kept keys and on their own; fills the taps."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = follower.pairs[layer]
    scale, taps = scaling or query.shape[-1] ** -0.5, follower.taps
    if taps is not None:
        taps.tap(layer, query, [keys, key], None, scale)
    mask = follower.mask
    if mask is None or mask.device != query.device:
        mask = follower.mask = _hidden(query, keys.shape[2], key.shape[2])
    if query.dtype != torch.float32:  # scores in half precision would be too coarse: SDPA's are not
        joined = (torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2))
        output, _ = sdpa_attention_forward(module, query, *joined, mask, scaling=scale)
        return output
    # Float32 is of CPUs, where to join the long kept keys with the new ones would cost more.
    groups = query.shape[1] // key.shape[1]
    grouped = (query * scale).unflatten(1, (-1, groups)).flatten(2, 3)  # (1, H / groups, g Q, d)
    kept, count = keys.shape[2], query.shape[2]
    own = (grouped @ key.transpose(2, 3)).unflatten(2, (groups, count))  # (1, H', g, Q, Q')
    own = (own + mask[..., kept:]).flatten(2, 3)
    shares = torch.cat([grouped @ keys.transpose(2, 3), own], dim=-1).softmax(-1)
    both: Tensor = shares[..., :kept] @ values + shares[..., kept:] @ value
    attended: Tensor = both.unflatten(2, (groups, count)).flatten(1, 2).transpose(1, 2)
    return attended


def _hidden(query: Tensor, kept: int, own: int) -> Tensor:
    """(1, 1, Q, kept + own) to add to scores: Q tokens, the last of `own`, see none that follow."""
    count, total = query.shape[2], kept + own
    hidden = query.new_full((count, total), -torch.inf).triu(total - count + 1)
    return hidden[None, None]


def last_row(
    query: Tensor,
    keys: Sequence[Tensor],
    mask: Tensor | None,
    scaling: float | None,
    heads: Tensor,
) -> Tensor:
    """(B, h, T) float32: attention probabilities of `heads` from the last query to every key.

    query (B, H, Q, d); keys (B, H / groups, T, d), in parts one after the other; mask (B, 1, Q, T),
    bool (true is seen) or added.
    """
    q, k = query[:, heads, -1], _keys_of(heads, query, keys)  # (B, h, d), (B, h, T, d)
    by_head = k.flatten(0, 1).transpose(1, 2)  # (B h, d, T)
    scores = _float32_product(q.flatten(0, 1)[:, None], by_head).view(*k.shape[:3])
    scores = scores * (scaling or query.shape[-1] ** -0.5)
    if mask is not None:
        row = mask[:, :, -1, : k.shape[2]]  # (B, 1, T)
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~row, hidden) if row.dtype == torch.bool else scores + row
    return scores.softmax(-1)


def _keys_of(heads: Tensor, query: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """(B, h, T, d): the keys that some heads read, in one part."""
    groups = query.shape[1] // keys[0].shape[1]
    own = heads // groups if groups > 1 else heads
    parts = [part[:, own] for part in keys]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """(B, h, T) float32: q . K' of queries (B, h, d) and keys (B, T, d), views of larger ones."""
    return _float32_product(query, keys.transpose(1, 2))


def _float32_product(left: Tensor, right: Tensor) -> Tensor:
    """(B, n, m) float32 of (B, n, d) and (B, d, m), which in half precision would be too coarse.

    CUDA makes it without a copy in float32.
    """
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def attention_rows(
    query: Tensor,
    keys: Sequence[Tensor],
    mask: Tensor | None,
    scaling: float | None,
    heads: Tensor,
) -> Tensor:
    """(B, h, Q, T) float32: attention probabilities of `heads` from every query to every key.

    query (B, H, Q, d); keys (B, H / groups, T, d), in parts one after the other; mask (B, 1, Q, T)
    bool, true is seen.
    """
    k = _keys_of(heads, query, keys).float()
    scores = query[:, heads].float() @ k.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., : k.shape[2]], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


AttentionInterface.register(ATTENTION, tapped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
