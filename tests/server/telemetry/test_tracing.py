"""Traces, as a collector on this machine gets them: real exporter, real HTTP, parsed protobuf."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from server.audio import url_fetch
from server.telemetry import tracing

QUESTION = "Who sings my secret?"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STEPS = ["audio decode", "queue", "prefill", "silence", "decode"]


class Collector:
    """What was sent to an OTLP endpoint."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {
                attribute.key: attribute.value.string_value
                for attribute in group.resource.attributes
            }
            self.services.add(named["service.name"])
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def requests(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def children(self, of: Span) -> list[Span]:
        child_spans = [span for span in self.spans if span.parent_span_id == of.span_id]
        return sorted(child_spans, key=lambda span: STEPS.index(span.name))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    trace_collector = Collector()

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            trace_collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with serving(Answering) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        yield trace_collector


@contextmanager
def serving(kind: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a small HTTP server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield http.server_port
        http.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {
        attribute.key: getattr(attribute.value, str(attribute.value.WhichOneof("value")))
        for attribute in span.attributes
    }


def test_a_request_is_a_span_with_one_for_each_step(
    start: Any, audio: Any, collector: Collector
) -> None:
    with start() as server:
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {"audio": audio, "question": QUESTION, "max_tokens": 4, "steer": True}
        before = time.time_ns()
        response = server.post("/v1/audio-chat", json=body, headers=parent)
        after = time.time_ns()
        server.get("/livez")
    answer = response.json()
    (span,) = collector.requests()
    assert collector.services == {"allears"}
    assert span.name == "POST /v1/audio-chat"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    said = attributes(span)
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == "/v1/audio-chat"
    assert said["http.response.status_code"] == 200
    assert said["allears.answer_id"] == answer["id"]
    assert said["allears.request_id"] == response.headers["x-request-id"]
    assert said["allears.verdict"] == answer["listening"]["verdict"]
    assert "secret" not in str(said)
    steps = collector.children(span)
    assert [step.name for step in steps] == STEPS
    assert before <= span.start_time_unix_nano and span.end_time_unix_nano <= after
    slack = 1_000_000  # ns: between two readings of two clocks
    at = span.start_time_unix_nano
    for step in steps:
        assert at <= step.start_time_unix_nano + slack
        assert step.start_time_unix_nano < step.end_time_unix_nano
        at = step.end_time_unix_nano
        assert step.trace_id == span.trace_id
    assert at <= span.end_time_unix_nano + slack
    for step in steps[1:]:
        seconds = (step.end_time_unix_nano - step.start_time_unix_nano) / 1e9
        late = (
            0.05 if step.name == "queue" else 2e-6
        )  # the event loop hears of the wait's end later
        assert seconds == pytest.approx(answer["timings"][f"{step.name}_seconds"], abs=late)


def test_a_bare_answer_has_no_silence_and_a_refusal_no_steps(
    start: Any, audio: Any, collector: Collector
) -> None:
    with start(api_keys="a-key") as server:
        key = {"authorization": "Bearer a-key"}
        body = {"audio": audio, "question": QUESTION, "max_tokens": 2, "stream": True}
        server.post("/v1/audio-chat", json=body, headers=key)
        server.post("/v1/audio-chat", json=body)
        server.post("/v1/audio-chat", json={**body, "max_tokens": 0}, headers=key)
    bare, keyless, wrong = collector.requests()
    assert [s.name for s in collector.children(bare)] == [s for s in STEPS if s != "silence"]
    assert attributes(bare)["allears.key"] == "key-1"
    assert collector.children(keyless) == collector.children(wrong) == []
    assert attributes(keyless)["error.type"] == "invalid_api_key"
    assert bare.trace_id != keyless.trace_id


def test_a_failure_is_marked(
    start: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start() as server:
        monkeypatch.setattr(type(server.deployment), "ready", lambda _: 1 / 0)
        assert server.get("/v1/models").status_code == 500
        monkeypatch.undo()
    (span,) = collector.requests()
    assert span.status.code == span.status.STATUS_CODE_ERROR


def test_who_was_not_sampled_stays_so(start: Any, collector: Collector) -> None:
    with start() as server:
        server.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        server.get("/v1/models", headers={"traceparent": "forged, 00-zz"})
    (span,) = collector.requests()
    assert span.trace_id.hex() != TRACE


def test_the_log_names_the_trace(
    start: Any, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "allears.requests")
    with start() as server:
        server.get("/v1/models")
    (line,) = [vars(r) for r in caplog.records if r.name == "allears.requests"]
    assert line["trace_id"] == collector.requests()[0].trace_id.hex()


def test_what_is_fetched_carries_the_trace(collector: Collector) -> None:
    traces = tracing.make_tracer(os.environ)
    assert traces is not None
    seen: list[str] = []

    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["traceparent"])
            self.send_response(200)
            self.send_header("content-length", "4")
            self.end_headers()
            self.wfile.write(b"RIFF")

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    span = traces.begin({"traceparent": f"00-{TRACE}-{PARENT}-01"})
    with serving(Host) as port:
        fetcher = url_fetch.UrlFetcher(
            frozenset({f"sounds.example:{port}"}),
            100,
            resolve=on_this_machine,
            allow=lambda _: True,
            headers=tracing.headers(span),
        )
        url = f"http://sounds.example:{port}/a.wav"
        assert asyncio.run(fetcher.fetch_all([url])) == {url: b"RIFF"}
    traces.close()
    assert seen == [f"00-{TRACE}-{span.get_span_context().span_id:016x}-01"]
    assert tracing.headers(None) == {}


async def on_this_machine(*_: object) -> list[str]:
    return ["127.0.0.1"]


@pytest.mark.slow
def test_a_collector_that_is_away_costs_nobody_anything(
    start: Any, monkeypatch: pytest.MonkeyPatch, audio: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with start() as server:
        for _ in range(3):
            answer = server.chat(audio=audio, question=QUESTION, max_tokens=1)
            assert answer.status_code == 200
        ending = time.monotonic()
    assert time.monotonic() - ending < 10
    for thread in threading.enumerate():
        if thread.name.startswith("Otel"):
            thread.join(20)  # it gives up by itself; its complaints belong to this test
            assert not thread.is_alive()


def test_off_without_an_endpoint_and_said_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert tracing.make_tracer({}) is None
    missing: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(tracing, "find_spec", missing)
    assert tracing.make_tracer(endpoint) is None
    assert "allears[otel]" in caplog.text
