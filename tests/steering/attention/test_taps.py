from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from steering.attention.taps import ATTENTION, ScoredHeads, ScoreTaps, Taps, last_row
from steering.prefill import cache_name

LAYERS, HEADS, WIDTH = 3, 8, 64
LENGTHS = (12, 7, 10)  # tokens of each row; the rest of it is padding on the left
LONGEST = max(LENGTHS)
EVERY_HEAD = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


@pytest.fixture(scope="module", params=[8, 2, 1], ids=lambda n: f"{n}-key-heads")
def decoder(request: pytest.FixtureRequest) -> Any:
    """A random Qwen2 decoder of 8 query heads."""
    config = Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=request.param,
        vocab_size=50,
        initializer_range=0.15,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Qwen2Model(config).eval().requires_grad_(False)


@pytest.fixture
def padding() -> Tensor:
    """(B, T) int64: 0 at the padding on the left of the rows."""
    return torch.stack([(torch.arange(LONGEST) >= LONGEST - n).long() for n in LENGTHS])


@pytest.fixture
def audio(padding: Tensor) -> Tensor:
    """(B, T) bool: in each row, its tokens 1, 2, 3 and 5."""
    place = padding.cumsum(1) * padding
    return torch.isin(place, torch.tensor([2, 3, 4, 6]))


def states() -> Tensor:
    return torch.randn(len(LENGTHS), LONGEST, WIDTH, generator=torch.Generator().manual_seed(1))


def call(
    decoder: Any, kernel: str, inputs: Tensor, padding: Tensor, cached: bool, **more: Any
) -> Any:
    """The decoder's output on all tokens; the last one alone against a cache if `cached`."""
    decoder.config._attn_implementation = kernel
    positions = (padding.cumsum(1) - 1).clamp(min=0)
    if not cached:
        return decoder(
            inputs_embeds=inputs,
            attention_mask=padding,
            position_ids=positions,
            use_cache=False,
            **more,
        )
    cache: Any = {cache_name(decoder.__class__): DynamicCache(config=decoder.config)}
    decoder(
        inputs_embeds=inputs[:, :-1],
        attention_mask=padding[:, :-1],
        position_ids=positions[:, :-1],
        **cache,
    )
    return decoder(
        inputs_embeds=inputs[:, -1:],
        attention_mask=padding,
        position_ids=positions[:, -1:],
        **cache,
        **more,
    )


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@torch.inference_mode()
def test_taps_equal_eager_attentions(
    decoder: Any, padding: Tensor, audio: Tensor, cached: bool
) -> None:
    taps = Taps.on(EVERY_HEAD, audio)
    call(decoder, ATTENTION, states(), padding, cached, taps=taps)
    out = call(decoder, "eager", states(), padding, cached, output_attentions=True)
    eager = torch.cat([layer[:, :, -1] for layer in out.attentions], dim=1)  # (B, L * H, T)
    read = taps.rows(EVERY_HEAD)
    torch.testing.assert_close(read, eager * audio[:, None], atol=2e-6, rtol=0)


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@torch.inference_mode()
def test_taps_leave_the_outputs_bit_identical(
    decoder: Any, padding: Tensor, audio: Tensor, cached: bool
) -> None:
    taps = Taps.on(EVERY_HEAD, audio)
    tapped = call(decoder, ATTENTION, states(), padding, cached, taps=taps).last_hidden_state
    untapped = call(decoder, ATTENTION, states(), padding, cached).last_hidden_state
    plain = call(decoder, "sdpa", states(), padding, cached).last_hidden_state
    assert torch.equal(tapped, untapped)
    assert torch.equal(tapped, plain)


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@torch.inference_mode()
def test_a_row_in_a_batch_reads_what_it_reads_alone(
    decoder: Any, padding: Tensor, audio: Tensor, cached: bool
) -> None:
    together = Taps.on(EVERY_HEAD, audio)
    call(decoder, ATTENTION, states(), padding, cached, taps=together)
    for row, length in enumerate(LENGTHS):
        alone = Taps.on(EVERY_HEAD, audio[row : row + 1, -length:])
        inputs, own = states()[row : row + 1, -length:], padding[row : row + 1, -length:]
        call(decoder, ATTENTION, inputs, own, cached, taps=alone)
        torch.testing.assert_close(
            together.rows(EVERY_HEAD)[row, :, -length:],
            alone.rows(EVERY_HEAD)[0],
            atol=2e-6,
            rtol=0,
        )


@pytest.mark.parametrize("heads", [[(1, 6)], [(2, 5), (0, 1), (2, 2), (2, 3)], EVERY_HEAD])
@torch.inference_mode()
def test_the_score_of_a_cached_token_is_eager_attention(
    decoder: Any, padding: Tensor, audio: Tensor, heads: list[tuple[int, int]]
) -> None:
    scored = ScoredHeads.of(heads, HEADS // decoder.config.num_key_value_heads, audio.device)
    taps = ScoreTaps(scored, audio[:, :-1].float())
    call(decoder, ATTENTION, states(), padding, True, taps=taps)
    out = call(decoder, "eager", states(), padding, True, output_attentions=True)
    eager = [out.attentions[layer][:, head, -1] for layer, head in heads]  # (B, T) each
    expected = (torch.stack(eager, dim=1) * audio[:, None]).sum(-1).mean(-1)
    torch.testing.assert_close(taps.scores(), expected, atol=5e-7, rtol=0)
    assert expected.max() - expected.min() > 1e-3, "the rows differ"


@torch.inference_mode()
def test_only_the_tapped_heads_are_read(decoder: Any, padding: Tensor, audio: Tensor) -> None:
    every, some = Taps.on(EVERY_HEAD, audio), Taps.on([(2, 5), (0, 1), (2, 3)], audio)
    call(decoder, ATTENTION, states(), padding, False, taps=every)
    call(decoder, ATTENTION, states(), padding, False, taps=some)
    assert {layer: tuple(read.shape) for layer, read in some.read.items()} == {
        0: (3, 1, LONGEST),
        2: (3, 2, LONGEST),
    }
    wanted = [(0, 1), (2, 3), (2, 5), (0, 1)]  # any order, any number of times
    assert torch.equal(some.rows(wanted), every.rows(wanted))


@torch.inference_mode()
def test_a_pass_fills_its_own_taps_only(decoder: Any, padding: Tensor, audio: Tensor) -> None:
    mine, yours = Taps.on(EVERY_HEAD, audio), Taps.on(EVERY_HEAD, audio)
    call(decoder, ATTENTION, states(), padding, False, taps=mine)
    before = mine.rows(EVERY_HEAD).clone()
    call(decoder, ATTENTION, states().flip(1), padding, False, taps=yours)
    call(decoder, ATTENTION, states().neg(), padding, False)
    assert torch.equal(mine.rows(EVERY_HEAD), before)
    assert not torch.equal(yours.rows(EVERY_HEAD), before)


@torch.inference_mode()
def test_attention_on_everything_is_one_and_padding_gets_none(
    decoder: Any, padding: Tensor
) -> None:
    taps = Taps.on(EVERY_HEAD, torch.ones_like(padding, dtype=torch.bool))
    call(decoder, ATTENTION, states(), padding, False, taps=taps)
    rows = taps.rows(EVERY_HEAD)
    torch.testing.assert_close(rows.sum(-1), torch.ones(len(LENGTHS), len(EVERY_HEAD)))
    assert not rows.masked_select(padding[:, None] == 0).any()


@torch.inference_mode()
def test_taps_of_a_half_precision_pass_are_float32(
    decoder: Any, padding: Tensor, audio: Tensor
) -> None:
    exact, rough = Taps.on(EVERY_HEAD, audio), Taps.on(EVERY_HEAD, audio)
    call(decoder, ATTENTION, states(), padding, False, taps=exact)
    half = deepcopy(decoder).bfloat16()
    call(half, ATTENTION, states().bfloat16(), padding, False, taps=rough)
    assert rough.rows(EVERY_HEAD).dtype == torch.float32
    torch.testing.assert_close(
        rough.rows(EVERY_HEAD).sum(-1), exact.rows(EVERY_HEAD).sum(-1), atol=0.1, rtol=0
    )


# ---- one row by hand


def test_the_last_row_is_a_softmax_over_the_keys_seen() -> None:
    query = torch.tensor([[[[9.0, 9.0], [1.0, 2.0]], [[9.0, 9.0], [0.0, 1.0]]]])  # (1, 2, 2, 2)
    key = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]]])  # (1, 1, 3, 2): a shared key head
    seen = torch.tensor([[[[True, False, False], [True, True, False]]]])
    row = last_row(query, [key], seen, 0.5, torch.tensor([1, 0]))
    e = torch.e
    by_hand = torch.tensor(
        [
            [1 / (1 + e**0.5), e**0.5 / (1 + e**0.5), 0.0],
            [e**0.5 / (e**0.5 + e), e / (e**0.5 + e), 0.0],
        ]
    )
    torch.testing.assert_close(row[0], by_hand)


def test_an_added_mask_hides_what_a_boolean_one_hides() -> None:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 3, 8, generator=random)
    key = torch.randn(2, 2, 5, 8, generator=random)
    seen = torch.rand(2, 1, 3, 7, generator=random) > 0.3  # a static mask may be longer than keys
    seen[..., 0] = True
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    heads = torch.tensor([0, 3])
    by_flag = last_row(query, [key], seen, None, heads)
    torch.testing.assert_close(last_row(query, [key], added, None, heads), by_flag)
    torch.testing.assert_close(by_flag, last_row(query, [key], seen, 8**-0.5, heads))


def test_without_a_mask_the_last_query_sees_every_key() -> None:
    query, key = torch.zeros(1, 2, 1, 4), torch.randn(1, 2, 6, 4)
    row = last_row(query, [key], None, None, torch.tensor([0, 1]))
    torch.testing.assert_close(row, torch.full((1, 2, 6), 1 / 6))
