from __future__ import annotations

from typing import Any

import pytest
import torch

from steering.evaluation.baselines import (
    LISTEN_CAREFULLY,
    audio_aware_choices,
    audio_aware_decoding,
    text_only_direction,
)
from steering.evaluation.shared_audio import copy_kv_prefix
from steering.generation import UNSTEERED, Sampling, generate, score_choices
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import build_question, silent_twin
from tests.steering.examples import QUESTION, clip, full_pass, prompt

SHORT = Sampling(max_tokens=6)


@pytest.mark.parametrize("weight", [2.0, 1.0])
def test_audio_aware_decoding_by_two_uncached_passes_a_token(
    model: AudioModel, oracle: Any, weight: float
) -> None:
    example = prompt(model)
    twin = silent_twin(model, example)
    heard, silent = prefill(model, example), prefill(model, twin)
    naive: list[int] = []
    for _ in range(SHORT.max_tokens):
        audio = full_pass(oracle, example, naive).logits[-1]
        silence = full_pass(oracle, twin, naive).logits[-1]
        naive.append(int(((1 + weight) * audio - weight * silence).argmax()))
    tokens = list(audio_aware_decoding(model, heard, silent, SHORT, weight))
    assert tokens == naive
    assert list(audio_aware_decoding(model, heard, silent, SHORT, weight)) == tokens, "once more"
    assert tokens != list(generate(model, heard, UNSTEERED, SHORT)), (
        "the contrast changes the answer"
    )


def test_without_weight_it_is_greedy(model: AudioModel) -> None:
    example = prompt(model)
    heard, silent = prefill(model, example), prefill(model, silent_twin(model, example))
    tokens = list(audio_aware_decoding(model, heard, silent, SHORT, weight=0.0))
    assert tokens == list(generate(model, heard, UNSTEERED, SHORT))


def test_it_ends_at_an_end_token(untrained: AudioModel) -> None:
    example = prompt(untrained)
    heard, silent = prefill(untrained, example), prefill(untrained, silent_twin(untrained, example))
    whole = list(audio_aware_decoding(untrained, heard, silent, SHORT))
    config = untrained.network.generation_config
    before = config.eos_token_id
    config.eos_token_id = [before, whole[2]]
    try:
        tokens = list(audio_aware_decoding(untrained, heard, silent, SHORT))
    finally:
        config.eos_token_id = before
    assert tokens == whole[: whole.index(whole[2]) + 1]


def test_the_text_only_direction_is_the_instruction_about_silence(
    model: AudioModel, oracle: Any
) -> None:
    plain = build_question(model, [clip(1.0)], QUESTION)
    instructed = build_question(model, [clip(1.0)], LISTEN_CAREFULLY + QUESTION)
    layers = (2, 0)
    silent = prefill(model, silent_twin(model, plain), layers=layers)
    pairs = copy_kv_prefix(silent, plain.audio_end)
    direction = text_only_direction(model, silent, instructed, pairs, layers)
    with_it = full_pass(oracle, silent_twin(model, instructed)).residuals[list(layers), -1]
    without = full_pass(oracle, silent_twin(model, plain)).residuals[list(layers), -1]
    torch.testing.assert_close(direction, with_it - without, atol=1e-4, rtol=1e-4)
    assert direction.norm() > 0.1


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_audio_aware_choices_by_two_uncached_passes_an_option(
    model: AudioModel, oracle: Any, weight: float
) -> None:
    choices = ("dog", "engine bell", "cow")
    example = prompt(model)
    twin = silent_twin(model, example)
    scores = []
    for choice in choices:
        ids = model.processor.tokenizer(choice, add_special_tokens=False)["input_ids"]
        audio, silence = (
            full_pass(oracle, each, ids).logits[-len(ids) - 1 : -1] for each in (example, twin)
        )
        rows = ((1 + weight) * audio - weight * silence).log_softmax(-1)
        scores.append(float(rows[range(len(ids)), ids].mean()))
    expected = torch.tensor(scores).softmax(-1).tolist()
    heard, silent = prefill(model, example), prefill(model, twin)
    assert audio_aware_choices(model, heard, silent, choices, weight) == pytest.approx(
        expected, abs=1e-4
    )
    if weight == 0:
        assert score_choices(model, heard, UNSTEERED, choices) == pytest.approx(expected, abs=1e-4)
