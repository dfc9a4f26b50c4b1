"""Traces by OpenTelemetry, for those who installed `allears[otel]` and set its endpoint.

A request's span begins with it; those of its steps are made when it is over, from the times that
were taken anyway: the thread that runs torch knows nothing of traces. OpenTelemetry's variables
`OTEL_*` say where spans go, how many, and under which name; a thread of its own sends them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from server.telemetry.request_record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger("allears")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PARENT = ("traceparent", "tracestate")
_SECOND = 1_000_000_000  # ns
# Keys of a log line by OpenTelemetry's names.
_NAMES = {"method": "http.request.method", "route": "http.route"}
_NAMES |= {"status": "http.response.status_code", "error_code": "error.type"}


@dataclass(frozen=True, slots=True, eq=False)
class RequestTracer:
    """The spans of one app and their way to a collector."""

    provider: TracerProvider

    def begin(self, headers: Mapping[str, str]) -> Span:
        """The span of a request; a child of the client's, where the client sent a traceparent."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {name: headers[name] for name in _PARENT if name in headers}
        parent = TraceContextTextMapPropagator().extract(sent)
        return self.provider.get_tracer("allears").start_span(
            "request", context=parent, kind=SpanKind.SERVER
        )

    def end(self, span: Span, line: Mapping[str, Any], record: RequestRecord) -> str:
        """End a request's span, with a child for each step; the id of the trace."""
        from opentelemetry.trace import StatusCode, format_trace_id, set_span_in_context

        tracer, inside = self.provider.get_tracer("allears"), set_span_in_context(span)
        for name, began, ended in _steps(record):
            tracer.start_span(name, context=inside, start_time=began).end(ended)
        span.update_name(f"{line['method']} {line['route']}")
        for key, value in line.items():
            if value is not None:
                span.set_attribute(_NAMES.get(key, f"allears.{key}"), value)
        if line["status"] >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what is left; takes as long as the collector does."""
        self.provider.shutdown()


def make_tracer(environ: Mapping[str, str]) -> RequestTracer | None:
    """A tracer to the endpoint of OpenTelemetry's variables; None if they name none."""
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    if find_spec("opentelemetry.exporter") is None or find_spec("opentelemetry.sdk") is None:
        log.warning("no traces, though OTEL_EXPORTER_OTLP_ENDPOINT is set: install allears[otel]")
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "allears"}
    provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return RequestTracer(provider)


def headers(span: Span | None) -> Mapping[str, str]:
    """The headers that put a request of our own into the same trace."""
    carrier: dict[str, str] = {}
    if span is not None:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier


def _steps(record: RequestRecord) -> list[tuple[str, int, int]]:
    """Name, begin and end of each step that was taken; those after the wait follow one another.

    Of a clip that is heard in windows, a step is the sum over all of them.
    """
    stages, timings = record.stage_times, record.timings
    if stages is None:
        return []
    decoded = stages.decode_ended
    steps = [("audio decode", stages.decode_began, decoded)]
    if timings is None:
        return steps
    at = time.time_ns() - time.perf_counter_ns() + round(record.began_at * _SECOND)
    steps.append(("queue", decoded, max(at, decoded)))
    after_queue = list(timings.seconds().items())[1:]
    for name, seconds in after_queue:
        ended = at + round(seconds * _SECOND)
        if ended > at:
            steps.append((name.removesuffix("_seconds"), at, ended))
        at = ended
    return steps
