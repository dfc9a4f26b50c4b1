"""Items to calibrate and evaluate on, and MMAU's official matching rule.

Three forms are read as they are published: MMAU's JSON (`audio_id`, `task`), MMAR's JSON or JSON
lines (`audio_path`, `modality`), and plain JSON lines of one's own (`audio`, `domain`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steering.errors import DataError

_WORD = re.compile(r"\b\w+\b")
_MAX_FAULTS_SHOWN = 20
_SHOWN = 200  # characters of a path
_FORMS = {"audio_id": "mmau", "audio_path": "mmar", "audio": "plain"}  # by the key of the audio
_DOMAINS = {"mmau": "task", "mmar": "modality", "plain": "domain"}
_WORDINGS = ("neutral", "consistent", "conflict")  # MMAR has a `cue` too, and means another thing


@dataclass(frozen=True, slots=True)
class Item:
    """One question about one clip."""

    id: str
    audio: Path
    question: str
    choices: tuple[str, ...]
    answer: str  # empty, like the choices, where the data has none
    task: str  # sound, music, speech
    wording: str  # neutral, consistent, conflict; empty where the data does not say
    cue: str  # weak, medium, strong; empty where there is none
    record: dict[str, Any]  # the item as it stood in the file
    events: tuple[tuple[float, float], ...] = ()  # start and end of what sounds, in seconds

    @property
    def stratum(self) -> str:
        """Label of the items with the same wording and cue."""
        return f"{self.wording}/{self.cue}" if self.wording else ""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Items and the hash of the file they came from."""

    items: tuple[Item, ...]
    sha256: str
    name: str
    audio_sha256: str = ""  # over the bytes of all clips; empty where they were not read
    left_out: int = 0  # items of the file that had faults

    @property
    def labelled(self) -> bool:
        """Whether every item has choices and says which is right."""
        return all(item.choices and item.answer for item in self.items)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a record, or of all records together."""

    index: int | None  # of the record; None for the whole
    text: str


@dataclass(slots=True)
class Parsed:
    """The contents of a file: its readable items, by index, and every fault."""

    path: Path
    sha256: str
    count: int  # of records
    items: dict[int, Item] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def refuse(self, faults: Sequence[Fault], advice: str = "") -> None:
        """Raise DataError with the faults, at most 20 of them, if there are any."""
        if not faults:
            return
        shown = "\n  ".join(fault.text for fault in faults[:_MAX_FAULTS_SHOWN])
        more = len(faults) - _MAX_FAULTS_SHOWN
        raise DataError(
            f"{self.path}: {len(faults)} faults in {self.count} items:\n  {shown}"
            + (f"\n  and {more} more" if more > 0 else "")
            + (f"\n{advice}" if advice else "")
        )


def read(path: Path, audio_root: Path) -> DataSet:
    """The items of a file in one of the three forms; all faults are found before any item is used.

    Raises DataError with the faults: unreadable file, missing keys, a missing audio file, an answer
    that is not among the choices, an id used twice.
    """
    parsed = parse(path, audio_root)
    parsed.refuse(parsed.faults)
    return DataSet(tuple(parsed.items.values()), parsed.sha256, path.name)


def parse(path: Path, audio_root: Path, *, labelled: bool = True) -> Parsed:
    """The items and the faults of a file; DataError only if it holds no records at all.

    Without `labelled`, `choices` and `answer` may be missing.
    """
    raw, records = _records(path)
    parsed = Parsed(path, hashlib.sha256(raw).hexdigest(), len(records))
    seen: set[str] = set()
    for index, record in enumerate(records):
        faults: list[str] = []
        item = _item(record, index, audio_root, faults, labelled=labelled)
        if item is not None:
            if item.id in seen:
                faults.append(f"id {item.id!r} is used twice")
            seen.add(item.id)
            parsed.items[index] = item
        parsed.faults += [Fault(index, text) for text in faults]
    return parsed


def _records(path: Path) -> tuple[bytes, list[Any]]:
    """Bytes and records of a JSON list, or of JSON lines."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as JSON or JSON lines: {error}") from error
    if not any(isinstance(record, dict) and record for record in records):
        raise DataError(
            f"{path} holds no items: a JSON list of MMAU or MMAR items is expected, or JSON lines"
            " with audio, question, choices, answer"
        )
    return raw, records


def _item(
    record: Any, index: int, audio_root: Path, faults: list[str], *, labelled: bool
) -> Item | None:
    if not isinstance(record, dict):
        faults.append(f"item {index} is {type(record).__name__}, not an object")
        return None
    audio_key = next((key for key in _FORMS if record.get(key)), "audio_id")
    form = _FORMS[audio_key]
    name = str(record.get("id") or f"item {index}")
    needed = [*(("id",) if form != "plain" else ()), audio_key, "question"]
    needed += ["choices", "answer"] if labelled else []
    missing = [key for key in needed if not record.get(key)]
    if missing:
        faults.append(f"{name}: without {', '.join(missing)}")
        return None
    choices = record.get("choices") or []
    if (labelled or choices) and not (
        isinstance(choices, list) and len(choices) > 1 and all(map(_is_text, choices))
    ):
        faults.append(f"{name}: choices must be a list of at least two texts, not {choices!r}")
        return None
    given = str(record.get("answer") or "")
    answer = _among(given, choices) if choices and given else ""
    if answer is None:
        faults.append(f"{name}: the answer {record['answer']!r} is not among the choices {choices}")
    audio = audio_root / str(record[audio_key])
    if not os.path.isfile(audio):  # unlike Path's, of names that no file can have too
        faults.append(f"{name}: no audio file {str(audio)[:_SHOWN]}")
    events = _events(record.get("events"))
    if events is None:
        faults.append(
            f"{name}: events must be a list of [start, end] in seconds, 0 <= start < end, not"
            f" {record['events']!r}; leave it out where they are not known"
        )
    wording = record.get("wording") if record.get("wording") in _WORDINGS else ""
    return Item(
        name,
        audio,
        str(record["question"]),
        tuple(choices),
        answer or given,
        str(record.get(_DOMAINS[form]) or ""),
        str(wording),
        str(record.get("cue") or "") if wording else "",
        record,
        events or (),
    )


def _events(value: Any) -> tuple[tuple[float, float], ...] | None:
    """The bounds of events, none where the data does not say; None if they are not bounds."""
    if value is None:
        return ()
    pairs = [pair for pair in value if _are_bounds(pair)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(pairs) < len(value):
        return None
    return tuple((float(start), float(end)) for start, end in pairs)


def _are_bounds(pair: Any) -> bool:
    """Whether a value is [start, end] of something that lasts, in finite numbers."""
    if not (isinstance(pair, list) and len(pair) == 2):
        return False
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in pair)
    return numbers and 0 <= pair[0] < pair[1] <= sys.float_info.max


def _among(answer: str, choices: Sequence[str]) -> str | None:
    """The choice equal to an answer: the same text, else the only one but for case and spaces."""
    if answer in choices:
        return answer
    close = [choice for choice in choices if _plain(choice) == _plain(answer)]
    return close[0] if len(close) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def duplicates(item: Item) -> list[str]:
    """Choices that occur twice in an item, apart from case and spaces."""
    counts: dict[str, list[str]] = {}
    for choice in item.choices:
        counts.setdefault(_plain(choice), []).append(choice)
    return [same[0] for same in counts.values() if len(same) > 1]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_right(prediction: str, answer: str, choices: Sequence[str]) -> bool:
    """MMAU's official rule over lower-cased word sets.

    Right iff all the answer's words are in the prediction, and no word of another choice that is
    not also the answer's. An empty prediction is wrong.
    """
    spoken, wanted = _words(prediction), _words(answer)
    forbidden = set().union(*(_words(c) for c in choices if c != answer)) - wanted
    return bool(spoken) and wanted <= spoken and not spoken & forbidden


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
