"""Records that outlive the process: they wait in memory, and a thread writes them in batches.

Nothing that answers a request waits for the database. Where it is away, records wait for it, at
most as many as the settings say; then the oldest go, and are counted.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from server.errors import LogUnavailable, WrongDatabaseVersion
from server.listening_log import database as database
from server.listening_log.records import WINDOW, MemoryLog, Record, newest
from server.settings import Settings, wrong_log

log = logging.getLogger("allears")
Found = TypeVar("Found")

WRITER = "listening log"  # the thread's name
_GATHER_SECONDS = 0.25  # from a first record to the batch that it is in
_RETRY_SECONDS = (0.25, 5.0)  # first and longest wait for a database that is away
_PRUNE_SECONDS = 60.0
_STUCK_SECONDS = 6.0  # a batch that takes longer counts as a database that is away
_CLOSE_SECONDS = 5.0


class DatabaseLog:
    """The log in a database; `add` and `own` are the event loop's, `recent` and `find` block."""

    kind: Literal["database"] = "database"

    def __init__(self, settings: Settings, count_lost: Callable[[int], None]) -> None:
        self._settings = settings
        self._count_lost = count_lost
        self._replica = platform.node()
        self._own = MemoryLog()
        self._waiting: deque[Record] = deque()
        self._writing: tuple[Record, ...] = ()  # taken, and not known to be in the database
        self._news = threading.Condition()
        self._closing = False
        self._prepared = False
        self._away_since: float | None = None
        self._began: float | None = None  # when the batch that is being written was begun
        self._pruned_at = float("-inf")
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None

    # ---- the event loop's side ----------------------------------------------------------------

    def open(self) -> None:
        """Make the tables and begin to write; SettingsError where the database can't be used.

        One that can't be reached now is waited for.
        """
        if self._thread is not None:
            return
        folder = self._settings.state_folder
        try:
            if self._settings.listening_log_url is None:
                folder.mkdir(parents=True, exist_ok=True)
            self._engine = database.connect(self._settings.log_database)
            self._prepare()
        except (SQLAlchemyError, WrongDatabaseVersion, OSError) as error:
            if not database.may_come_back(error):
                if self._engine is not None:
                    self._engine.dispose()
                raise wrong_log(self._settings, database.reason(error)) from None
            self._note_away(error)
        self._thread = threading.Thread(target=self._work, name=WRITER, daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Keep a record until it is written; the oldest that waits goes where too many do."""
        lost = 0
        with self._news:
            self._own.add(record)
            self._waiting.append(record)
            while self.waiting > self._settings.listening_log_buffer_rows and self._waiting:
                self._waiting.popleft()
                lost += 1
            if len(self._waiting) in (1, database.WRITE_ROWS):
                self._news.notify()
        if lost:
            self._count_lost(lost)

    def own(self) -> Sequence[Record]:
        """The last records of this process, oldest first."""
        with self._news:
            return self._own.own()

    @property
    def waiting(self) -> int:
        """Records that are not known to be in the database."""
        return len(self._waiting) + len(self._writing)

    @property
    def away(self) -> bool:
        """Whether the database can't be used now."""
        began, thread = self._began, self._thread
        stuck = began is not None and time.monotonic() - began > _STUCK_SECONDS
        return self._away_since is not None or stuck or thread is None or not thread.is_alive()

    def close(self) -> None:
        """Write what waits, as far as that takes a few seconds."""
        if self._thread is None:
            return
        with self._news:
            self._closing = True
            self._news.notify_all()
        self._thread.join(_CLOSE_SECONDS)
        if self.waiting:
            self._count_lost(self.waiting)
            log.error("listening log: %d records are lost: %s is away", self.waiting, self._name)

    # ---- of threads that may wait -------------------------------------------------------------

    def recent(self, model: str, profile: str) -> Sequence[Record]:
        """The last records of a model and profile, of all replicas, oldest first; or LogAway."""
        with self._news:  # first: what is written meanwhile is then in both, and not in neither
            unwritten = [*self._writing, *self._waiting]
        rows = self._read(lambda engine: database.recent(engine, model, profile, WINDOW))
        found = {one.id: one for one in rows}
        found |= {one.id: one for one in unwritten if (one.model, one.profile) == (model, profile)}
        return sorted(found.values(), key=lambda one: one.answered)[-WINDOW:]

    def find(self, request_id: str) -> Record:
        """The record of that id, of any replica. Raises UnknownRecord or LogAway."""
        with self._news:
            unwritten = [*self._writing, *self._waiting]
        found = self._read(lambda engine: database.find(engine, request_id))
        return newest([found] if found else unwritten, request_id)

    def _read(self, query: Callable[[Engine], Found]) -> Found:
        if self.away or self._engine is None or not self._prepared:
            raise LogUnavailable
        try:
            return query(self._engine)
        except SQLAlchemyError as error:
            log.debug("listening log: %s", database.reason(error))
            raise LogUnavailable from None

    # ---- the writer's thread ------------------------------------------------------------------

    def _work(self) -> None:
        """Until closed: gather some records, write them, remove old ones now and then."""
        assert self._engine is not None
        retry, longest = _RETRY_SECONDS
        while True:
            self._gather()
            if self._closing and not self._writing:
                break
            if self._wrote():
                retry = _RETRY_SECONDS[0]
                continue
            if self._closing:
                break
            with self._news:
                self._news.wait_for(lambda: self._closing, retry)
            retry = min(2 * retry, longest)
        self._engine.dispose()

    def _gather(self) -> None:
        """Take the next batch, unless one is left over; empty after a while without records."""
        with self._news:
            if self._writing:
                return
            if self._away_since is None:
                self._wait_for(1, self._idle_seconds())
                self._wait_for(database.WRITE_ROWS, _GATHER_SECONDS if self._waiting else 0)
            rows = min(len(self._waiting), database.WRITE_ROWS)
            self._writing = tuple(self._waiting.popleft() for _ in range(rows))

    def _wait_for(self, rows: int, seconds: float) -> None:
        """Until so many records wait, or the log is closed, or the time is over."""
        self._news.wait_for(lambda: self._closing or len(self._waiting) >= rows, seconds)

    def _wrote(self) -> bool:
        """Whether the batch is dealt with: it is in the database, or can never be."""
        assert self._engine is not None
        self._began = time.monotonic()
        try:
            if not self._prepared:
                self._prepare()
            database.write(self._engine, self._writing, self._replica)
            self._prune()
        except (SQLAlchemyError, WrongDatabaseVersion) as error:
            if not isinstance(error, DataError | IntegrityError):
                self._note_away(error)
                return False
            log.error("listening log: records are refused: %s", database.reason(error))
            self._count_lost(len(self._writing))
        except Exception:  # ours; the next batch may be free of it
            log.exception("listening log: %d records are lost", len(self._writing))
            self._count_lost(len(self._writing))
        finally:
            self._began = None
        self._writing = ()
        self._note_back()
        return True

    def _prepare(self) -> None:
        assert self._engine is not None
        database.prepare(self._engine)
        self._prepared = True

    def _prune(self) -> None:
        """Remove one batch of old records, if that was long ago; more of them at the next turn."""
        if time.monotonic() - self._pruned_at < _PRUNE_SECONDS or self._engine is None:
            return
        before = time.time() - self._settings.listening_log_max_days * 86_400
        gone = database.prune(self._engine, before, self._settings.listening_log_max_rows)
        if gone < database.PRUNE_ROWS:
            self._pruned_at = time.monotonic()

    def _idle_seconds(self) -> float:
        """From now to when old records are to be removed."""
        return max(0.0, self._pruned_at + _PRUNE_SECONDS - time.monotonic())

    @property
    def _name(self) -> str:
        return self._settings.log_database.render_as_string(hide_password=True)

    def _note_away(self, error: Exception) -> None:
        """Log an outage, once."""
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning(
                "listening log: %s is away (%s); answers go on, up to %d records wait for it",
                self._name,
                database.reason(error),
                self._settings.listening_log_buffer_rows,
            )

    def _note_back(self) -> None:
        if self._away_since is not None:
            seconds, self._away_since = time.monotonic() - self._away_since, None
            log.info("listening log: back after %.0f s; %d records wait", seconds, self.waiting)
