from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from steering.calibration.decisive_token import find_decisive_token, spellings, state_at
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from tests.steering.examples import full_pass, prompt


def item(*choices: str, answer: str) -> Item:
    return Item("one", Path("a.wav"), "Who?", choices, answer, "", "", "", {})


def words(model: AudioModel, *ids: int) -> str:
    return str(model.processor.tokenizer.decode(ids)).strip()


def test_the_first_token_decides_where_it_is_nobody_elses(untrained: AudioModel) -> None:
    decisive = find_decisive_token(untrained, item("dog", "cow", answer="cow"), "dog")
    assert decisive.before == () and words(untrained, decisive.token) == "cow"


def test_shared_beginnings_are_given(untrained: AudioModel) -> None:
    tokens = untrained.processor.tokenizer("dog cow bell", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 3, "a token a word"
    ambiguous = item("dog cow", "dog bell", "rain", answer="dog bell")
    decisive = find_decisive_token(untrained, ambiguous, "rain")
    assert (
        words(untrained, *decisive.before) == "dog" and words(untrained, decisive.token) == "bell"
    )


def test_an_answer_that_begins_another_is_decided_by_its_end(untrained: AudioModel) -> None:
    decisive = find_decisive_token(untrained, item("dog", "dog bell", answer="dog"), "rain")
    assert words(untrained, *decisive.before) == "dog"
    assert decisive.token in untrained.eos_token_ids


@pytest.mark.parametrize(
    ("bare", "expected"),
    [
        ("a woman", ["A child", "a woman"]),
        ("A child", ["A child", "a woman"]),
        ("A child is crying", ["A child", "a woman"]),
        ("(B) a woman", ["(A) A child", "(B) a woman"]),
        ("B. a woman", ["A. A child", "B. a woman"]),
        ("B) a woman", ["A) A child", "B) a woman"]),
        ("B", ["A", "B"]),
        ("", ["A child", "a woman"]),
    ],
)
def test_choices_are_spelled_as_the_model_does(bare: str, expected: list[str]) -> None:
    assert spellings(["A child", "a woman"], bare) == expected


def test_a_choice_that_is_a_letter_is_itself() -> None:
    assert spellings(["C", "G"], "G") == ["C", "G"]


def test_the_state_is_that_of_a_pass_over_prompt_and_tokens(model: AudioModel, oracle: Any) -> None:
    example = prompt(model)
    heard = prefill(model, example)
    tokens = [40, 41, 42]
    expected = full_pass(oracle, example, tokens).residuals[-1]
    for count in (3, 0, 1):
        state = state_at(model, heard, tokens[:count])
        torch.testing.assert_close(
            state, expected[len(example.tokens) - 1 + count], atol=1e-4, rtol=1e-4
        )
