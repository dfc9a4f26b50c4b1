from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steering import silence
from steering.attention.taps import Head, KVPairs
from steering.generation import UNSTEERED, Sampling, generate
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.prompt import Message, Prompt, build_prompt, build_question, silent_twin
from steering.silence import (
    SilenceContrast,
    contrast_with_silence,
    make_ahead,
    prefill_with_silence,
    silent_prefix,
)
from steering.silence_cache import Ladder, SilenceCache, SilenceKey
from tests.steering.examples import (
    QUESTION,
    clip,
    full_pass,
    hearing_silence,
    keys_and_values,
    prompt,
)

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


def one_pass(
    model: AudioModel, asked: Prompt, prefixes: SilenceCache, depth: int = 2
) -> tuple[PrefillResult, SilenceContrast]:
    prefix = silent_prefix(model, asked, prefixes, depth)
    return prefill_with_silence(model, asked, prefix, heads=HEADS, layers=LAYERS)


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


# ---- the lengths of silence


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("longest", [3000, 30_000, 600])
def test_a_rung_is_the_shortest_that_is_as_long(steps: int, longest: int) -> None:
    rungs = list(Ladder(steps).rungs(longest))
    assert rungs == sorted(set(rungs)) and rungs[-1] == longest
    assert all(b <= math.ceil(a * 2 ** (1 / steps)) + 1 for a, b in pairwise(rungs))
    for frames in {1, 47, 48, 100, 375, 376, 599, 600, *range(7, longest, 97), longest}:
        rung = Ladder(steps).rung(frames, longest)
        assert rung in rungs and rung >= frames
        assert not [other for other in rungs if frames <= other < rung]
    assert {3000, 1500, 750, 375} & set(range(longest + 1)) <= set(rungs)
    assert Ladder(0).rung(123, longest) == 123


def test_more_bytes_make_a_finer_ladder() -> None:
    tokens = [Ladder(n).tokens(lambda frames: frames // 4, 3000) for n in (1, 2, 4)]
    assert tokens == sorted(tokens) and 1_480 <= tokens[0] <= 1_500
    for steps, count in zip((1, 2, 4), tokens, strict=True):
        for limit, expected in ((40 * count, steps), (40 * count - 1, max(steps // 2, 1))):
            found = Ladder.within(limit, 10, lambda frames: frames // 4, 3000)
            assert found == Ladder(expected), limit


# ---- the same numbers as a plain second pass


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("seconds", [(1.0,), (3.0,), (0.3, 1.4), None], ids=str)
def test_miss_hit_one_pass_and_a_plain_second_pass_agree(
    model: AudioModel, seconds: tuple[float, ...] | None, steps: int
) -> None:
    asked = prompt(model, *seconds) if seconds else conversation(model)
    prefixes = SilenceCache(PLENTY, Ladder(steps))
    heard = prefill(model, asked, heads=HEADS, layers=LAYERS)
    miss = contrasted(model, asked, prefixes, heard)
    hit = contrasted(model, asked, prefixes, heard)
    assert (miss.from_cache, hit.from_cache) == (False, True)
    assert torch.equal(miss.differences, hit.differences)
    assert torch.equal(miss.silence_attention, hit.silence_attention)

    second = prefill(hearing_silence(model, Ladder(steps)), asked, heads=HEADS, layers=LAYERS)
    beside, contrast = one_pass(model, asked, prefixes)
    for one in (hit, contrast):
        expected = heard.states - second.states
        torch.testing.assert_close(one.differences, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(one.silence_attention, second.attention, atol=2e-6, rtol=0)
    for name in ("attention", "states", "final"):
        torch.testing.assert_close(
            getattr(beside, name), getattr(heard, name), atol=2e-5, rtol=1e-5
        )
    for mine, alone in zip(keys_and_values(beside), keys_and_values(heard), strict=True):
        torch.testing.assert_close(mine, alone, atol=2e-5, rtol=1e-5)
    assert beside.length == heard.length
    answers = [
        list(generate(model, one, UNSTEERED, Sampling(max_tokens=4))) for one in (beside, heard)
    ]
    assert answers[0] == answers[1]
    assert miss.differences.norm(dim=-1).min() > 0.01, "there is a difference to get right"


def test_every_length_a_rung_is_silence_of_the_clips_own_length(
    model: AudioModel, oracle: Any
) -> None:
    asked = conversation(model)
    contrast = contrasted(model, asked, SilenceCache(PLENTY, Ladder(0)))
    loud, quiet = full_pass(oracle, asked), full_pass(oracle, silent_twin(model, asked))
    difference = loud.residuals[list(LAYERS), -1] - quiet.residuals[list(LAYERS), -1]
    torch.testing.assert_close(contrast.differences, difference, atol=1e-4, rtol=1e-4)
    eager = torch.stack(
        [quiet.attention[layer, head, -1, asked.audio_mask] for layer, head in HEADS]
    )
    torch.testing.assert_close(contrast.silence_attention, eager, atol=2e-6, rtol=0)


def test_a_contrast_is_the_same_after_an_answer_was_decoded(model: AudioModel) -> None:
    asked, prefixes = prompt(model), SilenceCache(PLENTY)
    heard = prefill(model, asked, layers=LAYERS)
    before = contrasted(model, asked, prefixes, heard)
    list(generate(model, heard, UNSTEERED, Sampling(max_tokens=5)))
    after = contrasted(model, asked, prefixes, heard)
    assert torch.equal(before.differences, after.differences)


def test_layers_may_be_deeper_than_heads_and_heads_than_layers(untrained: AudioModel) -> None:
    asked = prompt(untrained)
    quiet = hearing_silence(untrained, Ladder())
    second = prefill(quiet, asked, heads=((6, 2),), layers=(4,))
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
    second = prefill(hearing_silence(model, Ladder()), asked, layers=(1,))
    for _ in ("miss", "hit"):
        contrast = contrast_with_silence(
            model, asked, heard, heads=(), layers=(1,), silence_cache=prefixes, to_readout=True
        )
        assert contrast.silent is not None
        torch.testing.assert_close(contrast.silent.final, second.final, atol=1e-5, rtol=1e-5)
        expected = heard.states - second.states
        torch.testing.assert_close(contrast.differences, expected, atol=1e-5, rtol=1e-5)
    assert contrasted(model, asked, prefixes).silent is None, "not asked for"
    assert len(prefixes) == 1, "the deeper one serves both"
    beside, contrast = one_pass(model, asked, prefixes, depth=model.num_layers)
    assert contrast.silent is not None
    torch.testing.assert_close(contrast.silent.final, second.final, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(beside.final, heard.final, atol=1e-5, rtol=1e-5)


def test_silence_does_not_differ_from_its_twin(untrained: AudioModel) -> None:
    quiet = build_question(untrained, [clip(1.0).silent()], QUESTION)
    contrast = contrasted(untrained, quiet, SilenceCache(PLENTY, Ladder(0)))
    torch.testing.assert_close(
        contrast.differences, torch.zeros_like(contrast.differences), atol=1e-5, rtol=0
    )


# ---- who shares a prefix


def test_a_prompt_may_begin_with_its_clip(untrained: AudioModel) -> None:
    """As in a user's own `generate`, where no template puts words before it."""
    whole = prompt(untrained, 0.7)
    first = int(whole.audio_mask.nonzero()[0])
    asked = replace(whole, tokens=whole.tokens[first:], audio_mask=whole.audio_mask[first:])
    heard = prefill(untrained, asked, heads=[(0, 1)], layers=(1,))
    for _ in range(2):
        twin = contrast_with_silence(
            untrained, asked, heard, heads=[(0, 1)], layers=(1,), silence_cache=SilenceCache(10**8)
        )
        assert twin.differences.isfinite().all()


def test_other_words_after_shorter_audio_share_it(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    assert not contrasted(untrained, prompt(untrained, 1.2), prefixes).from_cache
    for seconds in (1.2, 1.0, 0.95, 1.87):
        text = f"What can be heard in {seconds} s?\n(A) dog\n(B) cow"
        other = build_question(untrained, [clip(seconds, seed=9)], text)
        shared = contrasted(untrained, other, prefixes)
        assert shared.from_cache
        second = prefill(hearing_silence(untrained, Ladder()), other, layers=LAYERS)
        expected = prefill(untrained, other, layers=LAYERS).states - second.states
        torch.testing.assert_close(shared.differences, expected, atol=1e-5, rtol=1e-5)
    assert len(prefixes) == 1


def test_longer_clips_words_before_and_depths_do_not(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = prompt(untrained, 1.0)
    contrasted(untrained, asked, prefixes)
    before = build_prompt(untrained, [Message("user", ("Hear this. ", clip(1.0), QUESTION))])
    others = (prompt(untrained, 1.9), prompt(untrained, 1.0, 1.0), before)
    for other in (*others, prompt(untrained, 0.9, 1.0)):  # the first clip's cut is in the key
        assert not contrasted(untrained, other, prefixes).from_cache
    assert contrasted(untrained, prompt(untrained, 1.0, 1.1), prefixes).from_cache
    assert not contrasted(untrained, asked, prefixes, layers=(2, 1)).from_cache
    assert contrasted(untrained, asked, prefixes).from_cache, "the deeper one serves it"
    assert len(prefixes) == 5


def test_using_a_kept_prefix_does_not_write_to_it(model: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = prompt(model)
    first = contrasted(model, asked, prefixes)
    (pairs,) = prefixes._kept.values()
    before = [(keys.clone(), values.clone()) for keys, values in pairs]
    for text in ("Name the instrument in the clip.", "Hm?", QUESTION):
        other = build_question(model, [clip(1.0)], text)
        contrasted(model, other, prefixes)
        one_pass(model, other, prefixes)
    for (keys, values), (keys_before, values_before) in zip(pairs, before, strict=True):
        assert torch.equal(keys, keys_before)
        assert torch.equal(values, values_before)
    again = contrasted(model, asked, prefixes)
    assert torch.equal(again.differences, first.differences)


def test_a_kept_prefix_is_used_where_it_stands(model: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = prompt(model, 1.2)
    silent_prefix(model, asked, prefixes, 2)
    (kept,) = prefixes._kept.values()
    used = silent_prefix(model, prompt(model, 1.0), prefixes, 2).pairs
    for (keys, values), (own_keys, own_values) in zip(used, kept, strict=True):
        assert (keys.data_ptr(), values.data_ptr()) == (own_keys.data_ptr(), own_values.data_ptr())


# ---- bounded in bytes


def pairs_of(megabytes: float) -> KVPairs:
    half = torch.zeros(1, 1, int(megabytes * 1024), 128)  # of float32: 512 bytes a position
    return [(half, half.clone())]


def size(pairs: KVPairs) -> int:
    return sum(t.nbytes for pair in pairs for t in pair)


def key(n: int) -> SilenceKey:
    return SilenceKey(str(n).encode(), (n,))


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
    prefixes = SilenceCache(120_000, Ladder(0))  # about three prefixes
    for _ in range(12):
        seconds = float(rng.uniform(0.1, 3.0))
        contrasted(grouped, prompt(grouped, seconds), prefixes)
        assert 0 < prefixes.held_bytes <= prefixes.limit_bytes
        assert prefixes.held_bytes == held(prefixes)


@pytest.mark.slow
def test_a_thousand_random_durations_stay_under_the_limit(grouped: AudioModel) -> None:
    rng = np.random.default_rng(2)
    prefixes = SilenceCache(400_000, Ladder(0))
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


def test_pinned_words_stay_and_the_rest_shares_what_is_left() -> None:
    prefixes = SilenceCache(limit_bytes=3 * size(pairs_of(1.0)))
    prefixes.pinned = b"1"
    for n in (1, 2, 3, 4):
        prefixes.put(key(n), pairs_of(1.0))
    assert [prefixes.get(key(n)) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]
    prefixes.put(key(5), pairs_of(2.5))  # would need the pinned one's room
    assert [prefixes.get(key(n)) is not None for n in (1, 3, 4, 5)] == [True, True, True, False]


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
    rung = untrained.audio_tokens(Ladder().rung(100, 600))
    end = asked.audio_end - untrained.audio_tokens(100) + rung
    assert shapes == [(1, untrained.num_heads, end, head_width)] * 2 * 3
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
    rest = model.audio_tokens(94) - model.audio_tokens(70)  # of the last clip's rung
    new = asked.audio_end - known + rest
    assert passes == [heard.length, new, heard.length - asked.audio_end]
    second = prefill(hearing_silence(model, Ladder()), asked, heads=HEADS, layers=LAYERS)
    torch.testing.assert_close(
        contrast.differences, heard.states - second.states, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(contrast.silence_attention, second.attention, atol=2e-6, rtol=0)
    assert contrasted(model, asked, prefixes, heard).from_cache


def test_the_other_rungs_of_new_words_are_made_ahead_in_free_room(untrained: AudioModel) -> None:
    prefixes = SilenceCache(PLENTY)
    asked = build_prompt(untrained, [Message("user", ("Hear this. ", clip(1.0), QUESTION))])
    contrasted(untrained, asked, prefixes)
    assert not prefixes.ahead, "nobody expects any"
    prefixes.longest_ahead = 250
    prefixes.clear()
    contrasted(untrained, asked, prefixes)
    rungs = [47, 94, 188, 300]
    assert [one.rungs for one, _ in prefixes.ahead] == [(rung,) for rung in rungs]
    make_ahead(untrained, prefixes)
    assert {one.rungs for one in prefixes._kept} == {(300,), (188,)}, "the longest first"
    prefixes.limit_bytes = prefixes.held_bytes
    kept = list(prefixes._kept)
    while prefixes.ahead:
        make_ahead(untrained, prefixes)
    assert sorted(prefixes._kept, key=str) == sorted(kept, key=str), "no room was free"
    for seconds in (0.95, 1.8, 3.1):
        other = build_prompt(untrained, [Message("user", ("Hear this. ", clip(seconds), "Hm?"))])
        assert contrasted(untrained, other, prefixes).from_cache


@pytest.mark.parametrize("steps", [0, 1])
def test_another_silence_of_the_first_clip_is_no_beginning(
    untrained: AudioModel, steps: int
) -> None:
    prefixes = SilenceCache(PLENTY, Ladder(steps))
    # as many audio tokens as 1.0 s, and another rung
    first = clip(1.01 if steps == 0 else 1.9)
    contrasted(untrained, build_question(untrained, [first], QUESTION), prefixes)
    asked = prompt(untrained, 1.0, 0.5)
    heard = prefill(untrained, asked, layers=LAYERS)
    second = prefill(hearing_silence(untrained, Ladder(steps)), asked, layers=LAYERS)
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
