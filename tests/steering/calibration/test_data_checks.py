from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steering.calibration.data_checks import MIN_ITEMS, check_items
from steering.errors import DataError
from tests.steering.examples import RATE_HZ, clip, write_items


def records(path: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(path.read_text())
    return items


def spoiled(folder: Path) -> Path:
    """A data set with one item of every fault, and enough sound ones."""
    path = write_items(folder, MIN_ITEMS + 12)
    items = records(path)
    (folder / "torn.wav").write_bytes((folder / "0.wav").read_bytes()[:50])
    (folder / "text.wav").write_text("not a sound at all")
    (folder / "empty.wav").write_bytes(b"")
    samples = clip(1.0).samples.copy()
    for name, bad in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        samples[500] = bad
        soundfile.write(folder / name, samples, RATE_HZ, subtype="FLOAT")
    soundfile.write(folder / "none.wav", samples[:0], RATE_HZ)
    names = ("gone.wav", "torn.wav", "text.wav", "empty.wav", "nan.wav", "inf.wav", "none.wav")
    for item, name in zip(items, names, strict=False):
        item["audio_id"] = name
    items[7]["answer"] = "horse"
    items[8]["id"] = items[9]["id"]
    items[10]["choices"] = ["dog", "cow", "Cow ", items[10]["answer"]]
    path.write_text(json.dumps(items))
    return path


def test_every_fault_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_items(spoiled(tmp_path), tmp_path)
    message = str(caught.value)
    assert f"10 faults in {MIN_ITEMS + 12} items" in message
    for number, name in enumerate(
        ("gone.wav", "torn.wav", "text.wav", "empty.wav", "nan.wav", "inf.wav", "none.wav")
    ):
        assert any(f"item-{number}: " in line and name in line for line in message.split("\n"))
    assert "'horse'" in message and "used twice" in message and "stands twice" in message
    assert "--skip-faulty" in message


def test_faulty_items_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    dataset = check_items(spoiled(tmp_path), tmp_path, skip_faulty=True)
    assert (len(dataset.items), dataset.left_out) == (MIN_ITEMS + 2, 10)
    assert {"item-0", "item-7", "item-10"}.isdisjoint(item.id for item in dataset.items)


def test_too_few_items_and_one_answer_are_said_together(tmp_path: Path) -> None:
    path = write_items(tmp_path, 6)
    items = [{**item, "answer": "dog", "id": "x"} for item in records(path)]
    path.write_text(json.dumps(items))
    with pytest.raises(DataError) as caught:
        check_items(path, tmp_path)
    for part in (f"6 items; calibration needs at least {MIN_ITEMS}", "'dog' in every", "twice"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="1 items; calibration needs"):
        check_items(path, tmp_path, skip_faulty=True)


def test_sound_data_is_read_and_its_sounds_are_hashed(tmp_path: Path) -> None:
    dataset = check_items(write_items(tmp_path, MIN_ITEMS), tmp_path)
    assert (len(dataset.items), dataset.left_out) == (MIN_ITEMS, 0)
    assert len(dataset.audio_sha256) == 64
    assert dataset == check_items(tmp_path / "items.json", tmp_path)
    soundfile.write(tmp_path / "3.wav", clip(1.0, seed=99).samples, RATE_HZ)
    other = check_items(tmp_path / "items.json", tmp_path)
    assert other.sha256 == dataset.sha256 and other.audio_sha256 != dataset.audio_sha256
