from __future__ import annotations

from pathlib import Path

import pytest

from steering.calibration.activations import build_item_prompt, load_item_clip
from steering.evaluation.provenance import data_record, prompt_text
from steering.items import DataSet, Item, read
from steering.model.audio_model import AudioModel
from tests.steering.evaluation.judging import item
from tests.steering.examples import write_items

MINI = (("sound", 333), ("music", 334), ("speech", 333))


def mmau(*counts: tuple[str, int]) -> tuple[Item, ...]:
    tasks = [task for task, count in counts for _ in range(count)]
    return tuple(item(f"{i}", task=task, audio_id="x") for i, task in enumerate(tasks))


def test_a_data_set_is_named_by_its_counts_and_never_by_a_version() -> None:
    record = data_record(DataSet(mmau(*MINI), "ab" * 32, "mini.json"))
    assert record["sha256"] == "ab" * 32
    assert record["tasks"] == {"music": 334, "sound": 333, "speech": 333}
    assert "MMAU test-mini" in record["looks_like"]
    assert "version unknown" in record["looks_like"]


@pytest.mark.parametrize("items", [mmau(("sound", 333)), mmau(("sound", 400), ("music", 600))])
def test_other_counts_are_unknown(items: tuple[Item, ...]) -> None:
    assert data_record(DataSet(items, "", ""))["looks_like"] == "unknown"


def test_mmar_and_the_large_test_are_known() -> None:
    large = mmau(("sound", 3000), ("music", 3000), ("speech", 3000))
    assert "MMAU test," in data_record(DataSet(large, "", ""))["looks_like"]
    mmar = tuple(item(f"{i}", audio_path="x") for i in range(1000))
    assert "MMAR" in data_record(DataSet(mmar, "", ""))["looks_like"]


def test_the_prompt_is_what_the_model_saw(grouped: AudioModel, tmp_path: Path) -> None:
    item = read(write_items(tmp_path, 2), tmp_path).items[1]
    prompt = build_item_prompt(grouped, item, load_item_clip(grouped, item))
    text = prompt_text(grouped, item)
    count = int(prompt.audio_mask.sum())
    whole = grouped.processor.tokenizer.decode(prompt.tokens, skip_special_tokens=False)
    mark = grouped.processor.tokenizer.decode(prompt.tokens[prompt.audio_mask][:1])
    assert text.replace(f"{mark} x {count}", mark * count) == whole
    assert "cow" in text
