"""Predictions in MMAU's and MMAR's own formats, so that their official scripts take the files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steering.items import Item

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.):]?(?:\s+(.*))?$", re.DOTALL)


def prediction(text: str, choices: Sequence[str], *, lettered: bool) -> str:
    """The bare option if a model's answer names exactly one, else the answer as it is.

    The official matcher compares sets of words and has no notion of "A. X" or "The answer is X":
    the words around an option count against it. `lettered` says whether the prompt gave the
    options letters; only then is a letter the name of one. An empty answer stays empty: the
    official script counts it as wrong.
    """
    answer = answer_part(text)
    for choice in choices:
        if answer.casefold() == choice.strip().casefold():
            return choice
    named = _by_letter(answer, choices) if lettered else None
    if named is None:
        options = _named(answer, choices)
        named = options[0] if len(options) == 1 else None
    return answer if named is None else named


def answer_part(text: str) -> str:
    """The text of the last <answer> tag, closed or cut off; the whole text without one."""
    tagged: list[str] = _TAG.findall(text)
    return (tagged[-1] if tagged else text).strip()


def _by_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The option of a letter that is alone or followed by that option's own text."""
    match = _LETTER.fullmatch(answer)
    if match is None or (place := ord(match[1].upper()) - ord("A")) >= len(choices):
        return None
    rest = (match[2] or "").strip(" .").casefold()
    return choices[place] if rest in ("", choices[place].strip(" .").casefold()) else None


def _named(answer: str, choices: Sequence[str]) -> list[str]:
    """The options whose words are in the answer as they are, longest first; an option inside a
    longer one that is also named does not count.
    """
    remaining, options = answer, []
    for choice in sorted(choices, key=len, reverse=True):
        whole = re.compile(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", re.IGNORECASE)
        if whole.search(remaining):
            options.append(choice)
            remaining = whole.sub(" ", remaining)
    return options


def prediction_key(record: dict[str, Any]) -> str:
    """The key that the official script of an item's data set reads; MMAR's has its own."""
    return "answer_prediction" if "audio_path" in record else "model_output"


def write_predictions(path: Path, items: Sequence[Item], outputs: Sequence[str]) -> None:
    """Write the original items with their predictions, whole or not at all."""
    records = [
        {**item.record, prediction_key(item.record): output}
        for item, output in zip(items, outputs, strict=True)
    ]
    write_whole(path, json.dumps(records, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file with all of its text, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
