"""Predictions in MMAU's and MMAR's own formats, so that their official scripts take the files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steering.items import Item


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


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV, the header first."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def write_whole(path: Path, text: str) -> None:
    """Write a file with all of its text, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
