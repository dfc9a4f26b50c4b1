"""Waiting, being refused, hanging up, draining."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest
from pydantic import SecretStr

from server.api.middleware import cancel_on_disconnect as middleware
from server.app import make_deployment
from server.engine.runtime import Runtime
from server.errors import RequestTimeout
from server.settings import NO_LOG, Settings

QUESTION = "What is this?"


@pytest.fixture
def ask(audio: dict[str, str]) -> dict[str, Any]:
    return {"audio": audio, "question": QUESTION, "max_tokens": 8}


def begin(server: Any, ask: dict[str, Any]) -> Any:
    return server.begin("POST", "/v1/audio-chat", json=ask)


def test_a_full_queue_is_429_and_a_long_wait_503(start: Any, gate: Any, ask: Any) -> None:
    with start(queue_limit_requests=1, queue_timeout_seconds=2) as server:
        gate.close()
        running = begin(server, ask)
        server.wait_until(lambda: gate.held == 1)
        waiting = begin(server, ask)
        server.wait_until(lambda: server.deployment.engine.waiting == 1)
        assert server.metric("allears_queue_depth") == 1
        assert server.metric("allears_batch_rows") == 1
        full = server.chat(**ask)
        assert full.status_code == 429
        assert full.json()["error"]["code"] == "queue_full"
        assert int(full.headers["retry-after"]) > 0
        late = waiting.result(30)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "queue_timeout"
        assert int(late.headers["retry-after"]) > 0
        gate.open()
        assert running.result(30).status_code == 200
        assert server.chat(**ask).status_code == 200


def test_many_at_once_get_the_answers_they_get_alone(server: Any, ask: Any) -> None:
    questions = [{**ask, "question": f"What is this, number {i}?"} for i in range(8)]
    alone = [server.chat(**question).json() for question in questions]
    together = [
        work.result(60).json() for work in [begin(server, question) for question in questions]
    ]
    assert [body["answer"] for body in together] == [body["answer"] for body in alone]
    assert max(body["timings"]["queue_seconds"] for body in together) > 0


class Caller:
    """A client over bare ASGI, that hangs up when told to; without `ask` it sends no body."""

    def __init__(self, server: Any, ask: dict[str, Any] | None) -> None:
        self.messages: list[Any] = []
        self._gone = asyncio.Event()
        self._body = None if ask is None else json.dumps(ask).encode()
        self._server = server
        self.done = server.run(self._call())

    def hang_up(self) -> None:
        self._server.loop.call_soon_threadsafe(self._gone.set)

    async def _call(self) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/audio-chat",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"1")],
            "query_string": b"",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        await self._server.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_engine(start: Any, gate: Any, ask: Any, stream: bool) -> None:
    with start() as server:
        gate.close()
        caller = Caller(server, {**ask, "stream": stream, "max_tokens": 1000})
        server.wait_until(lambda: gate.held == 1)
        queued = Caller(server, ask)
        server.wait_until(lambda: server.deployment.engine.waiting == 1)
        queued.hang_up()
        queued.done.result(30)
        assert server.deployment.engine.waiting == 0
        caller.hang_up()
        caller.done.result(30)
        assert server.metric("allears_batch_rows") == 1, "its step has not ended yet"
        gate.open()
        server.wait_until(lambda: server.metric("allears_batch_rows") == 0)
        assert gate.pieces <= 1, "the work went on for a client that was gone"
        assert server.deployment.in_flight == 0
        assert server.chat(**ask).status_code == 200
        gone = server.metric("allears_requests_total", route="/v1/audio-chat", status="499")
        assert gone == (1 if stream else 2)
    assert bool(caller.messages) == stream


def test_who_hangs_up_far_back_in_the_queue_leaves_it(start: Any, ask: Any) -> None:
    with start(queue_limit_requests=50) as server:
        engine = server.deployment.engine
        rows = engine.runtime.slots.rows
        running = [Caller(server, {**ask, "max_tokens": 1000}) for _ in range(rows)]
        server.wait_until(lambda: engine.running == rows)
        first = begin(server, ask)
        server.wait_until(lambda: engine.waiting == 1)
        behind = [Caller(server, ask) for _ in range(20)]
        server.wait_until(lambda: len(engine._ready) == 21)
        for caller in behind:
            caller.hang_up()
            caller.done.result(30)
        server.wait_until(lambda: len(engine._ready) == 1)
        assert engine.running == rows and not first.done(), "the first in the queue waits still"
        for caller in running:
            caller.hang_up()
        assert first.result(60).status_code == 200


def test_draining_lets_requests_end_and_takes_no_more(start: Any, gate: Any, ask: Any) -> None:
    with start() as server:
        gate.close()
        running = begin(server, ask)
        server.wait_until(lambda: gate.held == 1)
        queued = begin(server, ask)
        server.wait_until(lambda: server.deployment.engine.waiting == 1)
        drained = server.run(server.deployment.drain(10))
        server.wait_until(lambda: server.deployment.state == "draining")
        for refused in (server.get("/readyz"), server.chat(**ask)):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert int(refused.headers["retry-after"]) > 0
        assert server.get("/livez").status_code == 200
        assert not drained.done()
        gate.open()
        assert running.result(30).status_code == queued.result(30).status_code == 200
        assert drained.result(30) is True


def test_draining_has_an_end(start: Any, gate: Any, ask: Any) -> None:
    with start(drain_seconds=0.05) as server:
        gate.close()
        running = begin(server, ask)
        server.wait_until(lambda: gate.held == 1)
        assert server.run(server.deployment.drain(0.05)).result(5) is False
        gate.open()
        assert running.result(30).status_code == 200


# ---- time limits


def test_who_takes_too_long_frees_the_row_within_a_step(
    start: Any, tiny_model: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime.of(tiny_model, None, rows=1)
    step = runtime.slots.step

    def slow() -> None:
        time.sleep(0.02)
        step()

    own = {"heard_by": runtime, "profile": "none", "request_timeout_seconds": 2.0}
    with start(**own) as server:
        monkeypatch.setattr(runtime.slots, "step", slow)
        long = {**ask, "max_tokens": 1000}
        begun = time.monotonic()
        late, streamed = begin(server, long), begin(server, {**long, "stream": True})
        responses = [late.result(30), streamed.result(30)]
        assert time.monotonic() - begun < 12, "1000 steps take 20 s"
        server.wait_until(lambda: not runtime.slots.active and server.deployment.in_flight == 0)
        codes = []
        for response in responses:  # which of them got the row is open
            if response.headers["content-type"].startswith("text/event-stream"):
                last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
                codes.append(last["error"]["code"])
            else:
                assert response.status_code == 504
                codes.append(response.json()["error"]["code"])
        assert codes == ["timeout", "timeout"]
        assert server.metric("allears_errors_total", code="timeout") == 2
        assert server.chat(**{**ask, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("longer", "fetch_seconds"),
    [({"decode_timeout_seconds": 0.3}, 0.0), ({"queue_timeout_seconds": 0.3}, 0.0), ({}, 0.3)],
    ids=["decoding", "waiting for a decoder", "fetching"],
)
def test_the_last_limit_spares_who_keeps_to_those_of_the_steps(
    monkeypatch: pytest.MonkeyPatch, longer: dict[str, float], fetch_seconds: float
) -> None:
    monkeypatch.setattr(middleware, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(middleware, "FETCH_SECONDS", fetch_seconds)
    names = ("body", "request", "queue", "decode")
    brief: dict[str, Any] = {f"{name}_timeout_seconds": 0.001 for name in names}
    settings = Settings(listening_log_url=SecretStr(NO_LOG), max_audio_clips=1, **brief | longer)

    def ask(seconds: float) -> None:
        async def app(*connection: Any) -> None:
            await asyncio.sleep(seconds)

        async def nothing(*message: Any) -> Any:
            raise AssertionError(message)

        async def call() -> None:
            limited = middleware.cancel_on_disconnect(app, make_deployment(settings))
            await limited({"type": "http"}, nothing, nothing)

        asyncio.run(call())

    ask(0.2)
    with pytest.raises(RequestTimeout):
        ask(60.0)


def test_a_body_that_does_not_come_is_408(start: Any) -> None:
    with start(body_timeout_seconds=0.2) as server:
        caller = Caller(server, None)
        caller.done.result(30)
        assert caller.messages[0]["status"] == 408
        headers = dict(caller.messages[0]["headers"])
        assert headers[b"connection"] == b"close" and int(headers[b"retry-after"]) > 0
        assert server.deployment.in_flight == 0


def test_retry_after_of_a_full_queue_is_what_the_last_answers_took(
    start: Any, gate: Any, ask: Any
) -> None:
    with start(queue_limit_requests=2, max_batch_rows=1) as server:
        engine = server.deployment.engine
        rows = engine.runtime.slots.rows
        gate.close()
        begin(server, ask)
        server.wait_until(lambda: gate.held == 1)
        waiting = [begin(server, ask) for _ in range(2)]
        server.wait_until(lambda: engine.waiting == 2)
        retry_after = []
        for seconds in (0.01, 9.6 * rows, 1e6):
            engine._recent_seconds.clear()
            engine._recent_seconds.append(seconds)
            retry_after.append(int(server.chat(**ask).headers["retry-after"]))
        gate.open()
        assert retry_after == [1, 20, 60]
        assert [work.result(30).status_code for work in waiting] == [200, 200]


# ---- who leaves at any moment


def test_two_hundred_that_hang_up_at_any_moment_leave_nothing_behind(start: Any, ask: Any) -> None:
    chance = random.Random(7)
    with start(queue_limit_requests=500) as server:
        engine, loop = server.deployment.engine, server.loop
        assert server.chat(**ask).status_code == 200  # the process that decodes has started
        before = asyncio.all_tasks(loop)
        long = {**ask, "max_tokens": 300}
        for _ in range(20):
            callers = [Caller(server, {**long, "stream": chance.random() < 0.5}) for _ in range(10)]
            for caller in callers:
                time.sleep(chance.random() * 0.02)
                caller.hang_up()
            for caller in callers:
                caller.done.result(60)
        server.wait_until(lambda: engine.running == engine.waiting == 0)
        server.wait_until(lambda: not engine.runtime.slots.active)
        server.wait_until(lambda: asyncio.all_tasks(loop) <= before)
        server.wait_until(lambda: not engine._ready)  # of the torch thread, which need not be first
        assert server.deployment.in_flight == 0
        assert server.chat(**ask).status_code == 200
