"""Log lines on stderr: those of requests are JSON, the others for people or JSON as well.

A request's line holds what it cost and how it was answered. What users say is in it only where
`ALLEARS_LOG_TEXT` says so, and never breaks a line: JSON writes a control character as an escape.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pythonjsonlogger.json import JsonFormatter

if TYPE_CHECKING:
    from server.engine.messages import Answer, Question

log = logging.getLogger("allears")
_LOUD = ("transformers", "huggingface_hub")  # they bring log handlers of their own
_MAX_CHARACTERS = 500
_DIGITS = 6


def set_up(form: Literal["plain", "json"]) -> None:
    """Lines on stderr: our own from info on, of all others from warnings on."""
    as_json = JsonFormatter(
        ["levelname", "name", "message"],
        timestamp="time",
        rename_fields={"levelname": "level", "name": "logger"},
    )
    everything = _stderr(as_json)
    if form == "plain":
        requests = logging.getLogger("allears.requests")
        requests.handlers = [_stderr(as_json)]
        everything = _stderr(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        everything.addFilter(lambda record: record.name != requests.name)
    logging.basicConfig(level=logging.WARNING, handlers=[everything])
    logging.getLogger("allears").setLevel(logging.INFO)
    if form == "json":
        logging.captureWarnings(True)
        sys.excepthook = _on_crash
        threading.excepthook = _on_thread_crash


def take_over() -> None:
    """Send the lines of libraries that have handlers of their own the way of all others.

    Where all lines are to be JSON, these libraries draw no progress bars.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    for name in _LOUD:
        loud = logging.getLogger(name)
        loud.handlers, loud.propagate = [], True
    if is_json():
        disable_progress_bar()
        disable_progress_bars()


def is_json() -> bool:
    """Whether every line on stderr is to be JSON."""
    handlers = logging.getLogger().handlers
    return any(isinstance(one.formatter, JsonFormatter) for one in handlers)


def request_fields(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the app left for a request's line; of a replica's app that came with the answer."""
    if "told" in state:
        return dict(state["told"])
    known = {key: state[key] for key in ("error_code", "answer_id") if key in state}
    return {**known, **(answer_fields(state["answer"]) if "answer" in state else {})}


def answer_fields(answer: Answer) -> dict[str, Any]:
    """What a request's line says of its answer: durations, score, strength, sizes."""
    listening, steering, timings = answer.listening, answer.steering, answer.timings
    return {
        "queue_seconds": round(timings.queue_seconds, _DIGITS),
        "prefill_seconds": round(timings.prefill_seconds, _DIGITS),
        "silence_seconds": round(timings.silence_seconds, _DIGITS),
        "decode_seconds": round(timings.decode_seconds, _DIGITS),
        "score": None if listening.score is None else round(listening.score, _DIGITS),
        "verdict": listening.verdict,
        "strength": round(steering.strength, _DIGITS),
        "audio_seconds": round(sum(answer.prompt.heard_seconds), _DIGITS),
        "prompt_tokens": len(answer.prompt.tokens),
        "completion_tokens": answer.completion_tokens,
    }


def text_fields(question: Question, answer: Answer | None) -> dict[str, str]:
    """The last question and its answer, cut; for those who switched it on."""
    texts = [part for part in question.messages[-1].parts if isinstance(part, str)]
    said = {"question": " ".join(texts)[:_MAX_CHARACTERS]}
    return said if answer is None else {**said, "answer": answer.text[:_MAX_CHARACTERS]}


def _stderr(formatter: logging.Formatter) -> logging.StreamHandler[Any]:
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(formatter)
    return lines


def _on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends", exc_info=(kind, error, trace))


def _on_thread_crash(crash: threading.ExceptHookArgs) -> None:
    found = crash.exc_value
    name = crash.thread.name if crash.thread else "?"
    log.critical("thread %s ends", name, exc_info=found)
