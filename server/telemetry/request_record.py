"""The record of one request, from which its log line, metrics and trace are made.

It stands under one key of ASGI's scope["state"]; `request_record` is the only way to it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.access.api_keys import NOBODY

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from server.engine.messages import Answer, Question, Timings

_KEY = "request_record"
_MAX_CHARACTERS = 500  # of a question or an answer in a line
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Times of the steps before the engine, in ns since 1970."""

    decode_began: int  # of the audio
    decode_ended: int  # and the question went to the engine


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """A replica's part of a request's log line, metrics and trace, on its way to the router."""

    line_fields: Mapping[str, Any]
    text_fields: Mapping[str, str]  # empty unless ALLEARS_LOG_TEXT is on
    error_code: str | None
    stage_times: StageTimes | None
    timings: Timings | None
    began_at: float


@dataclass(slots=True, eq=False)
class RequestRecord:
    """All that is known of a request so far; routes and middleware fill it."""

    request_id: str = ""  # log_requests; of a replica, the router's
    span: Span | None = None  # log_requests, where there are traces
    key: str = NOBODY  # require_key: the name of the API key
    answer_id: str = ""  # open_question, as the next three; empty: none was begun
    question: Question | None = None
    stage_times: StageTimes | None = None
    answer: Answer | None = None
    error_code: str | None = None  # error_responses
    summary: RequestSummary | None = None  # of the replica that answered, on a router

    @property
    def timings(self) -> Timings | None:
        """The seconds that the steps of the answer took."""
        if self.summary is not None:
            return self.summary.timings
        return None if self.answer is None else self.answer.timings

    @property
    def began_at(self) -> float:
        """time.perf_counter() when the answer's prefill began; 0 without an answer."""
        if self.summary is not None:
            return self.summary.began_at
        return 0.0 if self.answer is None else self.answer.began_at

    def add_summary(self, summary: RequestSummary) -> None:
        """Take over a replica's summary."""
        self.summary, self.stage_times = summary, summary.stage_times
        self.error_code = summary.error_code or self.error_code

    def summarize(self, *, with_text: bool) -> RequestSummary:
        """The part of this record that a router needs."""
        return RequestSummary(
            line_fields=self.line_fields(),
            text_fields=self.text_fields() if with_text else {},
            error_code=self.error_code,
            stage_times=self.stage_times,
            timings=self.timings,
            began_at=self.began_at,
        )

    def release(self) -> None:
        """Forget question and answer: the record lives as long as its idle connection."""
        self.question = self.answer = None

    def line_fields(self) -> dict[str, Any]:
        """The fields of the log line about error and answer, without the user's text."""
        if self.summary is not None:
            return dict(self.summary.line_fields)
        known = {"error_code": self.error_code, "answer_id": self.answer_id}
        fields = {key: value for key, value in known.items() if value}
        return fields if self.answer is None else fields | _answer_fields(self.answer)

    def text_fields(self) -> dict[str, str]:
        """The last question and its answer, cut; for log lines with text."""
        if self.summary is not None:
            return dict(self.summary.text_fields)
        if self.question is None:
            return {}
        texts = [part for part in self.question.messages[-1].parts if isinstance(part, str)]
        fields = {"question": " ".join(texts)[:_MAX_CHARACTERS]}
        if self.answer is not None:
            fields["answer"] = self.answer.text[:_MAX_CHARACTERS]
        return fields


def request_record(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request of an ASGI scope; an empty one at first."""
    record: RequestRecord = scope.setdefault("state", {}).setdefault(_KEY, RequestRecord())
    return record


def _answer_fields(answer: Answer) -> dict[str, Any]:
    """Durations, score, strength and sizes of an answer."""
    listening, steering = answer.listening, answer.steering
    return {
        **answer.timings.rounded().seconds(),
        "score": _rounded(listening.score),
        "effect_bits": _rounded(listening.effect_bits),
        "verdict": listening.verdict,
        "strength": round(steering.strength, _DIGITS),
        "audio_seconds": round(sum(answer.prompt.heard_seconds), _DIGITS),
        "prompt_tokens": len(answer.prompt.tokens),
        "completion_tokens": answer.completion_tokens,
    }


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, _DIGITS)
