from __future__ import annotations

import torch

from steering.answer import BARE, Sampling, generate
from steering.evaluation.reworded import hear_again, keys_until, silent_pairs
from steering.model import AudioModel
from steering.prefill import prefill
from steering.prompt import ask, silent_twin
from steering.silence import SilentPrefixes
from tests.steering.examples import QUESTION, clip, every_head, keys_and_values

SHORT = Sampling(max_tokens=5)


def test_other_words_over_kept_keys_are_a_whole_prefill(model: AudioModel) -> None:
    sound = clip(0.9)
    first = ask(model, [sound], QUESTION)
    second = ask(model, [sound], "Listen carefully. " + QUESTION)
    heads, layers = every_head(model), range(model.layers)
    heard = prefill(model, first)
    pairs = keys_until(heard, first.audio_end)
    list(generate(model, heard, BARE, SHORT))  # what is written behind the prompt does no harm
    found = hear_again(model, second, pairs, heads=heads, layers=layers)
    whole = prefill(model, second, heads=heads, layers=layers)
    assert found.length == whole.length
    for name in ("attention", "states", "final"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(keys_and_values(found), keys_and_values(whole), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert list(generate(model, found, BARE, SHORT)) == list(generate(model, whole, BARE, SHORT))
    assert not torch.allclose(found.final, heard.final, atol=1e-3), "the words do matter"


def test_what_is_written_behind_kept_keys_leaves_them_as_they_were(model: AudioModel) -> None:
    asked = ask(model, [clip(0.6)], QUESTION)
    pairs = keys_until(prefill(model, asked), asked.audio_end)
    before = [keys.clone() for keys, _ in pairs]
    list(generate(model, hear_again(model, asked, pairs), BARE, SHORT))
    assert all(torch.equal(kept, keys) for kept, (keys, _) in zip(before, pairs, strict=True))


def test_silence_of_a_duration_is_run_once(model: AudioModel) -> None:
    prefixes = SilentPrefixes(10**8)
    one, other = (ask(model, [clip(0.8, seed=i)], f"{QUESTION} {i}") for i in (1, 2))
    longer = ask(model, [clip(1.1)], QUESTION)
    pairs = silent_pairs(model, one, prefixes)
    assert silent_pairs(model, other, prefixes) is pairs
    assert silent_pairs(model, longer, prefixes) is not pairs
    assert len(prefixes) == 2
    whole = prefill(model, silent_twin(model, other), layers=(0,))
    found = hear_again(model, other, pairs, layers=(0,))
    torch.testing.assert_close(found.final, whole.final, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.states, whole.states, atol=1e-5, rtol=1e-4)
