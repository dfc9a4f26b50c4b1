"""The comparison with vLLM, against this server alone: real streams, and a file that goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from pydantic import SecretStr

from deploy.capacity import vllm_comparison
from deploy.capacity.compared_servers import MODEL_NAME, ComparedFiles, write_checkpoint
from deploy.capacity.streamed_load import (
    chat_body,
    clip_lengths,
    gaps_while_others_enter,
    load,
)
from deploy.capacity.vllm_comparison import ComparisonPlan, compare, read_records, report
from server.app import create_app
from server.bench.models import SCALED_DOWN
from server.settings import NO_LOG, Settings
from tests.server.conftest import Server

TOKENS, MOST_TOKENS = 12, 192
SIZE = replace(  # longer clips are cut
    SCALED_DOWN,
    decoder={**SCALED_DOWN.decoder, "num_hidden_layers": 2},
    tapped_heads=2,
    deepest_layer=1,
    clip_seconds=3.0,
)
PLAN = ComparisonPlan(("bare",), ("float32",), ("3", vllm_comparison.GAPS), (1, 2), 1, 1, TOKENS)
ORIGINS = {"bare": {"machine": "a machine", "versions": "some versions"}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the random checkpoint, small, steered by its hand-made profile."""
    files = ComparedFiles(tmp_path_factory.mktemp("build"))
    write_checkpoint(files, SIZE)
    settings = Settings(
        model=str(files.checkpoint), profile=str(files.profile), dtype="float32",
        listening_log_url=SecretStr(NO_LOG), max_tokens=MOST_TOKENS,
    )  # fmt: skip
    with Server(create_app(settings)).started() as server, server.on_a_port() as url:
        yield url


def bodies(count: int, tokens: int = TOKENS, *, steer: bool = False) -> list[bytes]:
    return [chat_body(MODEL_NAME, 1.0, i, tokens, steer=steer) for i in range(count)]


@pytest.mark.parametrize("steer", [False, True])
def test_times_are_of_real_streams(url: str, steer: bool) -> None:
    start = time.perf_counter()
    done = load(url, bodies(3, steer=steer), 2)
    took = time.perf_counter() - start
    assert 0 < done.seconds <= took
    assert {answer.tokens for answer in done.answers} == {TOKENS}
    for answer in done.answers:
        assert len(answer.pieces_at) == TOKENS  # every token is text, and comes by itself
        assert start < answer.sent_at < answer.pieces_at[0] < answer.pieces_at[-1] <= start + took
        assert list(answer.pieces_at) == sorted(answer.pieces_at)
    first, second, third = done.answers
    assert second.sent_at < first.pieces_at[-1]  # two at once
    assert third.sent_at > min(first.pieces_at[-1], second.pieces_at[-1])  # and no more


def test_a_refusal_and_an_answer_of_another_length_are_no_figures(url: str) -> None:
    with pytest.raises(RuntimeError, match="answered 404"):
        load(url, [chat_body("another", 1.0, 0, TOKENS, steer=False)], 1)
    point = next(PLAN.points("bare", "float32", 0))
    with pytest.raises(RuntimeError, match=r"of \[192\] tokens, not of 193"):
        vllm_comparison.measured(url, {**point, "tokens": MOST_TOKENS + 1, "requests": 1})


def test_gaps_are_those_while_others_enter(url: str) -> None:
    (row,) = bodies(1, MOST_TOKENS)
    gaps = gaps_while_others_enter(url, row, bodies(2, 1))
    assert 0 < gaps.usual < gaps.longest
    with pytest.raises(RuntimeError, match="ended before another prompt had entered"):
        gaps_while_others_enter(url, bodies(1, 1)[0], bodies(1))


def test_a_stopped_run_goes_on(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, starts = tmp_path / "results.jsonl", []
    monkeypatch.setattr(
        vllm_comparison, "_GAP_TOKENS", MOST_TOKENS // TOKENS
    )  # a small model's row ends at once

    @contextmanager
    def serving(system: str, dtype: str) -> Iterator[str]:
        starts.append((system, dtype))
        yield url

    compare(PLAN, ORIGINS, results, serving)
    one, two, gaps = read_records(results)
    assert [record["requests"] for record in (one, two)] == [3, 3]
    for record in (one, two):
        assert len(record["first_token_seconds"]) == record["requests"]
        longest = record["requests"] / record["requests_a_second"]
        assert 0 < max(record["first_token_seconds"]) < longest
    assert gaps["longest_gap"] > 0

    lines = results.read_text().splitlines(keepends=True)
    results.write_text(lines[0] + lines[2] + lines[1][:40])  # stopped while it wrote
    compare(PLAN, ORIGINS, results, serving)
    again = read_records(results)
    assert again[:2] == [one, gaps] and len(again) == 3
    assert again[2]["concurrency"] == 2 and again[2]["date"] >= two["date"]
    compare(PLAN, ORIGINS, results, serving)
    assert starts == [("bare", "float32")] * 2  # the third had nothing to do

    other = {"bare": ORIGINS["bare"] | {"versions": "newer ones"}}
    assert report(PLAN, other, again) == "nothing was measured"
    assert report(replace(PLAN, tokens=13), ORIGINS, again) == "nothing was measured"
    assert "| float32 | 3 s | " in report(replace(PLAN, rounds=0), ORIGINS, again)


def test_tables_are_medians_of_the_rounds() -> None:
    plan = replace(PLAN, systems=("vllm", "bare"), concurrency=(1,), rounds=3, clips=("3",))
    origins = {"vllm": ORIGINS["bare"], "bare": ORIGINS["bare"]}
    rates = {"vllm": (2.0, 8.0, 4.0), "bare": (3.0, 1.0, 90.0)}
    records = []
    for system, turn in product(plan.systems, range(3)):
        (point,) = plan.points(system, "float32", turn)
        first = [turn + 1.0, turn + 2.0]
        figures = {"requests_a_second": rates[system][turn], "first_token_seconds": first}
        records.append({**ORIGINS["bare"], **point, "date": f"day {turn}", **figures})
    text = report(plan, origins, json.loads(json.dumps(records)))
    assert "| float32 | 3 s | 4.000 | 3.000 | 0.75 |" in text
    assert "| float32 | 3 s | 2.50 / 2.95 | 2.50 / 2.95 |" in text
    assert "day 0 to day 2" in text and "| float32 | - / - | - / - |" in text


def test_clips_are_spread_and_none_is_sent_twice() -> None:
    lengths = clip_lengths("mixed", 16, 1)
    assert min(lengths) < 3 and max(lengths) > 28 and sum(lengths) == pytest.approx(16 * 15.5)
    assert lengths != clip_lengths("mixed", 16, 2) and clip_lengths("3", 2, 0) == [3.0, 3.0]
    plan = replace(PLAN, systems=("vllm", "bare", "steered"), clips=("3",), rounds=2)
    sent = {
        system: [
            body
            for turn in range(plan.rounds)
            for point in plan.points(system, "float32", turn)
            for body in vllm_comparison._bodies(point)
        ]
        for system in plan.systems
    }
    assert sent["vllm"] == sent["bare"] and len(set(sent["bare"])) == len(sent["bare"]) == 12
    steered = [json.loads(body) for body in sent["steered"]]
    assert all(body.pop("steer") for body in steered)
    assert steered == [json.loads(body) for body in sent["bare"]]
