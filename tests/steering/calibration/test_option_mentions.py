from __future__ import annotations

import pytest

from steering.calibration.option_mentions import FORMS, form_of, mentions

CHOICES = ("wind", "engine", "siren", "a dog")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("A dog.", ["A dog"]),
        ("**engine**", ["engine"]),
        ("It is wind or rain, and a siren", ["wind", "siren"]),
        ("(B) engine", ["(B) engine"]),
        ("The answer is (B) engine.", ["(B) engine"]),
        ("I choose **B. engine**", ["B. engine"]),
        ("The answer is B.", ["B"]),
        ("Option (C)", ["(C)"]),
        ("D) a dog", ["D) a dog"]),
        ("wind? <answer>siren</answer> wind", ["siren"]),
        ("The answer is a bell", []),
        ("windy", []),
        ("Answer: Everything", []),
    ],
)
def test_what_an_answer_names_and_where(said: str, named: list[str]) -> None:
    found = mentions(said, CHOICES, lettered=True)
    assert [said[mention.start : mention.end] for mention in found] == named


def test_letters_name_nothing_where_the_prompt_had_none() -> None:
    assert mentions("The answer is B.", CHOICES, lettered=False) == []
    found = mentions("(B) engine", CHOICES, lettered=False)
    assert [mention.letter for mention in found] == [-1]


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("Wind.", "option"),
        ("I hear wind.", "sentence"),
        ("(A) wind", "letter"),
        ("A", "letter"),
        ("<answer>wind</answer>", "tag"),
        ("wind or siren", "several"),
        ("I cannot hear the audio.", "refusal"),
        ("I'm unable to listen to audio clips", "refusal"),
        ("Sorry, I don\u2019t have the ability to process sound.", "refusal"),
        ("There is no audio in your message.", "refusal"),
        ("I can't hear much, but it is wind", "sentence"),
        ("A cat is purring.", "other"),
        ("", "other"),
    ],
)
def test_the_form_of_an_answer(said: str, form: str) -> None:
    assert form_of(said, CHOICES, lettered=True) == form
    assert form in FORMS
