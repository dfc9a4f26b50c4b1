"""Items to calibrate and evaluate on: MMAU's JSON as published, and its official matching rule."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steering.errors import DataError

_WORD = re.compile(r"\b\w+\b")
_MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Item:
    """One question about one clip."""

    id: str
    audio: Path
    question: str
    choices: tuple[str, ...]
    answer: str
    task: str  # sound, music, speech
    wording: str  # neutral, consistent, conflict; empty where the data does not say
    cue: str  # weak, medium, strong; empty where there is none
    record: dict[str, Any]  # the item as it stood in the file

    @property
    def stratum(self) -> str:
        """Items whose words push alike."""
        return f"{self.wording}/{self.cue}" if self.wording else ""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Items and the hash of the file they came from."""

    items: tuple[Item, ...]
    sha256: str
    name: str


def read(path: Path, audio_root: Path) -> DataSet:
    """The items of a JSON file in MMAU's schema, every fault in them found before any is used.

    Raises DataError that lists the faults: unreadable file, missing keys, an audio file that is
    not there, an answer that is not among the choices, an id used twice.
    """
    try:
        raw = path.read_bytes()
        records = json.loads(raw)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} holds no items: a non-empty JSON list of MMAU items is expected")
    faults: list[str] = []
    items = [_item(r, i, audio_root, faults) for i, r in enumerate(records)]
    found = [item for item in items if item is not None]
    seen: set[str] = set()
    for item in found:
        if item.id in seen:
            faults.append(f"id {item.id!r} is used twice")
        seen.add(item.id)
    if faults:
        shown = "\n  ".join(faults[:_MAX_FAULTS_SHOWN])
        more = len(faults) - _MAX_FAULTS_SHOWN
        raise DataError(
            f"{path}: {len(faults)} faults in {len(records)} items:\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
        )
    return DataSet(tuple(found), hashlib.sha256(raw).hexdigest(), path.name)


def _item(record: Any, index: int, audio_root: Path, faults: list[str]) -> Item | None:
    if not isinstance(record, dict):
        faults.append(f"item {index} is {type(record).__name__}, not an object")
        return None
    name = str(record.get("id", f"item {index}"))
    needed = ("id", "audio_id", "question", "choices", "answer")
    missing = [key for key in needed if not record.get(key)]
    if missing:
        faults.append(f"{name}: without {', '.join(missing)}")
        return None
    choices = record["choices"]
    if not (isinstance(choices, list) and len(choices) > 1 and all(map(_is_text, choices))):
        faults.append(f"{name}: choices must be a list of at least two texts, not {choices!r}")
        return None
    if record["answer"] not in choices:
        faults.append(f"{name}: the answer {record['answer']!r} is not among the choices {choices}")
    audio = audio_root / str(record["audio_id"])
    if not audio.is_file():
        faults.append(f"{name}: no audio file {audio}")
    return Item(
        name,
        audio,
        str(record["question"]),
        tuple(choices),
        str(record["answer"]),
        str(record.get("task") or ""),
        str(record.get("wording") or ""),
        str(record.get("cue") or ""),
        record,
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_right(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """MMAU's official rule over lower-cased word sets.

    Right iff all the answer's words are in the prediction, and no word of another choice that is
    not also the answer's. An empty prediction is wrong.
    """
    said, wanted = _words(prediction), _words(answer)
    others = set().union(*(_words(c) for c in choices if c != answer)) - wanted
    return bool(said) and wanted <= said and not said & others


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
