"""Attention of one new token a row, on a CPU in half precision.

torch's kernel for many tokens multiplies a row and a head at a time there: for one token each
product is so small that starting it takes most of the time. Here a product is of many heads and
rows, in float32, of keys and values copied some rows at a time. Only the output is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_SCRATCH_NUMBERS = 1 << 20  # 4 MB: what was copied is read before it leaves the caches


def is_one_token_on_cpu(query: Tensor, mask: Tensor | None) -> bool:
    """Whether `attend_one_token`, which keeps no gradients, is for this query (B, H, Q, d)."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    plain = mask is None or mask.dtype == torch.bool
    one = query.shape[2] == 1 and query.device.type == "cpu"
    return half and plain and one and not torch.is_grad_enabled()


def attend_one_token(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """(B, 1, H, d) attention of each row's one query on the keys that it sees.

    query (B, H, 1, d); keys and values (B, H / groups, T, d); mask (B, 1, 1, T) bool, true is seen,
    or None for all.
    """
    rows, heads, _, width = query.shape
    kv_heads, seen = keys.shape[1:3]
    scaled = query.float().reshape(rows * kv_heads, -1, width) * (scaling or width**-0.5)
    scores = scaled.new_empty(*scaled.shape[:2], seen)  # (B H', g, T)
    scratch = scaled.new_empty(max(keys[0].numel(), min(keys.numel(), _SCRATCH_NUMBERS)))
    for some, part in _in_float32(keys, scratch):
        torch.bmm(scaled[some], part.transpose(1, 2), out=scores[some])
    by_row = scores.view(rows, -1, seen)  # (B, H, T)
    if mask is not None:
        by_row.masked_fill_(~mask[:, 0, :, :seen], -torch.inf)
    shares = by_row.softmax(-1).view_as(scores)
    attended = torch.empty_like(scaled)
    for some, part in _in_float32(values, scratch):
        torch.bmm(shares[some], part, out=attended[some])
    return attended.to(query.dtype).view(rows, 1, heads, width)


def _in_float32(tokens: Tensor, scratch: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Tokens (B, H, T, d) of some rows at a time, in float32 (n, T, d), and which of B H they are.

    Each is written over the one before.
    """
    rows, heads, *size = tokens.shape
    step = len(scratch) // tokens[0].numel()
    for start in range(0, rows, step):
        part = tokens[start : start + step]
        copied = scratch[: part.numel()].view(part.shape).copy_(part)
        yield slice(start * heads, (start + len(part)) * heads), copied.view(-1, *size)
