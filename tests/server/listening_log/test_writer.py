"""The listening log in a database: SQLite and a real PostgreSQL, which goes away and comes back."""

from __future__ import annotations

import logging
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import inspect, text

from server.app import database_log
from server.errors import LogUnavailable, SettingsError, UnknownRecord
from server.listening_log import database, reading, writer
from server.listening_log.records import Record
from server.listening_log.writer import DatabaseLog
from server.settings import Settings

QUESTION = "What is this?"
SYSTEM = pytest.mark.system
RECORD = Record(
    id="",
    created=1_790_000_000,
    generated=True,
    score=0.25,
    percentile=0.125,
    verdict="partly_listening",
    silence_score=None,
    steered=True,
    direction="request",
    strength=1.5,
    audio_seconds=2.0,
    answered=0.0,
    answer_changed=True,
    queue_seconds=0.1,
    prefill_seconds=0.2,
    silence_seconds=0.3,
    decode_seconds=0.4,
    model="demo",
    profile="mine",
)


def record(name: str, **other: Any) -> Record:
    return replace(RECORD, **{"id": name, "answered": time.time(), **other})


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@contextmanager
def log_at(url: str, **settings: Any) -> Iterator[DatabaseLog]:
    log = database_log(Settings(listening_log_url=SecretStr(url), **settings), lost.append)
    log.open()
    try:
        yield log
    finally:
        log.close()


lost: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_lost() -> None:
    lost.clear()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=SYSTEM)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'log.sqlite'}"
    database_url: str = request.getfixturevalue("postgres").new_database()
    return database_url


def rows_of(log: DatabaseLog) -> int:
    assert log._engine is not None
    with log._engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM listening_log")).scalar_one())


# ---- one log, on both databases


def test_what_was_added_is_there_at_once_and_after_a_restart(url: str) -> None:
    first = record("a")
    nothing = record("b", score=None, percentile=None, direction=None, answer_changed=None)
    added = [first, nothing, record("c", silence_score=0.5, effect_bits=7.5)]
    with log_at(url) as log:
        for added_record in added:
            log.add(added_record)
        assert log.recent("demo", "mine") == added
        assert log.find("b") == nothing
    assert not lost
    with log_at(url) as log:
        assert log.recent("demo", "mine") == added
        assert log.find("a") == added[0]
        assert log.of_this_process() == []
        with pytest.raises(UnknownRecord, match="'d'"):
            log.find("d")


def test_two_processes_see_one_history(url: str) -> None:
    with log_at(url) as one, log_at(url) as other:
        one.add(record("a"))
        other.add(record("b"))
        wait_until(lambda: not one.waiting and not other.waiting)
        assert [r.id for r in one.recent("demo", "mine")] == ["a", "b"]
        assert one.find("b") == other.find("b")
        assert [r.id for r in one.of_this_process()] == ["a"]


def test_another_model_or_profile_has_a_history_of_its_own(url: str) -> None:
    with log_at(url) as log:
        log.add(record("a"))
        log.add(record("b", model="other"))
        wait_until(lambda: not log.waiting)
        log.add(record("c", profile="other"))
        assert [r.id for r in log.recent("demo", "mine")] == ["a"]
        assert [r.id for r in log.recent("other", "mine")] == ["b"]
        assert [r.id for r in log.recent("demo", "other")] == ["c"]


def test_a_record_is_written_once_however_often_it_is_tried(url: str) -> None:
    with log_at(url) as log:
        assert log._engine is not None
        for _ in range(2):
            database.write(log._engine, [record("a"), record("b")], "here")
        assert rows_of(log) == 2


def test_old_records_and_those_over_the_limit_go(url: str) -> None:
    now = time.time()
    with log_at(url) as log:
        engine = log._engine
        assert engine is not None
        days_ago = [record(f"old-{i}", answered=now - 10 * 86_400) for i in range(3)]
        fresh = [record(f"new-{i}", answered=now + i) for i in range(10)]
        database.write(engine, [*days_ago, *fresh], "here")
        assert database.prune(engine, now - 86_400, max_rows=1000) == 3
        assert database.prune(engine, now - 86_400, max_rows=4) == 6
        assert database.prune(engine, now - 86_400, max_rows=4) == 0
        kept = database.recent(engine, "demo", "mine", 1000)
        assert [r.id for r in kept] == ["new-6", "new-7", "new-8", "new-9"]
        assert [r.id for r in database.recent(engine, "demo", "mine", 2)] == [
            "new-8",
            "new-9",
        ]


def test_the_writer_prunes_in_batches(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_PRUNE_SECONDS", 0.2)
    monkeypatch.setattr(database, "PRUNE_ROWS", 100)
    with log_at(url, listening_log_max_rows=1000) as log:
        for i in range(1450):
            log.add(record(f"r{i}"))
        wait_until(lambda: not log.waiting and rows_of(log) == 1000)
        assert log.recent("demo", "mine")[0].id == "r450"
    assert not lost


def test_a_column_for_every_field(url: str) -> None:
    with log_at(url) as log:
        assert log._engine is not None
        columns = {column["name"] for column in inspect(log._engine).get_columns("listening_log")}
    assert columns == {field.name for field in fields(Record)} | {"number", "replica"}
    assert not {"question", "answer", "audio", "text"} & columns


def test_the_columns_of_this_version(tmp_path: Path) -> None:
    """Whoever changes them makes another version."""
    with log_at(f"sqlite:///{tmp_path / 'log.sqlite'}") as log:
        assert log._engine is not None
        columns = inspect(log._engine).get_columns("listening_log")
    described = [
        f"{column['name']} {column['type']}{' null' * column['nullable']}" for column in columns
    ]
    assert database.VERSION == 2
    assert described == [
        "number INTEGER",
        "id TEXT",
        "replica TEXT",
        "created BIGINT",
        "generated BOOLEAN",
        "score DOUBLE null",
        "percentile DOUBLE null",
        "verdict TEXT",
        "silence_score DOUBLE null",
        "steered BOOLEAN",
        "direction TEXT null",
        "strength DOUBLE",
        "audio_seconds DOUBLE",
        "answered DOUBLE",
        "answer_changed BOOLEAN null",
        "queue_seconds DOUBLE",
        "prefill_seconds DOUBLE",
        "silence_seconds DOUBLE",
        "decode_seconds DOUBLE",
        "model TEXT",
        "profile TEXT",
        "effect_bits DOUBLE null",
    ]


def test_tables_of_the_first_version_get_the_new_column(url: str) -> None:
    old, new = record("old"), record("new", effect_bits=3.25)
    with log_at(url) as log:
        log.add(old)
    engine = database.connect(database.parse(url))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE listening_log DROP COLUMN effect_bits"))
        connection.execute(text("UPDATE listening_log_version SET version = 1"))
    for _ in range(2):  # the second start finds tables of this version
        with log_at(url) as log:
            log.add(new)
            wait_until(lambda log=log: not log.waiting)  # type: ignore[misc]
            assert log.recent("demo", "mine") == [old, new]
    with engine.begin() as connection:  # a writer of the first version, still running
        columns = "id, replica, created, generated, verdict, steered, strength, audio_seconds"
        rest = "answered, queue_seconds, prefill_seconds, silence_seconds, decode_seconds"
        values = "'late', 'r', 1, true, 'unknown', false, 0, 1, 1, 0, 0, 0, 0, 'demo', 'mine'"
        insert = f"INSERT INTO listening_log ({columns}, {rest}, model, profile) VALUES ({values})"
        connection.execute(text(insert))
    found = database.find(engine, "late")
    engine.dispose()
    assert found is not None
    assert found.effect_bits is None


def test_tables_of_another_version_are_refused(url: str) -> None:
    with log_at(url) as log:
        assert log._engine is not None
        with log._engine.begin() as connection:
            connection.execute(text("UPDATE listening_log_version SET version = 99"))
    with pytest.raises(SettingsError, match="version 99, and this allears knows version 2"):
        database_log(Settings(listening_log_url=SecretStr(url)), lost.append).open()


def test_tables_are_made_by_several_at_once(url: str) -> None:
    logs = [database_log(Settings(listening_log_url=SecretStr(url)), lost.append) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(DatabaseLog.open, logs))
    wait_until(lambda: not any(log.unavailable for log in logs))
    for i, log in enumerate(logs):
        log.add(record(f"r{i}"))
        log.close()
    with log_at(url) as log:
        assert rows_of(log) == 4
    assert not lost


def test_a_record_that_no_database_takes_does_not_hold_up_the_others(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with log_at(url) as log:
        log.add(record("a", verdict=None))
        wait_until(lambda: not log.waiting)
        log.add(record("b"))
        wait_until(lambda: rows_of(log) == 1)
        assert not log.unavailable
    assert lost == [1]
    assert "refused" in caplog.text


# ---- what stops a start


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://u:s3cret@host/x", "neither SQLite nor PostgreSQL"),
        ("s3cret", "not a database's URL"),
        ("sqlite://", "no file is named"),
        ("sqlite:///:memory:", "no file is named"),
        ("postgresql+psycopg2://u:s3cret@host/x", "neither SQLite nor PostgreSQL"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.settings import read_settings

    with pytest.raises(SettingsError) as caught:
        read_settings({}, {"listening_log_url": url})
    message = str(caught.value)
    assert reason in message
    assert "ALLEARS_LISTENING_LOG_URL (--listening-log-url)" in message
    assert "`sqlite:///FILE`" in message
    assert "s3cret" not in message.replace("is 's3cret'", "")  # a bare word is no URL


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@host/x",
        "postgresql://me:s3@cret@host/x",
        "postgresql://me:s3/cret@host/x",
        "postgresql://host/x?user=me&password=s3cret&sslmode=require",
    ],
)
def test_passwords_are_masked(url: str) -> None:
    from server.settings import masked

    assert not re.search("s3|cret", masked(url))
    assert "host/x" in masked(url)
    assert "hush" not in repr(Settings(listening_log_url=SecretStr("postgresql://a:hush@b/c")))


def wrong_start(url: str) -> str:
    with pytest.raises(SettingsError) as caught:
        database_log(Settings(listening_log_url=SecretStr(url)), lost.append).open()
    message = str(caught.value)
    assert "ALLEARS_LISTENING_LOG_URL" in message
    assert "Allowed: `sqlite:///FILE`" in message
    assert "\n" not in message
    return message


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "log.sqlite"
    file.write_bytes(b"no database at all" * 100)
    assert "not a database" in wrong_start(f"sqlite:///{file}")
    assert file.read_bytes() == b"no database at all" * 100


def test_a_damaged_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "log.sqlite"
    with log_at(f"sqlite:///{file}") as log:
        for i in range(300):
            log.add(record(f"r{i}"))
    whole = bytearray(file.read_bytes())
    for page in range(2, len(whole) // 4096):
        whole[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    file.write_bytes(whole)
    assert re.search("damaged|malformed", wrong_start(f"sqlite:///{file}"))


def test_a_file_that_can_t_be_written_stops_the_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.sqlite'}"
    with log_at(url) as log:
        log.add(record("a"))
    read_only = url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    assert "readonly" in wrong_start(read_only)
    assert "unable to open" in wrong_start(f"sqlite:///{tmp_path / 'missing' / 'log.sqlite'}")


@SYSTEM
def test_a_postgresql_that_refuses_stops_the_start(postgres: Any) -> None:
    assert "password authentication failed" in wrong_start(
        postgres.url("postgres").replace("s3cret", "s3cre7")
    )
    message = wrong_start(postgres.url("nowhere"))
    assert '"nowhere" does not exist' in message
    assert 'invalid connection option "oops"' in wrong_start(postgres.url("postgres?oops=1"))
    assert "s3cret" not in message


def test_without_a_url_the_file_is_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    log = database_log(Settings(), lost.append)
    assert not list(tmp_path.iterdir())
    log.open()
    log.close()
    assert (tmp_path / "allears" / "listening.sqlite").exists()


# ---- a database that is away


@SYSTEM
def test_records_wait_for_a_postgresql_that_is_away(
    postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "allears")
    with log_at(postgres.new_database()) as log:
        log.add(record("before"))
        wait_until(lambda: not log.waiting)
        postgres.stop()
        try:
            for i in range(20):
                log.add(record(f"r{i}"))
                time.sleep(0.02)
            wait_until(lambda: log.unavailable)
            assert log.waiting == 20
            with pytest.raises(LogUnavailable):
                log.recent("demo", "mine")
        finally:
            postgres.start()
        wait_until(lambda: not log.unavailable and not log.waiting)
        assert [r.id for r in log.recent("demo", "mine")] == [
            "before",
            *(f"r{i}" for i in range(20)),
        ]
    assert not lost
    assert sum("is away" in line.message for line in caplog.records) == 1
    assert sum("back after" in line.message for line in caplog.records) == 1
    assert "s3cret" not in caplog.text


def test_what_does_not_fit_the_buffer_is_counted(tmp_path: Path) -> None:
    """The file is locked by somebody else, which is the way SQLite is away."""
    file = tmp_path / "log.sqlite"
    with log_at(f"sqlite:///{file}", listening_log_buffer_rows=5) as log:
        other = sqlite3.connect(file)
        other.execute("BEGIN IMMEDIATE")
        for i in range(12):
            log.add(record(f"r{i}"))
        assert log.waiting == 5
        assert sum(lost) == 7
        wait_until(lambda: log.unavailable)
        other.rollback()
        other.close()
        wait_until(lambda: not log.waiting)
        assert [r.id for r in log.recent("demo", "mine")] == [f"r{i}" for i in range(7, 12)]
    assert sum(lost) == 7


@SYSTEM
def test_a_start_does_not_need_the_database(
    postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.new_database()
    postgres.stop()
    try:
        log = database_log(Settings(listening_log_url=SecretStr(url)), lost.append)
        log.open()
        assert log.unavailable
        log.add(record("a"))
    finally:
        postgres.start()
    wait_until(lambda: not log.unavailable and not log.waiting)
    assert log.find("a").id == "a"
    log.close()
    assert not lost
    assert "is away" in caplog.text


@SYSTEM
def test_a_postgresql_that_hangs_holds_up_nobody(
    postgres: Any, start: Any, audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_SECONDS", 0.5)
    monkeypatch.setattr(writer, "_STUCK_SECONDS", 1.0)
    url = postgres.new_database()
    body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
    with start(listening_log_url=url) as server:
        server.chat(**body)
        server.wait_until(lambda: server.metric("allears_listening_log_waiting") == 0)
        with postgres.frozen():
            ids = [server.chat(**body).json()["id"] for _ in range(3)]
            began = time.monotonic()
            summary = server.get("/listening-score").json()
            assert time.monotonic() - began < 3
            assert (summary["log"], summary["count"]) == ("away", 4)
            own = server.get("/listening-score", params={"request_id": ids[0]})
            assert own.status_code == 200
            server.wait_until(lambda: server.metric("allears_listening_log_up") == 0)
        server.wait_until(lambda: server.metric("allears_listening_log_waiting") == 0)
        server.wait_until(lambda: server.get("/listening-score").json()["log"] == "database")
        assert server.get("/listening-score").json()["count"] == 4


@SYSTEM
def test_the_end_does_not_wait_for_a_postgresql_that_hangs(
    postgres: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "_CLOSE_SECONDS", 0.5)
    url = postgres.new_database()
    with log_at(url) as log:
        log.add(record("a"))
        wait_until(lambda: not log.waiting)
        with postgres.frozen():
            log.add(record("b"))
            began = time.monotonic()
            log.close()
            assert time.monotonic() - began < 2
            assert lost == [1]
            assert "1 records are lost" in caplog.text
        assert log._thread is not None
        log._thread.join(10)


# ---- servers


def ask(http: httpx.Client, sound: bytes) -> dict[str, Any]:
    files, data = [("audio", ("x.wav", sound))], {"question": QUESTION, "max_tokens": "2"}
    response = http.post("/v1/audio-chat", files=files, data=data)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_an_answer_s_numbers_are_in_its_record(start: Any, audio: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.sqlite'}"
    body = {"audio": audio, "question": "a secret", "max_tokens": 2, "steer": True}
    with start(listening_log_url=url) as server:
        answer = server.chat(**body, include=["unsteered", "silence"]).json()
        one = server.get("/listening-score", params={"request_id": answer["id"]}).json()
        summary = server.get("/listening-score").json()
        assert server.metric("allears_listening_log_up") == 1
    assert summary["log"] == "database"
    assert summary["count"] == 1
    assert one["model"] == "tiny"
    assert one["profile"] == "tiny-profile"
    assert one["answer_changed"] == answer["steering"]["answer_changed"]
    for name in ("silence_score", "effect_bits"):
        assert one[name] == pytest.approx(answer["listening"][name], abs=1e-6)
    assert one["prefill_seconds"] == pytest.approx(answer["timings"]["prefill_seconds"], abs=1e-6)
    assert one["decode_seconds"] == pytest.approx(answer["timings"]["decode_seconds"], abs=1e-6)
    assert abs(one["answered"] - time.time()) < 60
    with start(listening_log_url=url) as server:
        again = server.get("/listening-score", params={"request_id": answer["id"]}).json()
        assert again == one
        assert server.get("/listening-score").json() == summary
    assert b"secret" not in (tmp_path / "log.sqlite").read_bytes()


@SYSTEM
def test_replicas_answer_through_an_outage(start: Any, audio: Any, postgres: Any) -> None:
    url = postgres.new_database()
    body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
    with start(listening_log_url=url) as one, start(listening_log_url=url) as other:
        ids = [one.chat(**body).json()["id"], other.chat(**body).json()["id"]]
        one.wait_until(lambda: other.get("/listening-score").json()["count"] == 2)
        postgres.stop()
        try:
            for server in (one, other) * 3:
                response = server.chat(**body)
                assert response.status_code == 200
                ids.append(response.json()["id"])
            one.wait_until(lambda: one.get("/listening-score").json()["log"] == "away")
            summary = one.get("/listening-score").json()
            assert summary["count"] == 4
            assert summary["last"]["id"] == ids[-2]
            one.wait_until(lambda: one.metric("allears_listening_log_up") == 0)
            assert one.metric("allears_listening_log_waiting") == 3
            own = one.get("/listening-score", params={"request_id": ids[-2]})
            assert own.status_code == 200
            others = one.get("/listening-score", params={"request_id": ids[-1]})
            assert others.status_code == 503
            assert others.json()["error"]["code"] == "listening_log_away"
            assert int(others.headers["retry-after"]) > 0
        finally:
            postgres.start()
        waiting = "allears_listening_log_waiting"
        one.wait_until(lambda: one.metric(waiting) == other.metric(waiting) == 0)
        for server in (one, other):
            summary_after = server.get("/listening-score").json()
            assert (summary_after["count"], summary_after["log"]) == (8, "database")
            assert server.metric("allears_listening_log_up") == 1
            assert server.metric("allears_listening_log_lost_total") == 0
            for name in ids:
                one_record = server.get("/listening-score", params={"request_id": name})
                assert one_record.status_code == 200


@pytest.mark.slow
@SYSTEM
def test_no_answer_is_lost_while_postgresql_is_stopped_and_started(
    start: Any, audio: Any, postgres: Any
) -> None:
    url = postgres.new_database()
    body = {"audio": audio, "question": QUESTION, "max_tokens": 1}
    answered: list[str] = []
    ended = threading.Event()

    def ask_on(server: Any) -> None:
        while not ended.is_set():
            response = server.chat(**body)
            assert response.status_code == 200, response.text
            answered.append(response.json()["id"])

    with (
        start(listening_log_url=url) as one,
        start(listening_log_url=url) as other,
        ThreadPoolExecutor(4) as pool,
    ):
        running = [pool.submit(ask_on, server) for server in (one, other) * 2]
        try:
            time.sleep(0.5)
            postgres.stop()
            one.wait_until(lambda: one.metric("allears_listening_log_up") == 0)
            before = len(answered)
            one.wait_until(lambda: len(answered) > before + 20)
            assert one.metric("allears_listening_log_waiting") > 0
        finally:
            postgres.start()
            time.sleep(0.5)
            ended.set()
        for work in running:
            work.result(20)
        waiting = "allears_listening_log_waiting"
        one.wait_until(lambda: one.metric(waiting) == other.metric(waiting) == 0)
        lost_total = "allears_listening_log_lost_total"
        assert one.metric(lost_total) == other.metric(lost_total) == 0
    with log_at(url) as log:
        assert {r.id for r in log.recent("tiny", "tiny-profile")} == set(answered[-1000:])
        assert rows_of(log) == len(answered) > 40


@pytest.mark.slow
def test_a_killed_server_leaves_a_whole_database(
    serve_process: Callable[..., Any],
    checkpoint_folder: Path,
    profile_folder: Path,
    tmp_path: Path,
    sound: bytes,
) -> None:
    file = tmp_path / "log.sqlite"
    options = ["--listening-log-url", f"sqlite:///{file}"]
    answered: list[tuple[float, str]] = []

    def ask_on(url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as http, suppress(httpx.TransportError):
            while True:  # until it is killed
                answer = ask(http, sound)
                answered.append((time.monotonic(), answer["id"]))

    with (
        serve_process(checkpoint_folder, profile_folder, tmp_path / "a", *options) as (one, url),
        ThreadPoolExecutor(4) as pool,
    ):
        running = [pool.submit(ask_on, url) for _ in range(4)]
        wait_until(lambda: len(answered) >= 40 and answered[-1][0] - answered[0][0] > 3, 60)
        killed_at = time.monotonic()
        one.send_signal(signal.SIGKILL)
        for work in running:
            work.result(60)
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sum(at < killed_at - 1 for at, _ in answered) > 10
    with (
        serve_process(checkpoint_folder, profile_folder, tmp_path / "b", *options) as (_, url),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        for at, name in answered:
            if at < killed_at - 1:
                response = http.get("/listening-score", params={"request_id": name})
                assert response.status_code == 200, f"{name}, {killed_at - at:.2f} s before"
        assert http.get("/listening-score").json()["count"] > 10
        assert "\nallears_listening_log_lost_total 0.0\n" in http.get("/metrics").text


def test_a_server_that_can_t_have_its_log_ends_with_2(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from server import cli

    file = tmp_path / "log.sqlite"
    file.write_bytes(b"x" * 5000)
    words = ["serve", "--port", "0", "--listening-log-url", f"sqlite:///{file}"]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 2
    assert "not a database" in result.stderr
