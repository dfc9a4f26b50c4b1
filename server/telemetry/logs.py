"""Log lines on stderr: those of requests are JSON, the others for people or JSON as well.

What users write is logged only where `ALLEARS_LOG_TEXT` says so, and never breaks a line: JSON
writes a control character as an escape.
"""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

log = logging.getLogger("allears")
_LOUD = ("transformers", "huggingface_hub")  # they bring log handlers of their own


class _CurrentStderr:
    """`sys.stderr` as it is when a line is written.

    Test runners put a stream of their own in its place and close it later, while the handlers and
    threads that log live on.
    """

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def set_up(form: Literal["plain", "json"]) -> None:
    """Write lines to stderr: our own from info on, of all others from warnings on."""
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
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def _stderr(formatter: logging.Formatter) -> logging.StreamHandler[Any]:
    lines = logging.StreamHandler(_CurrentStderr())
    lines.setFormatter(formatter)
    return lines


def _on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends", exc_info=(kind, error, trace))


def _on_thread_crash(crash: threading.ExceptHookArgs) -> None:
    name = crash.thread.name if crash.thread else "?"
    log.critical("thread %s ends", name, exc_info=crash.exc_value)
