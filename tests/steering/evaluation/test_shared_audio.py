from __future__ import annotations

import torch

from steering.evaluation.shared_audio import copy_kv_prefix, prefill_on_prefix
from steering.generation import UNSTEERED, Sampling, generate
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import build_question, silent_twin
from steering.silence import silent_prefix
from steering.silence_cache import Ladder, SilenceCache
from tests.steering.examples import QUESTION, clip, every_head, keys_and_values

SHORT = Sampling(max_tokens=5)


def test_other_words_over_kept_keys_are_a_whole_prefill(model: AudioModel) -> None:
    sound = clip(0.9)
    first = build_question(model, [sound], QUESTION)
    second = build_question(model, [sound], "Listen carefully. " + QUESTION)
    heads, layers = every_head(model), range(model.num_layers)
    heard = prefill(model, first)
    pairs = copy_kv_prefix(heard, first.audio_end)
    list(generate(model, heard, UNSTEERED, SHORT))  # what is written behind the prompt does no harm
    reused = prefill_on_prefix(model, second, pairs, heads=heads, layers=layers)
    whole = prefill(model, second, heads=heads, layers=layers)
    assert reused.length == whole.length
    for name in ("attention", "states", "final"):
        torch.testing.assert_close(
            getattr(reused, name), getattr(whole, name), atol=1e-5, rtol=1e-4
        )
    for mine, theirs in zip(keys_and_values(reused), keys_and_values(whole), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert list(generate(model, reused, UNSTEERED, SHORT)) == list(
        generate(model, whole, UNSTEERED, SHORT)
    )
    assert not torch.allclose(reused.final, heard.final, atol=1e-3), "the words do matter"


def test_what_is_written_behind_kept_keys_leaves_them_as_they_were(model: AudioModel) -> None:
    prompt = build_question(model, [clip(0.6)], QUESTION)
    pairs = copy_kv_prefix(prefill(model, prompt), prompt.audio_end)
    before = [keys.clone() for keys, _ in pairs]
    list(generate(model, prefill_on_prefix(model, prompt, pairs), UNSTEERED, SHORT))
    assert all(torch.equal(copied, keys) for copied, (keys, _) in zip(before, pairs, strict=True))


def test_a_prompt_over_a_silent_prefix_is_a_prompt_about_silence(model: AudioModel) -> None:
    prefixes = SilenceCache(10**8, Ladder(0))
    second = build_question(model, [clip(0.8)], QUESTION)
    pairs = silent_prefix(model, second, prefixes, model.num_layers).pairs
    whole = prefill(model, silent_twin(model, second), layers=(0,))
    heard = prefill_on_prefix(model, second, pairs, layers=(0,))
    torch.testing.assert_close(heard.final, whole.final, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(heard.states, whole.states, atol=1e-5, rtol=1e-4)
