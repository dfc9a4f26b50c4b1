from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from steering.attention.taps import Taps
from steering.generation import UNSTEERED, Sampling, generate
from steering.model.audio_model import AudioModel
from steering.model.passes import cuts
from steering.prefill import prefill, prefill_in_passes, run_layers
from steering.prompt import embed
from tests.steering.examples import every_head, full_pass, keys_and_values, prompt

SECONDS = [(1.0,), (0.4, 2.1), (3.0,)]


@pytest.mark.parametrize("seconds", SECONDS, ids=str)
def test_a_prefill_is_one_pass_of_transformers(
    model: AudioModel, oracle: Any, seconds: tuple[float, ...]
) -> None:
    asked = prompt(model, *seconds)
    heads, layers = every_head(model), range(model.num_layers)
    heard = prefill(model, asked, heads=heads, layers=layers)
    full = full_pass(oracle, asked)

    eager = full.attention[:, :, -1].flatten(0, 1)[:, asked.audio_mask]  # (L * H, F)
    torch.testing.assert_close(heard.attention, eager, atol=2e-6, rtol=0)
    assert heard.attention.max() > 3 * heard.attention.median(), "the oracle has a shape to match"
    torch.testing.assert_close(heard.states, full.residuals[:, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(heard.final, full.residuals[-1, -1], atol=1e-4, rtol=1e-4)
    assert heard.length == len(asked.tokens) == heard.cache.get_seq_length()


def test_states_come_in_the_order_asked_for(untrained: AudioModel) -> None:
    asked = prompt(untrained)
    every = prefill(untrained, asked, layers=range(untrained.num_layers)).states
    assert torch.equal(prefill(untrained, asked, layers=(6, 1, 4)).states, every[[6, 1, 4]])


def test_attention_comes_in_the_order_asked_for(untrained: AudioModel) -> None:
    asked, heads = prompt(untrained), every_head(untrained)
    every = prefill(untrained, asked, heads=heads).attention
    some = [(5, 2), (0, 7), (5, 1)]
    attention = prefill(untrained, asked, heads=some).attention
    torch.testing.assert_close(attention, every[[heads.index(head) for head in some]])


def test_nothing_asked_for_is_nothing_kept(untrained: AudioModel) -> None:
    asked = prompt(untrained)
    heard = prefill(untrained, asked)
    assert heard.attention.shape == (0, int(asked.audio_mask.sum()))
    assert heard.states.shape == (0, untrained.hidden_size)


def test_taps_and_kept_states_leave_the_pass_bit_identical(model: AudioModel) -> None:
    asked = prompt(model)
    plain = prefill(model, asked)
    tapped = prefill(model, asked, heads=every_head(model), layers=range(model.num_layers))
    assert torch.equal(plain.final, tapped.final)
    pairs = zip(keys_and_values(plain), keys_and_values(tapped), strict=True)
    for (keys, values), (tapped_keys, tapped_values) in pairs:
        assert torch.equal(keys, tapped_keys)
        assert torch.equal(values, tapped_values)


# ---- the walk


@torch.inference_mode()
def test_the_walk_is_the_decoder_of_transformers(model: AudioModel) -> None:
    states = embed(model, prompt(model, 0.7))
    positions = torch.arange(states.shape[1])[None]
    walked, kept = run_layers(model, states, positions, None, None, layers=(0, 2))
    out = model.decoder(inputs_embeds=states, use_cache=False, output_hidden_states=True)
    assert torch.equal(model.decoder.norm(walked), out.last_hidden_state)
    assert torch.equal(kept[:, 0], out.hidden_states[1][:, -1])


@torch.inference_mode()
@pytest.mark.parametrize("depth", [1, 2])
def test_a_truncated_walk_is_the_first_layers_of_the_whole(model: AudioModel, depth: int) -> None:
    states = embed(model, prompt(model, 0.7))
    positions = torch.arange(states.shape[1])[None]
    cache = DynamicCache(config=model.text_config)
    walked, _ = run_layers(model, states, positions, None, cache, depth=depth)
    out = model.decoder(inputs_embeds=states, use_cache=False, output_hidden_states=True)
    assert torch.equal(walked, out.hidden_states[depth])
    run = [cache.get_seq_length(layer) for layer in range(len(cache.layers))]
    assert run == [states.shape[1]] * depth + [0] * (len(run) - depth), "deeper layers did not run"


@torch.inference_mode()
def test_cached_decode_is_the_full_pass_with_taps_and_states(
    model: AudioModel, oracle: Any
) -> None:
    asked, heads = prompt(model), every_head(model)
    heard = prefill(model, asked)
    answer = [7, 301, 12, 99]
    for step, token in enumerate(answer):
        states = model.decoder.embed_tokens(torch.tensor([[token]]))
        audio = torch.zeros(1, heard.length + step + 1, dtype=torch.bool)
        audio[:, : heard.length] = asked.audio_mask
        taps = Taps.on(heads, audio)
        positions = torch.tensor([[heard.length + step]])
        final, kept = run_layers(
            model,
            states,
            positions,
            None,
            heard.cache,
            layers=range(model.num_layers),
            taps=taps,
        )
        full = full_pass(oracle, asked, answer[: step + 1])
        eager = full.attention[:, :, -1].flatten(0, 1) * audio
        torch.testing.assert_close(taps.rows(heads)[0], eager, atol=2e-6, rtol=0)
        torch.testing.assert_close(kept[0], full.residuals[:, -1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(final[0, -1], full.residuals[-1, -1], atol=1e-4, rtol=1e-4)


# ---- in passes


def test_cuts_are_of_about_one_size_and_within_the_limit() -> None:
    assert cuts(10, None) == cuts(10, 10) == cuts(0, 4) == [0]
    for tokens in range(1, 50):
        sizes = np.diff([*cuts(tokens, 7), tokens])
        assert sizes.max() <= 7
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("limit", [7, 24])
def test_a_prefill_in_passes_is_that_in_one(model: AudioModel, limit: int) -> None:
    asked, heads = prompt(model, 0.6, 2.1), every_head(model)
    layers = range(model.num_layers)
    whole = prefill(model, asked, heads=heads, layers=layers)
    passes = prefill_in_passes(model, asked, limit, heads=heads, layers=layers)
    sizes: list[int] = []
    while True:
        try:
            sizes.append(next(passes))
        except StopIteration as end:
            parts = end.value
            break
    entered = sizes[-len(cuts(len(asked.tokens), limit)) :]  # behind the encoder's, layer by layer
    assert max(entered) <= limit
    assert sum(entered) == len(asked.tokens)
    for name in ("attention", "states", "final"):
        torch.testing.assert_close(
            getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=1e-5, msg=name
        )
    assert parts.length == parts.cache.get_seq_length()
    sampling = Sampling(max_tokens=8, ignore_end=True)
    written = [list(generate(model, heard, UNSTEERED, sampling)) for heard in (whole, parts)]
    assert written[0] == written[1]
