"""Metrics for Prometheus: counters and histograms of one app, in a registry of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.audio.decode_pool import RESULTS
from server.engine.engine import Engine
from server.engine.messages import Answer
from server.engine.runtime import FEATURES
from server.listening_log.drift import drift, expected_not_listening
from server.listening_log.records import ListeningLog, Record
from server.listening_log.writer import DatabaseLog
from server.telemetry.device_memory import device_bytes
from server.telemetry.merged_metrics import Samples, text
from steering.decision import FELT_BITS
from steering.words.word import Word

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SCORES = tuple(round(0.05 * i, 2) for i in range(1, 21))
_BITS = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
_STRENGTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """One app's metrics. Labels are bounded: templates of routes, codes, never users' own words."""

    collected: CollectorRegistry
    requests: Counter
    key_requests: Counter
    request_seconds: Histogram
    first_token_seconds: Histogram
    tokens: Counter
    audio_seconds: Counter
    listening_score: Histogram
    effect_bits: Histogram
    answer_effect_bits: Histogram
    words: Counter
    steering_strength: Histogram
    steered: Counter
    not_listening: Counter
    silence_cache: Counter
    errors: Counter
    replicas_ready: Gauge
    replicas_wanted: Gauge
    log_lost: Counter
    decodes: Counter


def make_metrics() -> Metrics:
    """Fresh metrics, all zero."""
    own = CollectorRegistry()
    metrics = Metrics(
        collected=own,
        requests=Counter(
            "allears_requests", "Requests by route and status", ["route", "status"], registry=own
        ),
        key_requests=Counter(
            "allears_key_requests",
            "Requests by the name of their key, `none` without one, and status",
            ["key", "status"],
            registry=own,
        ),
        request_seconds=Histogram(
            "allears_request_seconds",
            "From a request's first byte to its answer's last",
            ["route"],
            registry=own,
            buckets=_SECONDS,
        ),
        first_token_seconds=Histogram(
            "allears_time_to_first_token_seconds",
            "From the queue to the first piece of an answer",
            registry=own,
            buckets=_SECONDS,
        ),
        tokens=Counter(
            "allears_tokens",
            "Tokens: prompt, audio (part of prompt), completion",
            ["kind"],
            registry=own,
        ),
        audio_seconds=Counter("allears_audio_seconds", "Audio heard", registry=own),
        listening_score=Histogram(
            "allears_listening_score", "Listening scores", registry=own, buckets=_SCORES
        ),
        effect_bits=Histogram(
            "allears_effect_bits",
            "What the sound did to the bare answer, where a silent twin was run",
            registry=own,
            buckets=_BITS,
        ),
        answer_effect_bits=Histogram(
            "allears_answer_effect_bits",
            "Mean over an answer's words of what the sound did to each, where they were weighed",
            registry=own,
            buckets=_BITS,
        ),
        words=Counter(
            "allears_words",
            f"Words weighed: heard, or guessed, which the sound changed by under {FELT_BITS} bit",
            ["source"],
            registry=own,
        ),
        steering_strength=Histogram(
            "allears_steering_strength", "Strength of answers", registry=own, buckets=_STRENGTHS
        ),
        steered=Counter("allears_steered", "Steered answers", ["direction"], registry=own),
        not_listening=Counter(
            "allears_not_listening", "Requests whose verdict was not_listening", registry=own
        ),
        silence_cache=Counter(
            "allears_silence_cache", "Silent prefixes: hit or miss", ["result"], registry=own
        ),
        errors=Counter("allears_errors", "Errors by code", ["code"], registry=own),
        replicas_ready=Gauge(
            "allears_replicas_ready", "Replicas that answer, 0 without a front", registry=own
        ),
        replicas_wanted=Gauge(
            "allears_replicas_wanted", "Replicas there should be, 0 without a front", registry=own
        ),
        log_lost=Counter(
            "allears_listening_log_lost", "Records that never reached the database", registry=own
        ),
        decodes=Counter(
            "allears_decodes", "Clips decoded, by how it ended", ["result"], registry=own
        ),
    )
    for result in ("hit", "miss"):  # there from the start, so that the first one is an increase
        metrics.silence_cache.labels(result)
    metrics.errors.labels("out_of_memory")
    for source in ("heard", "guessed"):
        metrics.words.labels(source)
    for result in RESULTS:
        metrics.decodes.labels(result)
    return metrics


def add_engine_gauges(metrics: Metrics, engine: Engine, model_info: dict[str, str]) -> None:
    """Add the gauges that read an engine's state, and the labels of what it serves."""
    own = metrics.collected
    queue = Gauge("allears_queue_depth", "Requests that wait for their turn", registry=own)
    queue.set_function(lambda: engine.waiting)
    rows = Gauge("allears_batch_rows", "Requests the model works on", registry=own)
    rows.set_function(lambda: engine.running)
    held = Gauge("allears_silence_cache_bytes", "Bytes of kept silent prefixes", registry=own)
    held.set_function(lambda: engine.runtime.silence_cache.held_bytes)
    limit = Gauge("allears_queue_limit_requests", "Requests that may wait", registry=own)
    limit.set(engine.queue_limit_requests)
    off = Gauge(
        "allears_switched_off",
        "1: the feature was found wrong, and a slower, right way is taken",
        ["feature"],
        registry=own,
    )
    for feature in FEATURES:
        off.labels(feature).set_function(partial(_is_off, engine, feature))
    info = Gauge("allears_model_info", "What is served; always 1", list(model_info), registry=own)
    info.labels(**model_info).set(1)


def _is_off(engine: Engine, feature: str) -> float:
    """1 if a feature was switched off, else 0."""
    return float(feature in engine.runtime.switched_off)


def add_listening_gauges(metrics: Metrics, engine: Engine, records: ListeningLog) -> None:
    """Add the gauges for alerts: drift of the scores, calibrated share, the device's memory."""
    own, runtime = metrics.collected, engine.runtime
    index = Gauge(
        "allears_listening_drift_psi",
        "Population stability index of the last scores against the profile's; NaN if too few",
        registry=own,
    )
    index.set_function(lambda: drift(runtime.profile, records.of_this_process()))
    share = Gauge(
        "allears_not_listening_calibrated_fraction",
        "Share of the calibration set whose verdict is not_listening; NaN without a profile",
        registry=own,
    )
    share.set(expected_not_listening(runtime.profile))
    memory = Gauge(
        "allears_device_memory_bytes", "Memory of the model's device", ["kind"], registry=own
    )
    device = runtime.model.device
    memory.labels("used").set_function(lambda: device_bytes(device, "used"))
    memory.labels("total").set_function(lambda: device_bytes(device, "total"))


def add_log_gauges(metrics: Metrics, records: DatabaseLog) -> None:
    """Add the gauges of the listening log's database."""
    own = metrics.collected
    up = Gauge("allears_listening_log_up", "1: the database takes records; 0: away", registry=own)
    up.set_function(lambda: not records.unavailable)
    waiting = Gauge(
        "allears_listening_log_waiting", "Records that wait for the database", registry=own
    )
    waiting.set_function(lambda: records.waiting)


def count_answer(metrics: Metrics, answer: Answer, record: Record) -> None:
    """Count one answered question."""
    prompt, timings = answer.prompt, answer.timings
    metrics.tokens.labels("prompt").inc(len(prompt.tokens))
    metrics.tokens.labels("audio").inc(int(prompt.audio_mask.sum()))
    metrics.tokens.labels("completion").inc(answer.completion_tokens)
    metrics.audio_seconds.inc(record.audio_seconds)
    if record.score is not None:
        metrics.listening_score.observe(record.score)
    if record.effect_bits is not None:
        metrics.effect_bits.observe(record.effect_bits)
    _count_words(metrics, answer.listening.words)
    if record.verdict == "not_listening":
        metrics.not_listening.inc()
    if timings.silence_cache is not None:
        metrics.silence_cache.labels(timings.silence_cache).inc()
    if not record.generated:
        return
    metrics.first_token_seconds.observe(timings.queue_seconds + answer.first_token_seconds)
    if not prompt.clips:
        return
    metrics.steering_strength.observe(record.strength)
    if record.steered:
        metrics.steered.labels(record.direction).inc()


def _count_words(metrics: Metrics, words: Sequence[Word]) -> None:
    """Count the words of an answer, if they were weighed."""
    if not words:
        return
    bits = [word.effect_bits for word in words]
    metrics.answer_effect_bits.observe(sum(bits) / len(bits))
    guessed = sum(effect < FELT_BITS for effect in bits)
    metrics.words.labels("guessed").inc(guessed)
    metrics.words.labels("heard").inc(len(bits) - guessed)


def page(metrics: Metrics, others: Sequence[Samples] = ()) -> bytes:
    """All metrics in Prometheus' text format, with those of replicas added."""
    return text([samples(metrics), *others]) if others else generate_latest(metrics.collected)


def set_replicas(metrics: Metrics, ready: int, wanted: int) -> None:
    """Set the counts of a router's replicas."""
    metrics.replicas_ready.set(ready)
    metrics.replicas_wanted.set(wanted)


def samples(metrics: Metrics) -> Samples:
    """All metrics as they are now."""
    return list(metrics.collected.collect())
