"""The listening log's tables, and the SQL on them: SQLite or PostgreSQL, nothing else.

The columns are the fields of Record. A record is written once however often it is tried: its id is
unique. Tables of an older VERSION get the columns that they lack; those of any other are refused,
never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

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

VERSION = 2  # of the tables; another one with every change of Record
_ADDED = {2: ("effect_bits",)}  # version -> columns that came with it, all nullable
WRITE_ROWS = 500  # records of one transaction
PRUNE_ROWS = 1000  # records of one removing transaction
_CONNECT_SECONDS = 3
_STATEMENT_SECONDS = 5
_LOCK = 5_497_110_321  # PostgreSQL's advisory lock for making our tables
_TYPES = {str: Text, int: BigInteger, float: Double, bool: Boolean}


def _column(name: str, hint: Any) -> Column[Any]:
    """The column of a field of Record; nullable if the field may be None."""
    kinds = set(get_args(hint)) or {hint}
    (kind,) = kinds - {NoneType}
    return Column(name, _TYPES[kind], nullable=NoneType in kinds, unique=name == "id" or None)


_COLUMNS = [_column(name, hint) for name, hint in get_type_hints(Record).items()]
_metadata = MetaData()
_version = Table("listening_log_version", _metadata, Column("version", Integer, primary_key=True))
_records = Table(
    "listening_log",
    _metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _COLUMNS[0],
    Column("replica", Text, nullable=False),
    *_COLUMNS[1:],
    Index("listening_log_of_a_model", "model", "profile", "answered"),
    Index("listening_log_by_age", "answered"),
)


def parse(url: str) -> URL:
    """The database of a URL. Raises ValueError without the URL, which holds a password."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("not a database's URL") from None
    driver = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
    parsed = parsed.set(drivername=driver.get(parsed.drivername, parsed.drivername))
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ValueError("neither SQLite nor PostgreSQL")
    if parsed.drivername == "sqlite" and (parsed.host or parsed.database in (None, "", ":memory:")):
        raise ValueError("no file is named; a file's absolute path comes after sqlite:///")
    if parsed.drivername != "sqlite" and find_spec("psycopg") is None:
        raise ValueError("psycopg is missing; pip install 'allears[postgres]'")
    return parsed


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
    options: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * _STATEMENT_SECONDS,
        "application_name": "allears",
        "prepare_threshold": None,  # poolers may not know prepared statements
    }
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=3,
        max_overflow=0,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        connect_args={name: value for name, value in options.items() if name not in url.query},
    )
    event.listen(engine, "begin", _limit_postgresql)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    """Let several processes share the file, none of them held up by another's reading."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _limit_postgresql(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL statement_timeout = {1000 * _STATEMENT_SECONDS}"))


def prepare(engine: Engine) -> None:
    """Make the tables if there are none, and bring older ones up to this version.

    Raises WrongDatabaseVersion and SQLAlchemy's errors.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # one after the other
            (finding,) = connection.exec_driver_sql("PRAGMA quick_check(1)").one()
            if finding != "ok":
                raise WrongDatabaseVersion(f"the file is damaged: {finding}")
        else:
            connection.execute(select(text(f"pg_advisory_xact_lock({_LOCK})")))
        _metadata.create_all(connection)
        version = connection.execute(select(_version.c.version)).scalar_one_or_none()
        if version is None:
            connection.execute(insert(_version).values(version=VERSION))
        elif version not in range(1, VERSION + 1):
            raise WrongDatabaseVersion(
                f"its tables are of version {version}, and this allears knows version {VERSION};"
                " run the version that made them, or name another database"
            )
        else:
            _upgrade(connection, version)
        connection.execute(update(_version).values(version=VERSION))  # fails if it may not write


def _upgrade(connection: Connection, version: int) -> None:
    """Add the columns that came after a version; its own writers never name them."""
    for added in range(version + 1, VERSION + 1):
        for name in _ADDED[added]:
            kind = _records.c[name].type.compile(connection.dialect)
            connection.execute(text(f"ALTER TABLE {_records.name} ADD COLUMN {name} {kind}"))


def write(engine: Engine, records: Sequence[Record], replica: str) -> None:
    """Add the records that are not there already."""
    if not records:
        return
    insert_into = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
    statement = insert_into(_records).on_conflict_do_nothing(index_elements=["id"])
    rows = [{**asdict(record), "replica": replica} for record in records]
    with engine.begin() as connection:
        connection.execute(statement, rows)


def prune(engine: Engine, before: float, max_rows: int) -> int:
    """Remove up to PRUNE_ROWS records older than `before` or beyond `max_rows`; their count."""
    number = _records.c.number
    with engine.begin() as connection:
        surplus = select(number).order_by(number.desc()).offset(max_rows).limit(1)
        last_surplus = connection.execute(surplus).scalar_one_or_none()
        outdated = _records.c.answered < before
        if last_surplus is not None:
            outdated |= number <= last_surplus
        batch = select(number).where(outdated).limit(PRUNE_ROWS).with_for_update(skip_locked=True)
        return connection.execute(delete(_records).where(number.in_(batch))).rowcount


def recent(engine: Engine, model: str, profile: str, rows: int) -> list[Record]:
    """The last records of a model with a profile, oldest first."""
    same = (_records.c.model == model) & (_records.c.profile == profile)
    newest = select(*_COLUMNS).where(same).order_by(_records.c.answered.desc()).limit(rows)
    with engine.begin() as connection:
        return [Record(*row) for row in reversed(connection.execute(newest).all())]


def find(engine: Engine, request_id: str) -> Record | None:
    """The record of that id; None if there is none."""
    with engine.begin() as connection:
        row = connection.execute(select(*_COLUMNS).where(_records.c.id == request_id)).one_or_none()
    return None if row is None else Record(*row)


_TRANSIENT = re.compile(
    r"the database system is|not yet accepting|too many clients|connection slots|locked|busy"
)


def may_come_back(error: Exception) -> bool:
    """Whether a database that can't be used at start is unavailable for now only: unreachable,
    starting, full. One that refuses (password, name, rights), or a file that is no database, is
    not.
    """
    if isinstance(error, NoConnection):
        return True
    if not isinstance(error, OperationalError):
        return False
    message = str(error.orig)
    if _TRANSIENT.search(message):
        return True
    return type(error.orig).__module__.startswith("psycopg") and not (
        "FATAL" in message or getattr(error.orig, "sqlstate", None)
    )


def reason(error: Exception) -> str:
    """The message of a database's error, in one line."""
    message = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return " ".join(message.split())[:300]
