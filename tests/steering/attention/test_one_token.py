"""Attention of one token a row in half precision: as exact as torch's own kernel."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from steering.attention import one_token, taps
from steering.attention.one_token import attend_one_token, is_one_token_on_cpu

HALVES = (torch.bfloat16, torch.float16)


def tensors(
    rows: int, heads: int, key_heads: int, tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, keys and values of a store with room to spare, and a mask of rows of all lengths."""
    draw = torch.Generator().manual_seed(rows + tokens)
    query = torch.randn(rows, 1, heads, 32, generator=draw).to(dtype).transpose(1, 2)
    store = torch.randn(2, rows, key_heads, tokens + 9, 32, generator=draw).to(dtype)
    keys, values = store[..., :tokens, :]
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=draw)
    return query, keys, values, (torch.arange(tokens) < lengths)[:, None, None]


def exact(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    attended = scaled_dot_product_attention(
        query.double(), keys.double(), values.double(), mask, scale=scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("heads, key_heads", [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("rows, tokens", [(1, 1), (1, 90), (7, 64), (3, 700)])
@pytest.mark.parametrize("scratch", [1, 5000, 1 << 20])
def test_it_is_as_near_to_the_exact_attention_as_torchs_kernel(
    rows: int,
    tokens: int,
    heads: int,
    key_heads: int,
    dtype: torch.dtype,
    scratch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_token, "_SCRATCH_NUMBERS", scratch)
    query, keys, values, mask = tensors(rows, heads, key_heads, tokens, dtype)
    for seen, scaling in ((mask, None), (None, 0.5)):
        expected = exact(query, keys, values, seen, scaling or 32**-0.5)
        ours = attend_one_token(query, keys, values, seen, scaling)
        torchs = scaled_dot_product_attention(
            query, keys, values, seen, scale=scaling, enable_gqa=True
        ).transpose(1, 2)
        assert ours.shape == torchs.shape and ours.dtype == dtype
        limit = 2 * float((torchs - expected).abs().max()) + float(torch.finfo(dtype).eps)
        assert float((ours - expected).abs().max()) <= limit


def test_a_row_among_others_is_as_it_is_alone() -> None:
    query, keys, values, mask = tensors(9, 6, 2, 300, torch.bfloat16)
    together = attend_one_token(query, keys, values, mask, None)
    for row in range(9):
        one = slice(row, row + 1)
        alone = attend_one_token(query[one], keys[one], values[one], mask[one], None)
        assert torch.equal(together[one], alone)


def test_what_a_row_does_not_see_changes_nothing() -> None:
    query, keys, values, mask = tensors(4, 4, 4, 50, torch.bfloat16)
    before = attend_one_token(query, keys, values, mask, None)
    hidden = ~mask[:, 0, 0]
    for row in range(4):
        keys[row, :, hidden[row]], values[row, :, hidden[row]] = 77.0, -55.0
    assert torch.equal(attend_one_token(query, keys, values, mask, None), before)


def test_only_one_token_in_half_precision_goes_this_way() -> None:
    query, _, _, mask = tensors(2, 4, 4, 20, torch.bfloat16)
    assert not is_one_token_on_cpu(query, mask), "gradients are kept"
    with torch.no_grad():
        assert is_one_token_on_cpu(query, mask) and is_one_token_on_cpu(query.half(), None)
        assert not is_one_token_on_cpu(query.float(), mask)
        assert not is_one_token_on_cpu(query.expand(2, 4, 3, 32), mask)
        assert not is_one_token_on_cpu(query, mask.to(query.dtype)), "a mask that is added"
        assert not is_one_token_on_cpu(query.to("meta"), mask.to("meta"))


def test_the_models_attention_goes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return kernel(*args, **options)

        return call

    for name in ("attend_one_token", "sdpa_attention_forward"):
        monkeypatch.setattr(taps, name, counted(name, getattr(taps, name)))
    module: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    query, keys, values, mask = tensors(2, 6, 2, 20, torch.bfloat16)
    with torch.inference_mode():
        half, _ = taps.tapped_attention(module, query, keys, values, mask)
        whole, _ = taps.tapped_attention(module, query.float(), keys.float(), values.float(), mask)
    assert calls == ["attend_one_token", "sdpa_attention_forward"]
    assert (half.float() - whole).abs().max() < 0.02
