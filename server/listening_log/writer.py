"""Records that outlive the process: they wait in memory, and a thread writes them in batches.

No answer waits for the database. While it is unavailable, records wait for it up to a limit; beyond
it the oldest are dropped and counted.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from server.errors import LogUnavailable, WrongDatabaseVersion
from server.listening_log import database
from server.listening_log.records import WINDOW, MemoryLog, Record, newest_with_id, of_model

log = logging.getLogger("allears")
Result = TypeVar("Result")

WRITER = "listening log"  # the thread's name
_BATCH_SECONDS = 0.25  # from a first record to the batch that it is in
_RETRY_SECONDS = (0.25, 5.0)  # first and longest wait for an unavailable database
_PRUNE_SECONDS = 60.0
_STUCK_SECONDS = 6.0  # a batch that takes longer counts as an unavailable database
_CLOSE_SECONDS = 5.0


class DatabaseLog:
    """The log in a database; `recent` and `find` block, all else is for the event loop."""

    kind: Literal["database"] = "database"

    def __init__(
        self,
        url: URL,
        *,
        max_rows: int,
        max_days: float,
        buffer_rows: int,
        count_lost: Callable[[int], None],
        start_error: Callable[[str], Exception],
        folder: Path | None = None,
    ) -> None:
        """`open` makes the folder, and raises the `start_error` of the reason if it fails."""
        self._url, self._folder, self._start_error = url, folder, start_error
        self._max_rows, self._max_days, self._buffer_rows = max_rows, max_days, buffer_rows
        self._count_lost = count_lost
        self._replica = platform.node()
        self._memory = MemoryLog()  # the last records, written or not
        self._waiting: deque[Record] = deque()
        self._writing: tuple[Record, ...] = ()  # taken, and not known to be in the database
        self._wake_up = threading.Condition()
        self._closing = False
        self._prepared = False
        self._unavailable_since: float | None = None
        self._batch_began: float | None = None  # when writing it began
        self._pruned_at = float("-inf")
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None

    # ---- the event loop's side ----------------------------------------------------------------

    def open(self) -> None:
        """Make the tables and begin to write; raise the start error if the database refuses.

        A database that can't be reached now may come later.
        """
        if self._thread is not None:
            return
        try:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._engine = database.connect(self._url)
            self._prepare()
        except (SQLAlchemyError, WrongDatabaseVersion, OSError) as error:
            if not database.may_come_back(error):
                if self._engine is not None:
                    self._engine.dispose()
                raise self._start_error(database.reason(error)) from None
            self._log_outage(error)
        self._thread = threading.Thread(target=self._work, name=WRITER, daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Keep a record until it is written; the oldest that waits goes if too many do."""
        lost = 0
        with self._wake_up:
            self._memory.add(record)
            self._waiting.append(record)
            while self.waiting > self._buffer_rows and self._waiting:
                self._waiting.popleft()
                lost += 1
            if len(self._waiting) in (1, database.WRITE_ROWS):
                self._wake_up.notify()
        if lost:
            self._count_lost(lost)

    def of_this_process(self) -> Sequence[Record]:
        """The last records of this process, oldest first."""
        with self._wake_up:
            return self._memory.of_this_process()

    @property
    def waiting(self) -> int:
        """Records that are not known to be in the database."""
        return len(self._waiting) + len(self._writing)

    @property
    def unavailable(self) -> bool:
        """Whether the database can't be used now."""
        began, thread = self._batch_began, self._thread
        stuck = began is not None and time.monotonic() - began > _STUCK_SECONDS
        dead = thread is None or not thread.is_alive()
        return self._unavailable_since is not None or stuck or dead

    def close(self) -> None:
        """Write the records that wait, for at most a few seconds."""
        if self._thread is None:
            return
        with self._wake_up:
            self._closing = True
            self._wake_up.notify_all()
        self._thread.join(_CLOSE_SECONDS)
        if self.waiting:
            self._count_lost(self.waiting)
            log.error("listening log: %d records are lost: %s is away", self.waiting, self._name)

    # ---- of threads that may wait -------------------------------------------------------------

    def recent(self, model: str, profile: str) -> Sequence[Record]:
        """The last records of a model and profile, of all replicas, oldest first.

        Raises LogUnavailable.
        """
        unwritten = self._unwritten()  # first: what is written meanwhile is then in both
        written = self._read(lambda engine: database.recent(engine, model, profile, WINDOW))
        by_id = {record.id: record for record in (*written, *of_model(unwritten, model, profile))}
        return sorted(by_id.values(), key=lambda record: record.answered)[-WINDOW:]

    def find(self, request_id: str) -> Record:
        """The record of that id, of any replica. Raises UnknownRecord or LogUnavailable."""
        unwritten = self._unwritten()
        written = self._read(lambda engine: database.find(engine, request_id))
        return newest_with_id([written] if written else unwritten, request_id)

    def _unwritten(self) -> list[Record]:
        with self._wake_up:
            return [*self._writing, *self._waiting]

    def _read(self, query: Callable[[Engine], Result]) -> Result:
        if self.unavailable or self._engine is None or not self._prepared:
            raise LogUnavailable
        try:
            return query(self._engine)
        except SQLAlchemyError as error:
            log.debug("listening log: %s", database.reason(error))
            raise LogUnavailable from None

    # ---- the writer's thread ------------------------------------------------------------------

    def _work(self) -> None:
        """The thread's loop: take a batch, write it, remove old records now and then."""
        assert self._engine is not None
        retry, longest = _RETRY_SECONDS
        while True:
            self._take_batch()
            if self._closing and not self._writing:
                break
            if self._write_batch():
                retry = _RETRY_SECONDS[0]
                continue
            if self._closing:
                break
            with self._wake_up:
                self._wake_up.wait_for(lambda: self._closing, retry)
            retry = min(2 * retry, longest)
        self._engine.dispose()

    def _take_batch(self) -> None:
        """Take the next batch, unless one is left over; empty after a while without records."""
        with self._wake_up:
            if self._writing:
                return
            if self._unavailable_since is None:
                self._wait_for(1, self._idle_seconds())
                self._wait_for(database.WRITE_ROWS, _BATCH_SECONDS if self._waiting else 0)
            rows = min(len(self._waiting), database.WRITE_ROWS)
            self._writing = tuple(self._waiting.popleft() for _ in range(rows))

    def _wait_for(self, rows: int, seconds: float) -> None:
        """Return when so many records wait, the log is closed, or the time is over."""
        self._wake_up.wait_for(lambda: self._closing or len(self._waiting) >= rows, seconds)

    def _write_batch(self) -> bool:
        """Write the batch; True if it is dealt with: in the database, or refused for good."""
        assert self._engine is not None
        self._batch_began = time.monotonic()
        try:
            if not self._prepared:
                self._prepare()
            database.write(self._engine, self._writing, self._replica)
            self._prune()
        except (SQLAlchemyError, WrongDatabaseVersion) as error:
            if not isinstance(error, DataError | IntegrityError):
                self._log_outage(error)
                return False
            log.error("listening log: records are refused: %s", database.reason(error))
            self._count_lost(len(self._writing))
        except Exception:  # a bug of ours; the next batch may be free of it
            log.exception("listening log: %d records are lost", len(self._writing))
            self._count_lost(len(self._writing))
        finally:
            self._batch_began = None
        self._writing = ()
        self._log_recovery()
        return True

    def _prepare(self) -> None:
        assert self._engine is not None
        database.prepare(self._engine)
        self._prepared = True

    def _prune(self) -> None:
        """Remove a batch of old records if the last time is long ago; the rest at the next turn."""
        if time.monotonic() - self._pruned_at < _PRUNE_SECONDS or self._engine is None:
            return
        before = time.time() - self._max_days * 86_400
        removed = database.prune(self._engine, before, self._max_rows)
        if removed < database.PRUNE_ROWS:
            self._pruned_at = time.monotonic()

    def _idle_seconds(self) -> float:
        """Seconds until old records are to be removed."""
        return max(0.0, self._pruned_at + _PRUNE_SECONDS - time.monotonic())

    @property
    def _name(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def _log_outage(self, error: Exception) -> None:
        """Log an outage, once."""
        if self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            log.warning(
                "listening log: %s is away (%s); answers go on, up to %d records wait for it",
                self._name,
                database.reason(error),
                self._buffer_rows,
            )

    def _log_recovery(self) -> None:
        if self._unavailable_since is not None:
            seconds = time.monotonic() - self._unavailable_since
            self._unavailable_since = None
            log.info("listening log: back after %.0f s; %d records wait", seconds, self.waiting)
