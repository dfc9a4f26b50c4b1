from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from steering.cli import Split, demo_data_command
from steering.items import read
from steering.synthetic import data, questions, speech, takes, world
from steering.synthetic.data import SPLITS, WrittenClip, write_items


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, open_answers in (("one", False), ("two", False), ("three", True), ("four", True)):
        out = tmp_path / name
        write_items(out, split="calibration", count=4, seed=5, open_answers=open_answers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "three") == contents(tmp_path / "four")


def test_other_seeds_and_splits_give_others(tmp_path: Path) -> None:
    for name, split, seed in (("a", "test", 1), ("b", "test", 2), ("c", "train", 1)):
        write_items(tmp_path / name, split=split, count=4, seed=seed)
    sounds = [set(contents(tmp_path / name).values()) for name in ("a", "b", "c")]
    assert not sounds[0] & sounds[1] and not sounds[0] & sounds[2] and not sounds[1] & sounds[2]


def test_more_items_begin_with_the_same(tmp_path: Path) -> None:
    few = json.loads(write_items(tmp_path / "few", split="test", count=4, seed=1).read_text())
    more = json.loads(write_items(tmp_path / "more", split="test", count=8, seed=1).read_text())
    assert more[:4] == few


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_two_a_clip(tmp_path: Path, count: int) -> None:
    items = read(write_items(tmp_path, split="test", count=count, seed=0), tmp_path).items
    assert len(items) == count
    assert len({item.audio for item in items}) == (count + 1) // 2
    assert len({item.id for item in items}) == count
    assert not list(tmp_path.glob(".*")), "nothing partial stays"


@pytest.mark.parametrize("split", SPLITS)
def test_items_are_in_mmaus_schema(tmp_path: Path, split: str) -> None:
    path = write_items(tmp_path, split=split, count=6, seed=0)
    published = {
        "id",
        "audio_id",
        "question",
        "choices",
        "answer",
        "dataset",
        "task",
        "split",
        "category",
        "sub-category",
        "difficulty",
    }
    for record, item in zip(json.loads(path.read_text()), read(path, tmp_path).items, strict=True):
        assert published | {"wording", "cue"} <= record.keys()
        assert record["split"] == split
        assert record["wording"] in ("neutral", "consistent", "conflict")
        assert (record["cue"] is None) == (record["wording"] == "neutral")
        assert record["cue"] in (None, "weak", "medium", "strong")
        assert not Path(record["audio_id"]).is_absolute()
        assert item.task in ("sound", "music", "speech")
        header = soundfile.info(item.audio)
        assert (header.samplerate, header.channels, header.subtype) == (16_000, 1, "PCM_16")
        assert 1.8 <= header.duration <= world.MAX_SECONDS


def test_proportions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(path: Path, split: str, index: int, rng: np.random.Generator) -> WrittenClip:
        facts = world.draw_facts(rng, data.DOMAINS[index % 3])
        return WrittenClip(facts, ((0.1, 1.0),), takes.draw_take(rng))

    monkeypatch.setattr(data, "_write_clip", quick)
    records = json.loads(write_items(tmp_path, split="test", count=3000, seed=3).read_text())
    shares = Counter(record["wording"] for record in records)
    assert shares["neutral"] / 3000 == pytest.approx(0.5, abs=0.03)
    assert shares["consistent"] / 3000 == pytest.approx(0.125, abs=0.02)
    assert shares["conflict"] / 3000 == pytest.approx(0.375, abs=0.03)
    tasks = Counter(record["task"] for record in records)
    assert all(count / 3000 == pytest.approx(1 / 3, abs=0.01) for count in tasks.values())


def test_only_the_test_split_has_unseen_voices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, set[str]] = {split: set() for split in SPLITS}
    split = ""

    def say(word: str, voice: str, rng: np.random.Generator) -> NDArray[np.float32]:
        used[split].add(voice)
        return np.full(8_000, 0.5, np.float32)

    monkeypatch.setattr(speech, "say", say)
    for split in SPLITS:
        write_items(tmp_path / split, split=split, count=18, seed=0)
    assert used["test"] <= set(speech.TEST_VOICES)
    assert used["train"] | used["calibration"] <= set(speech.TRAIN_VOICES)
    assert all(used.values())


def test_unseen_wordings(tmp_path: Path) -> None:
    path = write_items(tmp_path, split="test", count=16, seed=1, unseen_wordings=True)
    cued = [item for item in read(path, tmp_path).items if item.cue]
    assert cued
    for item in cued:
        starts = [template.split("{x}")[0] for template in questions.UNSEEN_CUES[item.cue]]
        assert item.question.startswith(tuple(starts))


def test_an_item_tells_what_its_clip_holds_and_how_it_was_recorded(tmp_path: Path) -> None:
    path = write_items(tmp_path, split="test", count=16, seed=7)
    records = json.loads(path.read_text())
    for record in records:
        sound, rate_hz = soundfile.read(tmp_path / record["audio_id"], dtype="float32")
        level_dbfs = 20 * np.log10(np.abs(sound).max())
        assert record["level_dbfs"] == pytest.approx(level_dbfs, abs=0.1)
        assert -37 <= record["level_dbfs"] <= -1
        assert 0 <= record["clarity"] <= 1 and 0 < record["familiarity"] < 1
        facts = {fact["attribute"]: fact for fact in record["facts"]}
        assert facts[record["sub-category"]]["text"] == record["answer"]
        assert facts[record["sub-category"]]["audible"], "what noise hides is not asked for"
        assert len(record["events"]) == 1 + ("first" in facts)
        assert all(0 <= a < b <= len(sound) / rate_hz for a, b in record["events"])
        assert record["alike"] in (True, False)
        assert not (record["alike"] and record["wording"] == "neutral")
    assert any(not fact["audible"] for record in records for fact in record["facts"])


@pytest.mark.parametrize("unseen_wordings", [False, True])
def test_open_items_have_a_sentence_for_an_answer(tmp_path: Path, unseen_wordings: bool) -> None:
    path = write_items(
        tmp_path,
        split="test",
        count=16,
        seed=2,
        unseen_wordings=unseen_wordings,
        open_answers=True,
    )
    wordings: tuple[str, ...] = questions.DESCRIBE_QUESTIONS
    if unseen_wordings:
        wordings = questions.UNSEEN_DESCRIBE_QUESTIONS
    for record in json.loads(path.read_text()):
        assert record["choices"] == []
        assert record["question"] in wordings
        assert (record["cue"], record["suggested"], record["wording"]) == (None, None, "neutral")
        assert record["facts"]
        assert all(fact["text"] in record["answer"].lower() for fact in record["facts"])


def test_the_command_writes_the_same_items(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_data_command(Split.test, 2, 3, tmp_path / "command", open_answers=True)
    assert "2 items" in capsys.readouterr().out
    write_items(tmp_path / "function", split="test", count=2, seed=3, open_answers=True)
    assert contents(tmp_path / "command") == contents(tmp_path / "function")
