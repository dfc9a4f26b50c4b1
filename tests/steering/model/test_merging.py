"""Merged products: the same numbers from fewer of them."""

from __future__ import annotations

import platform
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steering.generation import UNSTEERED, Sampling, generate
from steering.model import merging
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.model.merging import PackedLinear, merge_and_pack
from steering.prefill import next_state, prefill
from tests.steering import tiny
from tests.steering.examples import every_head, full_pass, prompt

ON_X86 = platform.machine() in ("x86_64", "AMD64")
GREEDY = Sampling(max_tokens=8, ignore_end=True)


def merged(model: AudioModel) -> AudioModel:
    """A copy of a model, its products merged."""
    copy = replace(model, network=deepcopy(model.network))
    merge_and_pack(copy)
    return copy


def parameters(network: Any) -> int:
    return sum(weights.numel() for weights in network.parameters())


@pytest.mark.parametrize("name", tiny.WHOLE)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_merged_products_are_the_separate_ones(
    name: str, dtype: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "packs", lambda *of: False)
    model = load(str(tiny.save(tiny.WHOLE[name], tmp_path)), device="cpu", dtype=dtype)
    asked, heads = prompt(model, 0.7), every_head(model)
    before, size = prefill(model, asked, heads=heads, layers=(0, 2)), parameters(model.network)
    tokens = list(generate(model, before, UNSTEERED, GREEDY))
    products = 2 if name == "qwen3_omni_moe" else 3  # its experts are merged by transformers
    assert merge_and_pack(model)[0] == products * model.num_layers
    assert parameters(model.network) == size, "no weight is there twice"
    after = prefill(model, asked, heads=heads, layers=(0, 2))
    for part in ("attention", "states", "final"):
        torch.testing.assert_close(
            getattr(after, part), getattr(before, part), atol=tolerance, rtol=tolerance, msg=part
        )
    if dtype == "float32":
        assert list(generate(model, after, UNSTEERED, GREEDY)) == tokens
    assert merge_and_pack(model)[0] == 0, "once is enough"


def test_a_merged_network_is_still_one_of_transformers(model: AudioModel, oracle: Any) -> None:
    """Its own forward, with eager attention and its weights."""
    asked = prompt(model, 0.7)
    network = merged(model).network
    network.model.language_model.config._attn_implementation = "eager"
    ours, expected = full_pass(network, asked), full_pass(oracle, asked)
    torch.testing.assert_close(ours.attention, expected.attention, atol=2e-6, rtol=0)
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_what_is_no_plain_linear_layer_stays_as_it_is(untrained: AudioModel) -> None:
    class Quantized(nn.Linear):
        pass

    copy = replace(untrained, network=deepcopy(untrained.network))
    first, *others = copy.decoder.layers
    first.self_attn.v_proj.__class__ = first.mlp.up_proj.__class__ = Quantized
    assert merge_and_pack(copy) == (3 * len(others), 0)
    assert isinstance(first.self_attn.v_proj, Quantized)
    assert isinstance(first.mlp.up_proj, Quantized)


@pytest.mark.skipif(not ON_X86, reason="weights are packed on x86 only")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float32, 1e-4)])
def test_packed_weights_are_the_plain_ones(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(merging, "bfloat16_instructions", lambda: "emulated, maybe")
    monkeypatch.setattr(merging, "gains_in_float32", lambda: True)
    monkeypatch.setattr(merging, "_LARGE", 0)
    model = replace(untrained, network=deepcopy(untrained.network).to(dtype), dtype=dtype)
    asked = prompt(model, 0.7)
    before, layers = prefill(model, asked, layers=(0, 7)), model.num_layers
    state = next_state(model, before, 7)
    fewer, weights = merge_and_pack(model)
    assert fewer == 3 * layers
    assert weights > 4 * layers, "and those of the encoder"
    after = prefill(model, asked, layers=(0, 7))
    torch.testing.assert_close(after.states, before.states, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(next_state(model, after, 7), state, atol=tolerance, rtol=tolerance)
    linear = [m for m in model.network.modules() if isinstance(m, nn.Linear)]
    assert linear == [model.family.readout(model.network)], "no weight is there twice"


@pytest.mark.skipif(not ON_X86, reason="weights are packed on x86 only")
def test_lengths_of_one_step_are_one_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    product = torch.ops.mkldnn._linear_pointwise

    def counted(states: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(states))
        output: torch.Tensor = product(states, *rest)
        return output

    plain = nn.Linear(48, 40, dtype=torch.bfloat16)
    packed = PackedLinear(plain)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    for count in (1, 3, 16, 17, 31, 32, 33, 64):
        states = torch.randn(2, count, 48, dtype=torch.bfloat16)[:1]
        with torch.inference_mode():
            torch.testing.assert_close(packed(states), plain(states), atol=0.05, rtol=0.05)
    assert rows == [1, 4, 16, 32, 32, 32, 64, 64]


def test_float32_is_packed_where_a_large_model_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, large = torch.device("cpu"), 142_000_000
    for gains in (False, True):
        monkeypatch.setattr(merging, "gains_in_float32", lambda gains=gains: gains)
        assert merging.packs(cpu, torch.float32, large) == (gains and ON_X86)
        assert not merging.packs(cpu, torch.float32, 4_000_000)
        assert not merging.packs(torch.device("meta"), torch.float32, large)


def test_the_trial_tells_which_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for packed_seconds, gains in ((0.7, True), (0.8, False)):
        seconds = {nn.Linear: 1.0, PackedLinear: packed_seconds}
        monkeypatch.setattr(merging, "_seconds", lambda layer, s=seconds: [s[type(layer)]] * 2)
        assert merging.gains_in_float32.__wrapped__() is gains


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_bfloat16_is_packed(
    untrained: AudioModel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "bfloat16_instructions", lambda: "AMX")
    model = replace(untrained, network=deepcopy(untrained.network).to(dtype), dtype=dtype)
    assert merge_and_pack(model)[1] == 0
