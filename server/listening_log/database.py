"""The listening log's tables, and the SQL on them: SQLite or PostgreSQL, nothing else.

A record is written once however often it is tried: its id is unique. `version` says which version
of the tables a database holds; one of another version is refused, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    event,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from server.errors import WrongDatabaseVersion
from server.listening_log.records import Record

VERSION = 1
WRITE_ROWS = 500  # records of one transaction
PRUNE_ROWS = 1000  # records that one transaction removes
_CONNECT_SECONDS = 3
_STATEMENT_SECONDS = 5
_LOCK = 5_497_110_321  # of PostgreSQL's advisory locks, the one for making our tables

_metadata = MetaData()
_version = Table("listening_log_version", _metadata, Column("version", Integer, primary_key=True))
_records = Table(
    "listening_log",
    _metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("replica", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("generated", Boolean, nullable=False),
    Column("score", Double),
    Column("percentile", Double),
    Column("verdict", Text, nullable=False),
    Column("silence_score", Double),
    Column("steered", Boolean, nullable=False),
    Column("direction", Text),
    Column("strength", Double, nullable=False),
    Column("audio_seconds", Double, nullable=False),
    Column("answered", Double, nullable=False),
    Column("answer_changed", Boolean),
    Column("queue_seconds", Double, nullable=False),
    Column("prefill_seconds", Double, nullable=False),
    Column("silence_seconds", Double, nullable=False),
    Column("decode_seconds", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Index("listening_log_of_a_model", "model", "profile", "answered"),
    Index("listening_log_by_age", "answered"),
)
_FIELDS = [_records.c[field.name] for field in fields(Record)]


def parse(url: str) -> URL:
    """The database that a URL names. Raises ValueError, without the URL, which holds a password."""
    try:
        found = make_url(url)
    except ArgumentError:
        raise ValueError("not a database's URL") from None
    driver = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
    found = found.set(drivername=driver.get(found.drivername, found.drivername))
    if found.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ValueError("neither SQLite nor PostgreSQL")
    if found.drivername == "sqlite" and (found.host or found.database in (None, "", ":memory:")):
        raise ValueError("no file is named; a file's absolute path comes after sqlite:///")
    if found.drivername != "sqlite" and find_spec("psycopg") is None:
        raise ValueError("psycopg is missing; pip install 'allears[postgres]'")
    return found


def file(path: Path) -> URL:
    """The database in a file."""
    return URL.create("sqlite", database=str(path))


def connect(url: URL) -> Engine:
    """An engine for a database; nothing is opened yet."""
    if url.drivername == "sqlite":
        engine = create_engine(
            url, hide_parameters=True, pool_timeout=_CONNECT_SECONDS, connect_args={"timeout": 3}
        )
        event.listen(engine, "connect", _set_up_sqlite)
        return engine
    waits: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * _STATEMENT_SECONDS,
        "application_name": "allears",
        "prepare_threshold": None,  # poolers in front of PostgreSQL may not know them
    }
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=3,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={name: value for name, value in waits.items() if name not in url.query},
    )
    event.listen(engine, "begin", _limit_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Several processes may share the file, and none of them is cut off by another's reading."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _limit_postgresql(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL statement_timeout = {1000 * _STATEMENT_SECONDS}"))


def prepare(engine: Engine) -> None:
    """Make the tables where there are none. Raises WrongDatabaseVersion and SQLAlchemy's errors."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # one after the other
            (whole,) = connection.exec_driver_sql("PRAGMA quick_check(1)").one()
            if whole != "ok":
                raise WrongDatabaseVersion(f"the file is damaged: {whole}")
        else:
            connection.execute(select(text(f"pg_advisory_xact_lock({_LOCK})")))
        _metadata.create_all(connection)
        found = connection.execute(select(_version.c.version)).scalar_one_or_none()
        if found is None:
            connection.execute(insert(_version).values(version=VERSION))
        elif found != VERSION:
            raise WrongDatabaseVersion(
                f"its tables are of version {found}, and this allears knows version {VERSION};"
                " run the version that made them, or name another database"
            )
        connection.execute(update(_version).values(version=VERSION))  # fails if it may not write


def write(engine: Engine, records: Sequence[Record], replica: str) -> None:
    """Add records, but those that are there already."""
    if not records:
        return
    make = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    adding = make(_records).on_conflict_do_nothing(index_elements=["id"])
    with engine.begin() as connection:
        connection.execute(adding, [{**asdict(one), "replica": replica} for one in records])


def prune(engine: Engine, before: float, max_rows: int) -> int:
    """How many records went: at most PRUNE_ROWS that are older than `before` or over `max_rows`."""
    number = _records.c.number
    with engine.begin() as connection:
        surplus = select(number).order_by(number.desc()).offset(max_rows).limit(1)
        last = connection.execute(surplus).scalar_one_or_none()
        old = _records.c.answered < before
        gone = old if last is None else old | (number <= last)
        some = select(number).where(gone).limit(PRUNE_ROWS).with_for_update(skip_locked=True)
        return connection.execute(delete(_records).where(number.in_(some))).rowcount


def recent(engine: Engine, model: str, profile: str, rows: int) -> list[Record]:
    """The last records of a model with a profile, oldest first."""
    its = (_records.c.model == model) & (_records.c.profile == profile)
    newest = select(*_FIELDS).where(its).order_by(_records.c.answered.desc()).limit(rows)
    with engine.begin() as connection:
        return [Record(*row) for row in reversed(connection.execute(newest).all())]


def find(engine: Engine, request_id: str) -> Record | None:
    """The record of that id; None if there is none."""
    with engine.begin() as connection:
        row = connection.execute(select(*_FIELDS).where(_records.c.id == request_id)).one_or_none()
    return None if row is None else Record(*row)


_NOT_NOW = re.compile(
    r"the database system is|not yet accepting|too many clients|connection slots|locked|busy"
)


def may_come_back(error: Exception) -> bool:
    """Whether a database that can't be used at start is only away: not reached, starting, full.

    One that answers and refuses (password, name, rights), or a file that is no database, is not.
    """
    if isinstance(error, NoConnection):
        return True
    if not isinstance(error, OperationalError):
        return False
    said = str(error.orig)
    if _NOT_NOW.search(said):
        return True
    return type(error.orig).__module__.startswith("psycopg") and not (
        "FATAL" in said or getattr(error.orig, "sqlstate", None)
    )


def reason(error: Exception) -> str:
    """One line of what a database said."""
    said = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return " ".join(said.split())[:300]
