"""The journal of an evaluation: one line for each answered item, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from steering.errors import DataError


class Journal:
    """Answers by item and arm, on disk as soon as they are given.

    The first line identifies the run. A line cut off by the end of a process does not count and is
    overwritten.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Continue the journal at `path`, or begin it; DataError if damaged or another run's."""
        self.path = path
        self.answers: dict[str, dict[str, str]] = {}
        whole = path.read_bytes() if path.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
            self.answers = {line["id"]: line["answers"] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): remove it to begin again") from error
        if first is not None and first != dict(run):
            raise DataError(
                f"{path} holds the answers of a run that was stopped: {json.dumps(first)}; this run"
                f" is {json.dumps(dict(run))}. Start that one again, choose another --out, or"
                " remove the file"
            )
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if first is None:
            self._write(dict(run))

    def add(self, item: str, answers: Mapping[str, str]) -> None:
        """Keep the answers to one item."""
        self.answers[item] = dict(answers)
        self._write({"id": item, "answers": dict(answers)})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
