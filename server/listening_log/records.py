"""What this deployment heard lately: a record of each answer, and their summary. No user text.

`MemoryLog` ends with the process; `writer.py` keeps the log in a database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from server.errors import UnknownRecord

WINDOW = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """One request that was answered, or only listened to."""

    id: str
    created: int  # seconds since 1970
    generated: bool  # False: only listened to
    score: float | None
    percentile: float | None
    verdict: str
    silence_score: float | None
    steered: bool
    direction: str | None
    strength: float
    audio_seconds: float
    answered: float = 0.0  # seconds since 1970
    answer_changed: bool | None = None  # by steering; None where nobody asked for the bare answer
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    silence_seconds: float = 0.0
    decode_seconds: float = 0.0
    model: str = ""
    profile: str = "none"


class ListeningLog(Protocol):
    """Where records go. `recent` and `find` may wait for a database, and may raise LogAway."""

    @property
    def kind(self) -> Literal["memory", "database"]: ...

    def open(self) -> None:
        """Take records from now on; SettingsError where the log can't be had."""

    def add(self, record: Record) -> None:
        """Keep a record; never waits."""

    def own(self) -> Sequence[Record]:
        """The last records of this process, oldest first; never waits."""

    def recent(self, model: str, profile: str) -> Sequence[Record]:
        """The last records of a model with a profile, oldest first."""

    def find(self, request_id: str) -> Record:
        """The newest record of that id; UnknownRecord if there is none."""

    def close(self) -> None:
        """Keep what is not yet kept; bounded in time."""


class MemoryLog:
    """The last records, in memory: gone when the process ends."""

    kind: Literal["memory"] = "memory"

    def __init__(self, window: int = WINDOW) -> None:
        self._records: deque[Record] = deque(maxlen=window)

    def open(self) -> None:
        """Nothing to do."""

    def add(self, record: Record) -> None:
        """Keep a record; the oldest goes when the window is full."""
        self._records.append(record)

    def own(self) -> Sequence[Record]:
        """The kept records, oldest first."""
        return list(self._records)

    def recent(self, model: str, profile: str) -> Sequence[Record]:
        """The kept records of a model with a profile, oldest first."""
        return [one for one in self.own() if (one.model, one.profile) == (model, profile)]

    def find(self, request_id: str) -> Record:
        """The newest record of that id; UnknownRecord if there is none."""
        return newest(self.own(), request_id)

    def close(self) -> None:
        """Nothing to do."""


def newest(records: Sequence[Record], request_id: str) -> Record:
    """The newest of some records that has this id. Raises UnknownRecord."""
    for record in reversed(records):
        if record.id == request_id:
            return record
    raise UnknownRecord(
        f"no record of a request {request_id[:64]!r}: old ones are removed; take `id` from an"
        " answer of this deployment"
    )


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Count, mean, percentiles and fractions of some records; null where nothing can be said."""
    scores = [r.score for r in records if r.score is not None]
    p10, p50, p90 = np.percentile(scores, [10, 50, 90]).tolist() if scores else [None] * 3
    answered = [r for r in records if r.generated]
    steered = [r for r in answered if r.steered]
    deaf = [r for r in records if r.verdict == "not_listening"]
    return {
        "window": WINDOW,
        "count": len(records),
        "mean": _mean(scores),
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "not_listening_fraction": len(deaf) / len(scores) if scores else None,
        "steered_fraction": len(steered) / len(answered) if answered else None,
        "mean_strength": _mean([r.strength for r in steered]),
        "last": last(records[-1]) if records else None,
    }


def last(record: Record) -> dict[str, Any]:
    """The newest record, as the summary shows it."""
    return {
        "id": record.id,
        "score": record.score,
        "verdict": record.verdict,
        "strength": record.strength,
        "created": record.created,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
