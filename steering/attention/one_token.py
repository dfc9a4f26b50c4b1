"""Attention of one new token a row, on a CPU in half precision.

torch's kernel for many tokens multiplies a row and a head at a time there: for one token each
product is so small that starting it takes most of the time. Here a product is of many heads and
rows. What is rounded is what that kernel rounds: shares and outputs, not the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCRATCH_NUMBERS = 1 << 20  # keys in float32 at a time: as many as a core's cache holds


def is_one_token_on_cpu(query: Tensor, mask: Tensor | None) -> bool:
    """Whether `attend_one_token` is for this query (B, H, Q, d) and mask."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    plain = mask is None or mask.dtype == torch.bool
    return half and plain and query.shape[2] == 1 and query.device.type == "cpu"


def attend_one_token(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """(B, 1, H, d) attention of each row's one query on the keys that it sees.

    query (B, H, 1, d); keys and values (B, H / groups, T, d); mask (B, 1, 1, T) bool, true is seen,
    or None for all.
    """
    rows, heads, _, width = query.shape
    grouped = query.view(rows, keys.shape[1], -1, width)  # (B, H / groups, groups, d)
    scores = _scores(grouped.float() * (scaling or width**-0.5), keys)
    if mask is not None:
        scores.masked_fill_(~mask[..., : keys.shape[2]], -torch.inf)
    shares = scores.softmax(-1).to(values.dtype)  # (B, H / groups, groups, T)
    return (shares @ values).view(rows, 1, heads, width)


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """(B, H, n, T) float32 of queries (B, H, n, d) in float32 and keys (B, H, T, d) in any type."""
    rows = len(keys)
    some = max(1, min(rows, _SCRATCH_NUMBERS // max(1, keys[0].numel())))
    scratch = torch.empty((some, *keys.shape[1:]), dtype=torch.float32)
    scores = query.new_empty(*query.shape[:3], keys.shape[2])
    for start in range(0, rows, some):
        part = keys[start : start + some]
        in_float32 = scratch[: len(part)].copy_(part)
        products = query[start : start + some] @ in_float32.transpose(2, 3)
        scores[start : start + some] = products
    return scores
