from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from steering.errors import DataError
from steering.items import is_right, read


def record(**changes: Any) -> dict[str, Any]:
    """An item as MMAU publishes it."""
    return {
        "id": "3fe64f3d",
        "audio_id": "./audio/one.wav",
        "question": "Which animal is this?",
        "choices": ["dog", "cow", "cat", "bird"],
        "answer": "cow",
        "dataset": "AudioSet",
        "task": "sound",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Acoustic Source Inference",
        "difficulty": "easy",
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "one.wav").write_bytes(b"RIFF")
    return tmp_path


def write(folder: Path, records: Any) -> Path:
    path = folder / "items.json"
    path.write_text(json.dumps(records))
    return path


# ---- the official rule


CHOICES = ["dog", "cow", "cat", "bird"]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("cow", True),
        ("Cow", True),
        ("COW.", True),
        ("  a cow!\n", True),
        ("it is a cow, and only a cow", True),
        ("", False),
        ("...", False),  # no word
        ("dog", False),
        ("cow dog", False),  # a word of another choice
        ("cows", False),  # another word
        ("c ow", False),
        ("B", False),
        ("(B) cow", True),  # a letter hurts where a choice holds it only
    ],
)
def test_the_rule(said: str, right: bool) -> None:
    assert is_right(said, "cow", CHOICES) == right


def test_words_that_the_answer_shares_with_another_choice_do_not_count_against_it() -> None:
    choices = ["a red car", "a red bus", "a blue car"]
    assert is_right("a red car", "a red car", choices)
    assert not is_right("a red car or bus", "a red car", choices)
    assert not is_right("red", "a red car", choices), "all words of the answer are needed"
    assert is_right("the car: a fast red one", "a red car", choices)


def test_the_order_and_number_of_words_do_not_count() -> None:
    assert is_right("two one one", "one two", ["one two", "three"])


def test_a_longer_choice_around_the_answer() -> None:
    # "man" is in "a man and a woman": its other words are that choice's own.
    choices = ["man", "man and woman"]
    assert is_right("man", "man", choices)
    assert not is_right("man and woman", "man", choices)
    assert is_right("man and woman", "man and woman", choices)
    assert not is_right("man", "man and woman", choices)


def test_sentences_and_letters_lose_where_choices_hold_their_words() -> None:
    # Why the bare text of an option is what a model should say.
    choices = ["A is higher", "the answer", "B"]
    assert not is_right("The answer is B", "B", choices)
    assert not is_right("A. B", "B", choices)
    assert is_right("B", "B", choices)


def test_numbers_and_joined_words() -> None:
    assert is_right("4/4 time", "4/4", ["4/4", "3/4"]) is True
    assert is_right("3/4", "4/4", ["4/4", "3/4"]) is False
    assert is_right("hip-hop", "hip hop", ["hip hop", "jazz"])  # a hyphen splits words
    assert not is_right("e_flat", "e flat", ["e flat", "d"])  # an underscore does not


def test_an_answer_twice_among_the_choices_is_not_its_own_rival() -> None:
    assert is_right("cow", "cow", ["cow", "cow", "dog"])
    assert is_right("Cow", "Cow", ["Cow", "cow", "dog"])


# ---- reading


def test_items_are_read_as_published(folder: Path) -> None:
    path = write(folder, [record(), record(id="other", wording="conflict", cue="weak")])
    dataset = read(path, folder)
    assert (dataset.name, len(dataset.items)) == ("items.json", 2)
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    first, second = dataset.items
    assert first.audio == folder / "audio" / "one.wav"
    assert (first.id, first.answer, first.task) == ("3fe64f3d", "cow", "sound")
    assert first.choices == ("dog", "cow", "cat", "bird")
    assert first.record == record()
    assert (first.wording, first.cue, first.stratum) == ("", "", "")
    assert second.stratum == "conflict/weak"


def test_a_null_is_as_good_as_nothing(folder: Path) -> None:
    item = read(write(folder, [record(cue=None, wording="neutral", task=None)]), folder).items[0]
    assert (item.cue, item.task, item.stratum) == ("", "", "neutral/")


def test_the_bounds_of_events_are_read(folder: Path) -> None:
    records = [record(events=[[0, 0.5], [1.25, 2]]), record(id="b"), record(id="c", events=None)]
    items = read(write(folder, records), folder).items
    assert [item.events for item in items] == [((0.0, 0.5), (1.25, 2.0)), (), ()]


@pytest.mark.parametrize(
    "events",
    ["0-1", [0.1, 0.2], [[1, 0.5]], [[-1, 2]], [[0, 1, 2]], [["0", "1"]], [[0, 1e999]],
     [[0, 10**400]], [[False, True]], [[0, 1], None]],
)  # fmt: skip
def test_events_that_are_no_bounds_are_refused(folder: Path, events: Any) -> None:
    with pytest.raises(DataError, match=r"events must be a list of \[start, end\] in seconds"):
        read(write(folder, [record(events=events)]), folder)


def test_all_faults_are_said_at_once(folder: Path) -> None:
    records = [
        record(id="fine"),
        record(id="no-answer", answer="horse"),
        record(id="no-file", audio_id="audio/gone.wav"),
        {key: value for key, value in record(id="no-question").items() if key != "question"},
        record(id="one-choice", choices=["cow"]),
        record(id="odd-choices", choices=["cow", 3]),
        record(id="fine"),
        "not an item",
    ]
    with pytest.raises(DataError) as caught:
        read(write(folder, records), folder)
    message = str(caught.value)
    assert "7 faults in 8 items" in message
    for part in ("'horse'", "gone.wav", "without question", "one-choice", "odd-choices"):
        assert part in message
    assert "'fine' is used twice" in message
    assert "item 7 is str" in message


def test_a_long_list_of_faults_is_cut_and_counted(folder: Path) -> None:
    with pytest.raises(DataError, match="and 10 more"):
        read(write(folder, [record(id=f"{i}", answer="horse") for i in range(30)]), folder)


@pytest.mark.parametrize("key", ["id", "audio_id", "question", "choices", "answer"])
def test_what_is_needed_is_named_when_it_is_missing(folder: Path, key: str) -> None:
    with pytest.raises(DataError, match=f"without {key}"):
        read(write(folder, [record(**{key: ""})]), folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"\x80[]", b"[]", b"{}", b'"text"', b"null"], ids=repr)
def test_what_is_not_a_list_of_items_is_refused(folder: Path, raw: bytes) -> None:
    path = folder / "items.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"items\.json"):
        read(path, folder)


MMAR = {
    "id": "clip_00-01-05_00-01-20",
    "audio_path": "./audio/one.wav",
    "question": "Who speaks first?",
    "choices": ["The first man", "A woman"],
    "answer": " a woman ",
    "modality": "mix-sound-speech",
    "category": "Semantic Layer",
    "sub-category": "Speaker Analysis",
    "language": "en",
    "source": "youtube",
    "url": "https://example.com",
    "timestamp": "00:01:05,00:01:20",
    "cue": ["a man coughs"],
}


@pytest.mark.parametrize("lines", [False, True], ids=["list", "lines"])
def test_mmar_is_read_as_published(folder: Path, lines: bool) -> None:
    path = folder / "MMAR-meta.json"
    path.write_text(json.dumps(MMAR) + "\n\n" if lines else json.dumps([MMAR]))
    (item,) = read(path, folder).items
    assert (item.id, item.task) == ("clip_00-01-05_00-01-20", "mix-sound-speech")
    assert item.audio == folder / "audio" / "one.wav"
    assert item.answer == "A woman", "the choice it is, but for case and margins"
    assert (item.stratum, item.cue) == ("", ""), "MMAR's cue is another thing"
    assert item.record == MMAR


def test_plain_lines_are_read(folder: Path) -> None:
    line = {
        "audio": "audio/one.wav",
        "question": "Which animal?",
        "choices": ["dog", "cow"],
        "answer": "dog",
        "split": "calibration",
        "domain": "sound",
    }
    path = folder / "items.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(record) for record in (line, line)))
    first, second = read(path, folder).items
    assert (first.id, second.id) == ("item 0", "item 1")
    assert (first.task, first.answer, first.audio.name) == ("sound", "dog", "one.wav")


def test_a_line_may_hold_what_ends_a_line_elsewhere(folder: Path) -> None:
    question = "Which\u2028animal\u0085is it?"
    path = folder / "items.jsonl"
    lines = [json.dumps(record(id=name, question=question), ensure_ascii=False) for name in "ab"]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [item.question for item in read(path, folder).items] == [question] * 2


def test_audio_within_the_item_is_no_file(folder: Path) -> None:
    with pytest.raises(DataError, match="no audio file") as caught:
        read(write(folder, [record(audio_id="A" * 100_000)]), folder)
    assert len(str(caught.value)) < 1000


def test_an_answer_that_two_choices_could_be_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="not among"):
        read(write(folder, [record(answer="COW", choices=["cow", "Cow"])]), folder)
    assert read(write(folder, [record(answer="COW")]), folder).items[0].answer == "cow"


def test_a_line_that_is_no_json_is_refused(folder: Path) -> None:
    path = folder / "items.jsonl"
    path.write_text(json.dumps(record()) + "\n{oh no\n")
    with pytest.raises(DataError, match="JSON lines"):
        read(path, folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing"):
        read(folder / "nothing.json", folder)
