from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from steering.calibration.decisive_token import DecisiveToken, find_decisive_token, state_at
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from tests.steering.examples import full_pass, prompt

CHOICES = ("wind", "engine", "siren", "dog")


def item(*choices: str, answer: str) -> Item:
    return Item("one", Path("a.wav"), "Who?", choices, answer, "", "", "", {})


def ids(model: AudioModel, text: str) -> list[int]:
    tokens: list[int] = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def decide(model: AudioModel, example: Item, said: str) -> tuple[str, set[str], DecisiveToken]:
    """The text before the decisive token, the texts of the right ones, and all of it."""
    heard = prefill(model, prompt(model))
    decisive = find_decisive_token(model, example, heard, ids(model, said))
    decode = model.processor.tokenizer.decode
    return decode(decisive.before), {decode([token]) for token in decisive.right}, decisive


@pytest.mark.parametrize(
    ("said", "before", "right"),
    [
        ("wind", "", "dog"),
        ("dog", "", "dog"),
        ("Wind.", "", "D"),  # of "Dog": two tokens here
        ("A wind", "A", " dog"),
        ("The sound is a wind.", "The sound is a", " dog"),
        ("The sound is a dog.", "The sound is a", " dog"),
        ("It is **engine** I think", "It is **", "dog"),
        ("<answer>wind</answer>", "<answer>", "dog"),
        ("dog? no: <answer> wind </answer>", "dog? no: <answer>", " dog"),
        ("(A) wind", "", "(D"),
        ("A. wind", "", "D"),
        ("A", "", "D"),
        ("The answer is B", "The answer is ", "D"),
        ("The answer is (B) engine.", "The answer is (", "D"),
        ("It is a dog, not a siren", "It is a dog, not a", " dog"),  # the word that makes it wrong
    ],
)
def test_an_option_is_looked_for_where_the_answer_has_it(
    untrained: AudioModel, said: str, before: str, right: str
) -> None:
    stands_before, tokens, decisive = decide(untrained, item(*CHOICES, answer="dog"), said)
    assert stands_before.rstrip() == before.rstrip()
    assert right in tokens
    own = ids(untrained, said)[len(decisive.before)]
    wrong = "dog" not in said.lower() or "siren" in said or "wind" in said
    assert (own in decisive.right) == (not wrong), "at strength 0 the judgement is the answer's"


def test_every_spelling_counts_there_but_no_other_options(untrained: AudioModel) -> None:
    _, tokens, _ = decide(untrained, item("cow", "dog", answer="dog"), "cow")
    assert {"dog", " dog", "D"} <= tokens
    assert not {"A", " a", "The", "c", "cow", " cow"} & tokens, "an article names no option"


def test_a_letter_is_no_words_beginning(untrained: AudioModel) -> None:
    example = item("siren", "rain", "dog", "bell", answer="dog")  # D is bell's letter, not Dog's
    for said, right in (("D", False), ("C", True)):
        before, tokens, decisive = decide(untrained, example, said)
        assert before == "" and {"C", "dog"} <= tokens
        assert (ids(untrained, said)[0] in decisive.right) == right


def test_shared_beginnings_are_gone_through_as_the_model_did(untrained: AudioModel) -> None:
    example = item("dog cow", "dog bell", "rain", answer="dog bell")
    before, tokens, _ = decide(untrained, example, "dog cow")
    assert before == "dog" and tokens == {" bell"}
    before, tokens, _ = decide(untrained, example, "rain")
    assert before == "" and "dog" in tokens, "it parted from the right answer there"


def test_an_answer_that_begins_another_is_decided_by_its_end(untrained: AudioModel) -> None:
    example = item("dog", "dog bell", answer="dog")
    for said, right in (("dog bell", False), ("dog", True)):
        before, _, decisive = decide(untrained, example, said)
        assert before == "dog"
        assert untrained.eos_token_ids <= set(decisive.right)
        assert (ids(untrained, "dog bell")[1] in decisive.right) is False
        path = [*ids(untrained, said), *untrained.eos_token_ids]
        assert (path[1] in decisive.right) == right


@pytest.mark.parametrize("said", ["", "I cannot hear the audio.", "The sound is a bird."])
def test_without_an_option_the_likeliest_place_of_one_is_taken(
    untrained: AudioModel, said: str
) -> None:
    before, tokens, decisive = decide(untrained, item("cow", "dog", answer="dog"), said)
    assert said.startswith(before)
    assert tokens >= ({" dog"} if before else {"dog", " dog"}), "a word goes on after a space"
    path = [*ids(untrained, said), *untrained.eos_token_ids]
    assert path[len(decisive.before)] not in decisive.right


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
