"""Taps: the attention of chosen heads, read beside the ordinary attention kernel.

The kernel of transformers makes the output, untouched. Beside it, for the tapped heads only, one
query row is computed, the last token's: softmax(q . K' * scale + mask). So nothing of size T x T
is ever kept, and an untapped pass costs nothing. A pass carries its own taps as an argument of
the call; nothing is stored on the model. Source: arXiv 2603.06854, audio attention of a head.

`Taps` keep the attention of each head on each token, for a prompt; `ScoreTaps` only the listening
score, for a token of the answer; `AnswerTaps` those of all tokens of an answer that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "allears_sdpa"  # the name under which transformers finds `tapped_attention`

Head = tuple[int, int]  # (layer, head), both from 0
KVPairs = Sequence[tuple[Tensor, Tensor]]  # keys and values, a pair a layer: each (1, H, P, d)


@dataclass(slots=True, eq=False)
class Taps:
    """The heads to read in one pass, and their attention, filled in by that pass."""

    heads: Mapping[int, Tensor]  # layer -> (h,) int64 head indices, on the model's device
    audio: Tensor  # (B, A) bool, true at audio tokens, of at least the T that are seen
    read: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B, h, T) float32

    @classmethod
    def on(cls, heads: Iterable[Head], audio: Tensor) -> Taps:
        """Taps on `heads` for rows whose audio tokens stand where `audio` (B, T) is true."""
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            by_layer.setdefault(layer, []).append(head)
        indices = {k: torch.tensor(v, device=audio.device) for k, v in by_layer.items()}
        return cls(indices, audio)

    def tap(
        self,
        layer: int,
        query: Tensor,
        keys: Sequence[Tensor],
        mask: Tensor | None,
        scaling: float | None,
    ) -> None:
        """Read a layer, if any head of it is wanted; arguments as those of `last_row`."""
        if layer in self.heads:
            heads = self.heads[layer].to(query.device)  # a layer may be on a card of its own
            mass = last_row(query, keys, mask, scaling, heads).to(self.audio.device)
            self.read[layer] = mass * self.audio[:, None, : mass.shape[-1]]

    def rows(self, heads: Iterable[Head]) -> Tensor:
        """(B, N, T) float32: attention of each of `heads` on every token, zero off the audio."""
        return torch.stack(_of_each(heads, self.heads, self.read), dim=1)


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

    heads: Mapping[int, Tensor]  # layer -> (h,) int64 head indices
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
        if layer in self.heads:
            heads = self.heads[layer].to(query.device)
            (rows,) = attention_rows(query, keys, mask, scaling, heads).to(self.audio.device)
            self.mass[layer] = rows[..., : len(self.audio)][..., self.audio].sum(-1)

    def rows(self, heads: Iterable[Head]) -> Tensor:
        """(Q, N) float32: audio mass of each of `heads` from every token."""
        return torch.stack(_of_each(heads, self.heads, self.mass), dim=1)


def _of_each(
    heads: Iterable[Head], tapped: Mapping[int, Tensor], read: Mapping[int, Tensor]
) -> list[Tensor]:
    """(..., T) of each of `heads`, from what was read (..., h, T) of those tapped in a layer."""
    places = ((layer, (tapped[layer] == head).nonzero()[0, 0]) for layer, head in heads)
    return [read[layer][..., int(place), :] for layer, place in places]


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
    kept, count, own_keys = keys.shape[2], query.shape[2], key.shape[2]
    seen = query.new_ones(count, own_keys, dtype=torch.bool).tril(own_keys - count)  # (Q, Q')
    if query.dtype != torch.float32:  # scores in half precision would be too coarse: SDPA's are not
        seen = torch.cat([seen.new_ones(count, kept), seen], dim=1)[None, None]
        joined = (torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2))
        output, _ = sdpa_attention_forward(module, query, *joined, seen, scaling=scale)
        return output
    # Float32 is of CPUs, where to join the long kept keys with the new ones would cost more.
    groups = query.shape[1] // key.shape[1]
    grouped = (query * scale).unflatten(1, (-1, groups)).flatten(2, 3)  # (1, H / groups, g Q, d)
    own = (grouped @ key.transpose(2, 3)).unflatten(2, (groups, count))  # (1, H', g, Q, Q')
    own = own.masked_fill(~seen, torch.finfo(own.dtype).min).flatten(2, 3)
    shares = torch.cat([grouped @ keys.transpose(2, 3), own], dim=-1).softmax(-1)
    both: Tensor = shares[..., :kept] @ values + shares[..., kept:] @ value
    attended: Tensor = both.unflatten(2, (groups, count)).flatten(1, 2).transpose(1, 2)
    return attended


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
    groups = query.shape[1] // keys[0].shape[1]
    q = query[:, heads, -1:].float()  # (B, h, 1, d)
    k = torch.cat([part[:, heads // groups] for part in keys], dim=2).float()  # (B, h, T, d)
    scores = (q @ k.transpose(2, 3)).squeeze(2) * (scaling or query.shape[-1] ** -0.5)
    if mask is not None:
        row = mask[:, :, -1, : k.shape[2]]  # (B, 1, T)
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~row, hidden) if row.dtype == torch.bool else scores + row
    return scores.softmax(-1)


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """(B, h, T) float32: q . K' of queries (B, h, d) and keys (B, T, d), views of larger tensors.

    Products in half precision would be too coarse; CUDA makes float32 of it without a copy.
    """
    if query.dtype == torch.float32:
        return torch.bmm(query, keys.transpose(1, 2))
    if query.is_cuda:
        return torch.bmm(query, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query.float(), keys.float().transpose(1, 2))


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
    groups = query.shape[1] // keys[0].shape[1]
    k = torch.cat([part[:, heads // groups] for part in keys], dim=2).float()
    scores = query[:, heads].float() @ k.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask[..., : k.shape[2]], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


AttentionInterface.register(ATTENTION, tapped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
