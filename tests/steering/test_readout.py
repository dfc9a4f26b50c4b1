from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor

from steering.model.audio_model import AudioModel
from steering.prefill import prefill, run_layers
from steering.readout import Intervention, logits, pool, relative_norm, steer
from tests.steering.examples import prompt

RAW = Intervention(layers=(0, 2), scale="raw", place="before_norm", tokens="every")
SCALES: tuple[Literal["raw", "norm"], ...] = ("raw", "norm")
PLACES: tuple[Literal["before_norm", "after_norm"], ...] = ("before_norm", "after_norm")
TOKENS: tuple[Literal["first", "every"], ...] = ("first", "every")
EVERY_WAY = [
    Intervention(layers=(1,), scale=scale, place=place, tokens=tokens, keep_norm=keep)
    for scale, place, tokens, keep in product(SCALES, PLACES, TOKENS, (False, True))
]


def rows(seed: int, count: int = 3, width: int = 160) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def finals(model: AudioModel, cached: bool) -> Tensor:
    """(3, D) final residuals of real prompts, at the first answer token or two tokens later."""
    residuals = []
    for seconds in (0.5, 1.0, 1.5):
        heard = prefill(model, prompt(model, seconds))
        final = heard.final[None]
        for step, token in enumerate([5, 60] if cached else []):
            with torch.inference_mode():
                states = model.decoder.embed_tokens(torch.tensor([[token]]))
                positions = torch.tensor([[heard.length + step]])
                final = run_layers(model, states, positions, None, heard.cache)[0][:, -1]
        residuals.append(final[0])
    return torch.stack(residuals)


# ---- the arithmetic


def test_raw_adds_strength_times_the_direction() -> None:
    h, d, s = rows(0), rows(1), torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(steer(h, d, s, RAW) - h, s[:, None] * d, atol=1e-6, rtol=1e-5)


def test_norm_gives_the_direction_the_length_of_h() -> None:
    h, d, s = rows(0), 100 * rows(1), torch.tensor([0.5, 1.0, 2.0])
    added = steer(h, d, s, replace(RAW, scale="norm")) - h
    torch.testing.assert_close(added.norm(dim=-1), s * h.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(added, d), torch.ones(3), atol=1e-5, rtol=0)


def test_keep_norm_turns_h_without_stretching_it() -> None:
    h, d, s = rows(0), rows(1), torch.tensor([0.5, 1.0, 2.0])
    turned = steer(h, d, s, replace(RAW, keep_norm=True))
    torch.testing.assert_close(turned.norm(dim=-1), h.norm(dim=-1))
    free = steer(h, d, s, RAW)
    torch.testing.assert_close(torch.cosine_similarity(turned, free), torch.ones(3))


def test_first_steers_the_first_token_only() -> None:
    h, d, s = rows(0), rows(1), torch.ones(3)
    first = replace(RAW, tokens="first")
    assert torch.equal(steer(h, d, s, first, step=0), steer(h, d, s, RAW, step=0))
    assert torch.equal(steer(h, d, s, first, step=1), h)
    assert torch.equal(steer(h, d, s, RAW, step=1), steer(h, d, s, RAW, step=0))


@pytest.mark.parametrize("intervention", EVERY_WAY, ids=str)
def test_a_row_of_strength_zero_comes_back_bit_for_bit(intervention: Intervention) -> None:
    h, d = rows(0), rows(1)
    d[1] = torch.nan  # whatever its direction holds
    steered = steer(h, d, torch.tensor([1.0, 0.0, 0.3]), intervention)
    assert torch.equal(steered[1], h[1])
    assert not torch.equal(steered[0], h[0])
    assert torch.isfinite(steered).all()


def test_a_direction_of_nothing_changes_nothing() -> None:
    h = rows(0)
    for scale in SCALES:
        intervention = Intervention(layers=(1,), scale=scale)
        torch.testing.assert_close(steer(h, torch.zeros_like(h), torch.ones(3), intervention), h)


def test_half_precision_comes_back_in_half_precision() -> None:
    h, d, s = rows(0).bfloat16(), rows(1), torch.tensor([0.5, 1.0, 0.0])
    steered = steer(h, d, s, RAW)
    assert steered.dtype == torch.bfloat16
    expected = (h.float() + s[:, None] * d).bfloat16()
    assert torch.equal(steered, expected)


def test_relative_norm_is_what_was_added_over_h() -> None:
    h, d = rows(0)[0], rows(1)[0]
    for intervention in (RAW, replace(RAW, scale="norm")):
        added = steer(h[None], d[None], torch.tensor([0.7]), intervention)[0] - h
        expected = float(added.norm() / h.norm())
        assert relative_norm(h, d, 0.7, intervention) == pytest.approx(expected, rel=1e-4)


def test_pooling_is_a_mean_or_a_sum_over_layers() -> None:
    differences = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert pool(differences, RAW).tolist() == [2.0, 4.0]
    assert pool(differences, replace(RAW, pool="sum")).tolist() == [4.0, 8.0]
    many = torch.stack([differences, 2 * differences])  # (I, K, D)
    assert pool(many, RAW).tolist() == [[2.0, 4.0], [4.0, 8.0]]


def test_a_record_makes_the_same_intervention_again() -> None:
    for intervention in EVERY_WAY:
        record = json.loads(json.dumps(intervention.record()))
        assert Intervention(**{**record, "layers": tuple(record["layers"])}) == intervention


# ---- into logits, at the first answer token and against a cache


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@torch.inference_mode()
def test_bare_logits_are_the_models(model: AudioModel, cached: bool) -> None:
    h = finals(model, cached)
    expected = model.network.lm_head(model.network.model.language_model.norm(h))
    assert torch.equal(logits(model, h), expected)
    assert logits(model, h).shape == (3, model.text_config.vocab_size)


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@torch.inference_mode()
def test_steering_before_the_norm_or_after_it(model: AudioModel, cached: bool) -> None:
    h, d, s = finals(model, cached), rows(1), torch.tensor([0.5, 1.0, 2.0])
    norm, head = model.network.model.language_model.norm, model.network.lm_head
    before = head(norm(h + s[:, None] * d))
    after = head(norm(h) + s[:, None] * d)
    assert not torch.allclose(before, after, atol=0.1)
    torch.testing.assert_close(logits(model, h, d, s, RAW), before, atol=1e-5, rtol=1e-5)
    intervention = replace(RAW, place="after_norm")
    torch.testing.assert_close(logits(model, h, d, s, intervention), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@pytest.mark.parametrize("intervention", EVERY_WAY, ids=str)
@torch.inference_mode()
def test_in_a_mixed_batch_the_unsteered_row_is_the_bare_models(
    untrained: AudioModel, intervention: Intervention, cached: bool
) -> None:
    h, step = finals(untrained, cached), 2 * int(cached)
    mixed = logits(untrained, h, rows(1), torch.tensor([1.0, 0.0, 0.5]), intervention, step)
    bare = logits(untrained, h)
    assert torch.equal(mixed[1], bare[1])
    steered = intervention.tokens == "every" or step == 0
    assert torch.equal(mixed[0], bare[0]) != steered
    assert torch.equal(mixed[2], bare[2]) != steered


@pytest.mark.parametrize("cached", [False, True], ids=["prefill", "cached"])
@torch.inference_mode()
def test_a_row_in_a_batch_is_steered_as_alone(untrained: AudioModel, cached: bool) -> None:
    h, d, s = finals(untrained, cached), rows(1), torch.tensor([1.0, 0.2, 0.5])
    intervention = Intervention(layers=(1,))
    together = logits(untrained, h, d, s, intervention)
    for row in range(3):
        one = slice(row, row + 1)
        alone = logits(untrained, h[one], d[one], s[one], intervention)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)
