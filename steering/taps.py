"""Taps: the attention of chosen heads, read beside the ordinary attention kernel.

The kernel of transformers makes the output, untouched. Beside it, for the tapped heads only, one
query row is computed, the last token's: softmax(q . K' * scale + mask). So nothing of size T x T
is ever kept, and an untapped pass costs nothing. A pass carries its own taps as an argument of
the call; nothing is stored on the model. Source: arXiv 2603.06854, audio attention of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "allears_sdpa"  # the name under which transformers finds `tapped_attention`

Head = tuple[int, int]  # (layer, head), both from 0


@dataclass(slots=True, eq=False)
class Taps:
    """The heads to read in one pass, and their attention, filled in by that pass."""

    heads: Mapping[int, Tensor]  # layer -> (h,) int64 head indices, on the model's device
    audio: Tensor  # (B, T) bool, true at audio tokens
    read: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B, h, T) float32

    @classmethod
    def on(cls, heads: Iterable[Head], audio: Tensor) -> Taps:
        """Taps on `heads` for rows whose audio tokens stand where `audio` (B, T) is true."""
        by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            by_layer.setdefault(layer, []).append(head)
        indices = {k: torch.tensor(v, device=audio.device) for k, v in by_layer.items()}
        return cls(indices, audio)

    def rows(self, heads: Iterable[Head]) -> Tensor:
        """(B, N, T) float32: attention of each of `heads` on every token, zero off the audio."""
        rows = []
        for layer, head in heads:
            place = int((self.heads[layer] == head).nonzero()[0, 0])
            rows.append(self.read[layer][:, place])
        return torch.stack(rows, dim=1)


def tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    taps: Taps | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """SDPA attention of transformers; fills `taps` on the way, if the pass has any."""
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    layer: int = module.layer_idx  # type: ignore[assignment]
    if taps is not None and layer in taps.heads:
        heads = taps.heads[layer].to(query.device)  # a layer may be on a card of its own
        mass = last_row(query, key, attention_mask, scaling, heads).to(taps.audio.device)
        taps.read[layer] = mass * taps.audio[:, None, :]
    return output, None


def last_row(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, heads: Tensor
) -> Tensor:
    """(B, h, T) float32: attention probabilities of `heads` from the last query to every key.

    query (B, H, Q, d), key (B, H / groups, T, d); mask (B, 1, Q, T), bool (true is seen) or added.
    """
    groups = query.shape[1] // key.shape[1]
    q = query[:, heads, -1:].float()  # (B, h, 1, d)
    k = key[:, heads // groups].float()  # (B, h, T, d)
    scores = (q @ k.transpose(2, 3)).squeeze(2) * (scaling or query.shape[-1] ** -0.5)
    if mask is not None:
        row = mask[:, :, -1, : key.shape[2]]  # (B, 1, T)
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~row, hidden) if row.dtype == torch.bool else scores + row
    return scores.softmax(-1)


AttentionInterface.register(ATTENTION, tapped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
