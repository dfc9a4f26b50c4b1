from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from steering.calibration.option_mentions import prediction
from steering.evaluation.predictions import prediction_key, write_predictions
from steering.items import Item, is_right

CHOICES = ("dog", "cow", "a cat", "The sound of rain")


# ---- MMAU's official script, written again from its description


def official_match(answer: str, prediction_text: str, choices: Sequence[str]) -> bool:
    def words(text: str) -> set[str]:
        return set(re.findall(r"\b\w+\b", text.lower()))

    if not words(prediction_text):
        return False
    wrong: set[str] = set()
    for choice in choices:
        if words(choice) != words(answer):
            wrong |= words(choice) - words(answer)
    return words(answer) <= words(prediction_text) and not words(prediction_text) & wrong


def official_score(records: Sequence[dict[str, Any]], key: str) -> tuple[int, int]:
    """Right and counted: an item without the key is skipped."""
    counted = [r for r in records if key in r]
    return sum(official_match(r["answer"], r[key], r["choices"]) for r in counted), len(counted)


TRAPS = [
    ("cow", "cow", "cow"),
    ("COW.", "cow", "COW."),  # exact but for the point: names it
    ("The answer is cow.", "cow", "cow"),  # "the", "is": words of another option
    ("(B) cow", "cow", "cow"),
    ("B. cow", "cow", "cow"),
    ("B) cow", "cow", "cow"),
    ("B", "cow", "cow"),
    ("(b)", "cow", "cow"),
    ("A", "dog", "dog"),
    ("C. a cat", "a cat", "a cat"),
    ("I hear the sound of rain here", "The sound of rain", "The sound of rain"),
    ("<answer>cow</answer>", "cow", "cow"),
    ("First dog? No: <answer> cow </answer>", "cow", "cow"),
    ("<answer>cow", "cow", "cow"),  # cut off
]


@pytest.mark.parametrize(("said", "answer", "_"), TRAPS, ids=[said for said, *_ in TRAPS])
def test_an_answer_that_names_one_option_becomes_its_bare_text(
    said: str, answer: str, _: str
) -> None:
    predicted = prediction(said, CHOICES, lettered=True)
    assert predicted == answer
    assert official_match(answer, predicted, CHOICES)


def test_the_traps_are_traps() -> None:
    lost = [said for said, answer, _ in TRAPS if not official_match(answer, said, CHOICES)]
    assert {"The answer is cow.", "B", "(b)", "A", "B. cow"} - set(lost) == {"B. cow"}
    assert official_match("cow", "B. cow", ("dog", "cow"))
    assert not official_match("cow", "A. cow", CHOICES), "`a` is a word of another option"


@pytest.mark.parametrize(
    "said",
    ["dog and cow", "It is a bird.", "", "E", "A cow", "(A) cow", "cowboy", "dogs"],
)
def test_what_names_no_option_or_two_stays_as_it_is(said: str) -> None:
    if said in ("A cow",):
        assert prediction(said, CHOICES, lettered=True) == "cow", "an article is no letter"
    elif said == "(A) cow":
        assert prediction(said, CHOICES, lettered=True) == "cow", "its text counts, not its letter"
    else:
        assert prediction(said, CHOICES, lettered=True) == said


def test_a_letter_is_no_name_where_the_prompt_had_none() -> None:
    assert prediction("B", CHOICES, lettered=False) == "B"
    assert prediction("cow", CHOICES, lettered=False) == "cow"


def test_options_that_are_letters_are_taken_by_their_text() -> None:
    assert prediction("C", ("C", "A", "B"), lettered=True) == "C"


def test_an_option_inside_a_longer_one_does_not_count() -> None:
    choices = ("rain", "heavy rain", "wind")
    assert prediction("I hear heavy rain.", choices, lettered=True) == "heavy rain"
    assert prediction("rain", choices, lettered=True) == "rain"


def test_signs_in_an_option_are_no_pattern() -> None:
    assert prediction("so C++ (fast)", ("C++ (fast)", "C"), lettered=False) == "C++ (fast)"


# ---- our rule is theirs


@pytest.mark.parametrize("said", [*(t[0] for t in TRAPS), "", "dog cow", "a", "rain", "the cat a"])
@pytest.mark.parametrize("answer", CHOICES)
def test_our_rule_is_the_official_one(said: str, answer: str) -> None:
    assert is_right(said, answer, CHOICES) == official_match(answer, said, CHOICES)


# ---- the files


def record(name: str, **changes: Any) -> dict[str, Any]:
    own = {"id": name, "audio_id": f"./{name}.wav", "question": "Which?", "choices": list(CHOICES)}
    return {**own, "answer": "cow", "task": "sound", "sub-category": "x", **changes}


def item(record_of_item: dict[str, Any]) -> Item:
    choices = tuple(record_of_item["choices"])
    return Item(
        record_of_item["id"],
        Path("x.wav"),
        "Which?",
        choices,
        "cow",
        "sound",
        "",
        "",
        record_of_item,
    )


def test_the_official_script_counts_every_item(tmp_path: Path) -> None:
    records = [record("b"), record("a"), record("c")]
    path = tmp_path / "predictions.bare.json"
    write_predictions(path, [item(one_record) for one_record in records], ["cow", "", "dog"])
    written = json.loads(path.read_text())
    assert official_score(written, "model_output") == (1, 3), (
        "an empty answer is wrong, not skipped"
    )
    assert [r.pop("model_output") for r in written] == ["cow", "", "dog"]
    assert written == records, "order and every key as they were"
    assert list(written[0]) == list(records[0])
    assert not list(tmp_path.glob(".*")), "nothing partial stays"
    assert official_score(records, "model_output") == (0, 0), "without the key they are skipped"


def test_mmars_key_is_its_own(tmp_path: Path) -> None:
    original = record("m", audio_path="./m.wav", modality="sound")
    del original["audio_id"]
    path = tmp_path / "predictions.bare.json"
    write_predictions(path, [item(original)], ["cow"])
    written = json.loads(path.read_text())
    assert official_score(written, "answer_prediction") == (1, 1)
    assert "model_output" not in written[0]
    assert prediction_key(record("a")) == "model_output"


def test_predictions_for_other_items_are_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_predictions(tmp_path / "p.json", [item(record("a")), item(record("b"))], ["cow"])
    assert not (tmp_path / "p.json").exists()
