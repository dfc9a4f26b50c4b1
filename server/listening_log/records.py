"""Records of recent answers, without user text, and their summary.

`MemoryLog` ends with the process; `writer.py` keeps the log in a database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from server.errors import UnknownRecord

WINDOW = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """One request that was answered, or only listened to; the columns of the database."""

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
    answer_changed: bool | None = None  # by steering; None unless the unsteered answer was made
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    silence_seconds: float = 0.0
    decode_seconds: float = 0.0
    model: str = ""
    profile: str = "none"
    effect_bits: float | None = None  # of the sound on the bare answer, where it was measured


class ListeningLog(Protocol):
    """Keeps records. `recent` and `find` may wait for a database, or raise LogUnavailable."""

    @property
    def kind(self) -> Literal["memory", "database"]: ...

    def open(self) -> None:
        """Take records from now on; SettingsError if the database can't be used."""

    def add(self, record: Record) -> None:
        """Keep a record; never waits."""

    def of_this_process(self) -> Sequence[Record]:
        """The last records of this process, oldest first; never waits."""

    def recent(self, model: str, profile: str) -> Sequence[Record]:
        """The last records of a model with a profile, oldest first."""

    def find(self, request_id: str) -> Record:
        """The newest record of that id; UnknownRecord if there is none."""

    def close(self) -> None:
        """Write the records that wait; bounded in time."""


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

    def of_this_process(self) -> Sequence[Record]:
        """The kept records, oldest first."""
        return list(self._records)

    def recent(self, model: str, profile: str) -> Sequence[Record]:
        """The kept records of a model with a profile, oldest first."""
        return of_model(self.of_this_process(), model, profile)  # a copy: another thread adds

    def find(self, request_id: str) -> Record:
        """The newest record of that id; UnknownRecord if there is none."""
        return newest_with_id(self.of_this_process(), request_id)

    def close(self) -> None:
        """Nothing to do."""


def of_model(records: Iterable[Record], model: str, profile: str) -> list[Record]:
    """The records of a model with a profile, in their order."""
    return [record for record in records if (record.model, record.profile) == (model, profile)]


def newest_with_id(records: Sequence[Record], request_id: str) -> Record:
    """The newest of the records with this id. Raises UnknownRecord."""
    for record in reversed(records):
        if record.id == request_id:
            return record
    raise UnknownRecord(
        f"no record of a request {request_id[:64]!r}: old ones are removed; take `id` from an"
        " answer of this deployment"
    )


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Count, mean, percentiles and fractions of the records; null for what has no values.

    Conversations without audio are left out.
    """
    records = [record for record in records if record.audio_seconds]
    scores = [record.score for record in records if record.score is not None]
    p10, p50, p90 = np.percentile(scores, [10, 50, 90]).tolist() if scores else [None] * 3
    answered = [record for record in records if record.generated]
    steered = [record for record in answered if record.steered]
    not_listening = [record for record in records if record.verdict == "not_listening"]
    return {
        "window": WINDOW,
        "count": len(records),
        "mean": _mean(scores),
        "p10": p10,
        "p50": p50,
        "p90": p90,
        "not_listening_fraction": len(not_listening) / len(scores) if scores else None,
        "steered_fraction": len(steered) / len(answered) if answered else None,
        "mean_strength": _mean([record.strength for record in steered]),
        "mean_effect_bits": _mean([r.effect_bits for r in records if r.effect_bits is not None]),
        "last": _brief(records[-1]) if records else None,
    }


def _brief(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "score": record.score,
        "verdict": record.verdict,
        "strength": record.strength,
        "created": record.created,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
