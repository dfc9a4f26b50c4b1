from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steering import silence
from steering.generation import UNSTEERED, Sampling, generate
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.prompt import Message, Prompt, build_prompt, build_question, silent_twin
from steering.silence import KVPairs, SilenceCache, SilenceContrast, contrast_with_silence
from steering.taps import Head
from tests.steering.examples import QUESTION, clip, full_pass, prompt

HEADS: tuple[Head, ...] = ((1, 3), (0, 6), (1, 0))
LAYERS = (1, 0)
PLENTY = 1 << 30


def contrasted(
    model: AudioModel,
    asked: Prompt,
    prefixes: SilenceCache,
    heard: PrefillResult | None = None,
    layers: tuple[int, ...] = LAYERS,
    heads: tuple[Head, ...] = HEADS,
) -> SilenceContrast:
    heard = heard or prefill(model, asked, layers=layers)
    return contrast_with_silence(
        model, asked, heard, heads=heads, layers=layers, silence_cache=prefixes
    )


def conversation(model: AudioModel) -> Prompt:
    """Two clips with text before, between and after them."""
    return build_prompt(
        model,
        [
            Message("system", ("Be short.",)),
            Message("user", ("Listen first. ", clip(0.7, seed=3), QUESTION)),
            Message("assistant", ("dog",)),
            Message("user", ("And here?", clip(1.9, seed=4), "Which one is louder?")),
        ],
    )


# ---- the same numbers as a plain second pass


@pytest.mark.parametrize("seconds", [(1.0,), (3.0,), (0.3, 1.4), None], ids=str)
def test_miss_hit_and_a_plain_second_pass_agree(
    model: AudioModel, oracle: Any, seconds: tuple[float, ...] | None
) -> None:
    asked = prompt(model, *seconds) if seconds else conversation(model)
    prefixes = SilenceCache(PLENTY)
    heard = prefill(model, asked, layers=LAYERS)
    miss = contrasted(model, asked, prefixes, heard)
    hit = contrasted(model, asked, prefixes, heard)
    assert (miss.from_cache, hit.from_cache) == (False, True)
    assert torch.equal(miss.differences, hit.differences)
    assert torch.equal(miss.silence_attention, hit.silence_attention)

    second = prefill(model, silent_twin(model, asked), heads=HEADS, layers=LAYERS)
    torch.testing.assert_close(miss.differences, heard.states - second.states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(miss.silence_attention, second.attention, atol=2e-6, rtol=0)

    loud, quiet = full_pass(oracle, asked), full_pass(oracle, silent_twin(model, asked))
    difference = loud.residuals[list(LAYERS), -1] - quiet.residuals[list(LAYERS), -1]
    torch.testing.assert_close(miss.differences, difference, atol=1e-4, rtol=1e-4)
    eager = torch.stack(
        [quiet.attention[layer, head, -1, asked.audio_mask] for layer, head in HEADS]
    )
    torch.testing.assert_close(miss.silence_attention, eager, atol=2e-6, rtol=0)
    assert miss.differences.norm(dim=-1).min() > 0.01, "there is a difference to get right"


def test_a_contrast_is_the_same_after_an_answer_was_decoded(model: AudioModel) -> None:
    asked, prefixes = prompt(model), SilenceCache(PLENTY)
    heard = prefill(model, asked, layers=LAYERS)
    before = contrasted(model, asked, prefixes, heard)
    list(generate(model, heard, UNSTEERED, Sampling(max_tokens=5)))
    after = contrasted(model, asked, prefixes, heard)
    assert torch.equal(before.differences, after.differences)


def test_layers_may_be_deeper_than_heads_and_heads_than_layers(untrained: AudioModel) -> None:
    asked = prompt(untrained)
    second = prefill(untrained, silent_twin(untrained, asked), heads=((6, 2),), layers=(4,))
    for heads, layers in ((((6, 2),), (4,)), ((), (4,)), (((6, 2),), ())):
        contrast = contrasted(untrained, asked, SilenceCache(PLENTY), layers=layers, heads=heads)
        heard = prefill(untrained, asked, layers=layers)
        assert contrast.differences.shape == (len(layers), untrained.hidden_size)
        assert contrast.silence_attention.shape == (len(heads), int(asked.audio_mask.sum()))
        if layers:
            expected = heard.states - second.states
            torch.testing.assert_close(contrast.differences, expected, atol=1e-5, rtol=1e-5)
        if heads:
            expected = second.attention
            torch.testing.assert_close(contrast.silence_attention, expected, atol=2e-6, rtol=0)


def test_a_twin_may_run_to_the_readout(model: AudioModel) -> None:
    asked, prefixes = prompt(model), SilenceCache(PLENTY)
    heard = prefill(model, asked, layers=(1,))
    second = prefill(model, silent_twin(model, asked), layers=(1,))
    for _ in ("miss", "hit"):
        contrast = contrast_with_silence(
            model, asked, heard, heads=(), layers=(1,), silence_cache=prefixes, to_readout=True
        )
        assert contrast.final is not None
        torch.testing.assert_close(contrast.final, second.final, atol=1e-5, rtol=1e-5)
        expected = heard.states - second.states
        torch.testing.assert_close(contrast.differences, expected, atol=1e-5, rtol=1e-5)
    assert contrasted(model, asked, prefixes).final is None, "not asked for"


def test_silence_does_not_differ_from_its_twin(untrained: AudioModel) -> None:
    quiet = build_question(untrained, [clip(1.0).silent()], QUESTION)
    contrast = contrasted(untrained, quiet, SilenceCache(PLENTY))
    torch.testing.assert_close(
        contrast.differences, torch.zeros_like(contrast.differences), atol=1e-5, rtol=0
    )


# ---- who shares a prefix


def test_other_words_after_the_same_length_of_audio_share_it(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    assert not contrasted(untrained, prompt(untrained, 1.0), prefixes).from_cache
    other = build_question(
        untrained, [clip(1.0, seed=9)], "What can be heard here?\n(A) dog\n(B) cow"
    )
    shared = contrasted(untrained, other, prefixes)
    assert shared.from_cache
    assert len(prefixes) == 1
    second = prefill(untrained, silent_twin(untrained, other), heads=HEADS, layers=LAYERS)
    expected = prefill(untrained, other, layers=LAYERS).states - second.states
    torch.testing.assert_close(shared.differences, expected, atol=1e-5, rtol=1e-5)


def test_other_lengths_words_before_and_depths_do_not(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = prompt(untrained, 1.0)
    contrasted(untrained, asked, prefixes)
    before = build_prompt(untrained, [Message("user", ("Hear this. ", clip(1.0), QUESTION))])
    for other in (prompt(untrained, 1.01), prompt(untrained, 1.0, 1.0), before):
        assert not contrasted(untrained, other, prefixes).from_cache
    assert not contrasted(untrained, asked, prefixes, layers=(2, 1)).from_cache
    assert contrasted(untrained, asked, prefixes).from_cache, "the first is still there"
    assert len(prefixes) == 5


def test_using_a_kept_prefix_does_not_write_to_it(model: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = prompt(model)
    first = contrasted(model, asked, prefixes)
    (pairs,) = prefixes._kept.values()
    before = [(keys.clone(), values.clone()) for keys, values in pairs]
    for text in ("Name the instrument in the clip.", "Hm?", QUESTION):
        contrasted(model, build_question(model, [clip(1.0)], text), prefixes)
    for (keys, values), (keys_before, values_before) in zip(pairs, before, strict=True):
        assert torch.equal(keys, keys_before)
        assert torch.equal(values, values_before)
    again = contrasted(model, asked, prefixes)
    assert torch.equal(again.differences, first.differences)


# ---- bounded in bytes


def pairs_of(megabytes: float) -> KVPairs:
    half = torch.zeros(1, 1, int(megabytes * 1024), 128)  # of float32: 512 bytes a position
    return [(half, half.clone())]


def size(pairs: KVPairs) -> int:
    return sum(t.nbytes for pair in pairs for t in pair)


def key(n: int) -> tuple[bytes, tuple[int, ...], int]:
    return (str(n).encode(), (n,), 1)


def test_what_is_held_never_passes_the_limit() -> None:
    rng = np.random.default_rng(0)
    prefixes = SilenceCache(limit_bytes=5_000_000)
    most = 0
    for step in range(300):
        n = int(rng.integers(60))
        if prefixes.get(key(n)) is None:
            prefixes.put(key(n), pairs_of(float(rng.exponential(1.0))))
        most = max(most, len(prefixes))
        kept = sum(size(pairs) for pairs in prefixes._kept.values())
        assert prefixes.held_bytes == kept <= prefixes.limit_bytes, step
        assert len(prefixes) == len(prefixes._kept)
    assert most > 4


def test_real_prefixes_of_random_lengths_stay_under_the_limit(grouped: AudioModel) -> None:
    rng = np.random.default_rng(1)
    prefixes = SilenceCache(limit_bytes=120_000)  # about three prefixes
    for _ in range(12):
        seconds = float(rng.uniform(0.1, 3.0))
        contrasted(grouped, prompt(grouped, seconds), prefixes)
        assert 0 < prefixes.held_bytes <= prefixes.limit_bytes
        assert prefixes.held_bytes == held(prefixes)


@pytest.mark.slow
def test_a_thousand_random_durations_stay_under_the_limit(grouped: AudioModel) -> None:
    rng = np.random.default_rng(2)
    prefixes = SilenceCache(limit_bytes=400_000)
    hits, heard = 0, prefill(grouped, prompt(grouped, 0.1), layers=(0,))
    for step in range(1000):
        asked = prompt(grouped, float(rng.uniform(0.1, 3.0)))
        contrast = contrasted(grouped, asked, prefixes, heard, layers=(0,), heads=())
        hits += contrast.from_cache
        assert 0 < prefixes.held_bytes <= prefixes.limit_bytes, step
        assert prefixes.held_bytes == held(prefixes)
    assert hits and len(prefixes) > 3


def test_the_least_recently_used_goes_first() -> None:
    each = pairs_of(1.0)
    prefixes = SilenceCache(limit_bytes=3 * size(each))
    for n in (1, 2, 3):
        prefixes.put(key(n), pairs_of(1.0))
    assert prefixes.get(key(1)) is not None, "used again"
    prefixes.put(key(4), pairs_of(1.0))
    assert [prefixes.get(key(n)) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]
    prefixes.put(key(5), pairs_of(2.5))  # two have to go
    assert [prefixes.get(key(n)) is not None for n in (1, 3, 4, 5)] == [False, False, False, True]


def test_what_is_larger_than_the_limit_is_not_kept_and_costs_nobody_a_place() -> None:
    prefixes = SilenceCache(limit_bytes=size(pairs_of(1.0)))
    prefixes.put(key(1), pairs_of(1.0))
    prefixes.put(key(2), pairs_of(1.1))
    assert prefixes.get(key(2)) is None
    assert prefixes.get(key(1)) is not None


def test_a_prefix_put_twice_counts_once() -> None:
    prefixes = SilenceCache(PLENTY)
    prefixes.put(key(1), pairs_of(1.0))
    prefixes.put(key(1), pairs_of(1.0))
    assert (len(prefixes), prefixes.held_bytes) == (1, size(pairs_of(1.0)))


def test_without_room_every_contrast_is_a_miss_and_still_right(untrained: AudioModel) -> None:
    asked = prompt(untrained)
    kept, none = SilenceCache(PLENTY), SilenceCache(0)
    expected = contrasted(untrained, asked, kept)
    for _ in range(2):
        contrast = contrasted(untrained, asked, none)
        assert not contrast.from_cache
        assert torch.equal(contrast.differences, expected.differences)
    assert (len(none), none.held_bytes) == (0, 0)


def test_only_what_is_needed_is_kept(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = prompt(untrained, 1.0)
    contrasted(untrained, asked, prefixes, layers=(2,), heads=((1, 1),))
    (pairs,) = prefixes._kept.values()
    shapes: list[tuple[int, ...]] = [tuple(t.shape) for pair in pairs for t in pair]
    head_width = untrained.hidden_size // untrained.num_heads
    assert shapes == [(1, untrained.num_heads, asked.audio_end, head_width)] * 2 * 3
    everything: list[Tensor] = [t for pair in pairs for t in pair]
    everything += prefixes._features.values()
    assert prefixes.held_bytes == sum(t.untyped_storage().nbytes() for t in everything)


# ---- what a miss does not run again


def test_a_miss_runs_no_encoder_for_a_length_it_knows(
    untrained: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = SilenceCache(PLENTY)
    contrasted(untrained, prompt(untrained, 1.0), prefixes)
    other = build_prompt(untrained, [Message("user", ("Hear this. ", clip(1.0), QUESTION))])
    heard = prefill(untrained, other, layers=LAYERS)
    expected = contrasted(untrained, other, SilenceCache(PLENTY), heard)
    with monkeypatch.context() as patched:
        patched.setattr(silence, "silent_mels", None)
        contrast = contrasted(untrained, other, prefixes, heard)
    assert not contrast.from_cache
    assert torch.equal(contrast.differences, expected.differences)


def test_a_longer_conversation_continues_the_prefix_of_its_beginning(model: AudioModel) -> None:
    first = [Message("user", (clip(1.0), QUESTION))]
    turn = [Message("assistant", ("A dog.",)), Message("user", (clip(0.5), clip(0.7), "And now?"))]
    prefixes = SilenceCache(PLENTY)
    contrasted(model, build_prompt(model, first), prefixes)
    asked = build_prompt(model, first + turn)
    with watched_tokens(model) as passes:
        heard = prefill(model, asked, heads=HEADS, layers=LAYERS)
        contrast = contrasted(model, asked, prefixes, heard)
    known = build_prompt(model, first).audio_end
    assert passes == [heard.length, asked.audio_end - known, heard.length - asked.audio_end]
    second = prefill(model, silent_twin(model, asked), heads=HEADS, layers=LAYERS)
    torch.testing.assert_close(
        contrast.differences, heard.states - second.states, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(contrast.silence_attention, second.attention, atol=2e-6, rtol=0)
    assert contrasted(model, asked, prefixes, heard).from_cache


def test_another_length_of_the_first_clip_is_no_beginning(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    contrasted(untrained, prompt(untrained, 1.01), prefixes)  # as many audio tokens as 1.0 s
    asked = prompt(untrained, 1.0, 0.5)
    heard = prefill(untrained, asked, layers=LAYERS)
    second = prefill(untrained, silent_twin(untrained, asked), layers=LAYERS)
    contrast = contrasted(untrained, asked, prefixes, heard)
    torch.testing.assert_close(
        contrast.differences, heard.states - second.states, atol=1e-5, rtol=1e-5
    )


@contextmanager
def watched_tokens(model: AudioModel) -> Iterator[list[int]]:
    """Tokens of each pass through the first layer."""
    passes: list[int] = []
    hook = model.decoder.layers[0].register_forward_hook(
        lambda module, inputs, output: passes.append(output.shape[1])
    )
    try:
        yield passes
    finally:
        hook.remove()


def held(prefixes: SilenceCache) -> int:
    """Bytes of everything that is kept."""
    features = sum(kept.nbytes for kept in prefixes._features.values())
    return features + sum(size(pairs) for pairs in prefixes._kept.values())
