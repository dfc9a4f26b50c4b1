from __future__ import annotations

import json
from pathlib import Path

import pytest

from steering.errors import DataError
from steering.evaluation.journal import Journal

RUN = {"model": "abc", "seed": 0}


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path, RUN) as journal:
        assert journal.answers == {}
        journal.add("one", {"bare": "dog\n", "adaptive": ""})
        assert len(path.read_bytes().splitlines()) == 2, "on disk at once"
    with Journal(path, RUN) as journal:
        assert journal.answers == {"one": {"bare": "dog\n", "adaptive": ""}}
        journal.add("two", {"bare": "cow"})
    with Journal(path, RUN) as journal:
        assert list(journal.answers) == ["one", "two"]


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_line_that_was_cut_off_is_written_over(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path, RUN) as journal:
        journal.add("one", {"bare": "dog"})
        journal.add("two", {"bare": "a long answer, longer than what is lost"})
    path.write_bytes(path.read_bytes()[:-lost])
    with Journal(path, RUN) as journal:
        assert list(journal.answers) == ["one"]
        journal.add("two", {"bare": "cow"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        RUN,
        {"id": "one", "answers": {"bare": "dog"}},
        {"id": "two", "answers": {"bare": "cow"}},
    ]


def test_a_first_line_that_was_cut_off_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"model": "a')
    with Journal(path, RUN) as journal:
        assert journal.answers == {}
    assert json.loads(path.read_text()) == RUN


def test_answers_of_another_run_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with Journal(path, RUN) as journal:
        journal.add("one", {"bare": "dog"})
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"answers\.jsonl.*remove the file"):
        Journal(path, {**RUN, "seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"not JSON\n"])
def test_a_damaged_journal_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(json.dumps(RUN).encode() + b"\n" + line)
    with pytest.raises(DataError, match="damaged"):
        Journal(path, RUN)
