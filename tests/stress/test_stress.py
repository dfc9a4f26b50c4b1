"""A short `make torture`, and that its checks can fail."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import httpx
import pytest

from tests.stress import __main__ as stress
from tests.stress import database, process_signals, schema, soak
from tests.stress.hostile_clients import refusal_fault, unchunked
from tests.stress.outcome import Check, Outcome, at_least, at_most, none_of
from tests.stress.questions import AnswerContent, pool
from tests.stress.server_process import parse_metrics

pytestmark = pytest.mark.slow


def held(outcome: Outcome) -> None:
    assert outcome.held, stress.outcome_text(outcome)


def test_a_short_soak() -> None:
    """All kinds of clients at once; memory needs a longer run to be judged."""
    outcome = soak.run(150, seed=3, concurrent=16, max_seconds=60)
    grown = [check for check in outcome.checks if "memory at the end over" in check.says]
    checks = tuple(check for check in outcome.checks if check not in grown)
    held(Outcome("soak", outcome.seconds, outcome.seed, checks, outcome.failures))


def test_signals_under_load() -> None:
    held(process_signals.run(clients=6, kills=1, seed=3))


@pytest.mark.system
@pytest.mark.skipif(not database.programs(), reason="PostgreSQL is missing; .ci/run installs it")
def test_an_outage_of_the_database() -> None:
    held(database.run(requests=40, outages=1, seed=3))


def test_some_cases_of_the_document() -> None:
    held(schema.run(25, seed=3, examples=4, phases="fuzzing", max_seconds=300))


# ---- the checks can fail


def test_another_answer_is_seen() -> None:
    content = AnswerContent("dog", 0.5, 0.2, (0.9, 0.1))
    assert content.differs(AnswerContent("dog", 0.50005, 0.2, (0.9, 0.1))) == ""
    assert "text" in content.differs(AnswerContent("cat", 0.5, 0.2, (0.9, 0.1)))
    assert "score" in content.differs(AnswerContent("dog", 0.5002, 0.2, (0.9, 0.1)))
    assert "strength" in content.differs(AnswerContent("dog", 0.5, 0.3, (0.9, 0.1)))
    assert "probability" in content.differs(AnswerContent("dog", 0.5, 0.2, (0.8, 0.2)))


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    request = next(each for each in pool(0, 8) if each.streamed)
    piece = 'data: {"delta": "dog"}\n\n'
    with pytest.raises(ValueError, match="the stream ends with"):
        request.read(httpx.Response(200, text=piece))


def test_the_pool_is_the_same_for_a_seed() -> None:
    assert pool(5, 16) == pool(5, 16)
    assert pool(5, 16) != pool(6, 16)


def test_an_error_of_another_shape_is_seen() -> None:
    ours = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
    assert refusal_fault(401, json.dumps(ours).encode(), (401,)) == ""
    assert refusal_fault(401, b'{"detail": "no"}', (401,)) != ""
    assert refusal_fault(200, json.dumps(ours).encode(), (401,)) != ""
    assert refusal_fault(0, b"", (401,)) != ""


def test_half_written_files_are_seen(tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text("{}")
    with sqlite3.connect(tmp_path / "whole.db") as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    assert process_signals.half_written(tmp_path) == []
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "half.safetensors").write_bytes(b"\x10")
    (tmp_path / "half.db").write_bytes(b"SQLite format 3\0" + b"x" * 100)
    (tmp_path / "left.tmp").touch()
    damaged = process_signals.half_written(tmp_path)
    assert [line.split(":")[0] for line in damaged] == sorted(
        ["half.db", "half.json", "half.safetensors", "left.tmp"]
    )


def test_growth_is_seen() -> None:
    flat = [soak.Sample(i / 100, 100, 9, 0, 0) for i in range(101)]
    rising = [soak.Sample(i / 100, 100 + i, 9, 0, 0) for i in range(101)]
    assert soak._growth(flat) == 1
    assert soak._growth(rising) > 1.5


def test_a_5xx_is_counted_but_not_503() -> None:
    page = "\n".join(
        f'allears_requests_total{{route="/v1/audio-chat",status="{status}"}} {count}.0'
        for status, count in (("200", 9), ("503", 4), ("500", 2))
    )
    assert soak._status_5xx(dict(parse_metrics(page))) == 2


def test_bytes_in_chunks_are_put_together() -> None:
    assert unchunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == b"abcde"


def test_a_missed_bound_is_said() -> None:
    checks = (at_least("a", 1, 2), none_of("b", 0), at_most("c", 2.0, 1.0, " s"))
    outcome = Outcome("soak", 1.0, 1, checks)
    assert not outcome.held
    assert not Outcome("soak", 1.0, 1, (), ("a failure",)).held
    assert Outcome("soak", 1.0, 1, (Check("d", "1", ""),)).held
    assert stress.outcome_text(outcome).count("FAILED") == 2


def test_the_table_is_written_between_its_markers() -> None:
    text = stress._PAGE.read_text()
    assert text.count(stress._BEGIN) == text.count(stress._END) == 1
    assert text.index(stress._BEGIN) < text.index(stress._END)
