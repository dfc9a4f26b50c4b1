"""Provenance of the figures: the data's hash and likely version, and the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from steering.calibration.activations import build_item_prompt, load_item_clip
from steering.items import DataSet, Item
from steering.model.audio_model import AudioModel

_MMAU_MINI = {"sound": 333, "music": 334, "speech": 333}
_MMAU_TEST_ITEMS = 9000
_MMAR_ITEMS = 1000


def data_record(dataset: DataSet) -> dict[str, Any]:
    """Name, hash and counts of a data set, and which published one it looks like."""
    tasks = Counter(item.task for item in dataset.items if item.task)
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "items": len(dataset.items),
        "tasks": dict(sorted(tasks.items())),
        "looks_like": _looks_like(dataset.items, dict(tasks)),
    }


def _looks_like(items: Sequence[Item], tasks: dict[str, int]) -> str:
    """A guess by the counts: they are the same in every version of MMAU, so it names none."""
    unknown_version = "version unknown: compare the hash with that of your download"
    if all("audio_id" in item.record for item in items):
        if tasks == _MMAU_MINI:
            return f"MMAU test-mini, by its counts; {unknown_version}"
        if len(items) == _MMAU_TEST_ITEMS and set(tasks) == set(_MMAU_MINI):
            return f"MMAU test, by its counts; {unknown_version}"
    if len(items) == _MMAR_ITEMS and all("audio_path" in item.record for item in items):
        return f"MMAR, by its counts; {unknown_version}"
    return "unknown"


def prompt_text(model: AudioModel, item: Item) -> str:
    """An item's prompt as the model sees it, with control tokens; a run of audio tokens is written
    once, with its length.
    """
    prompt = build_item_prompt(model, item, load_item_clip(model, item))
    tokenizer = model.processor.tokenizer
    parts = []
    pairs = zip(prompt.tokens.tolist(), prompt.audio_mask.tolist(), strict=True)
    for is_audio, run in groupby(pairs, key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        text = tokenizer.decode(ids[:1] if is_audio else ids, skip_special_tokens=False)
        parts.append(f"{text} x {len(ids)}" if is_audio else text)
    return "".join(parts)
