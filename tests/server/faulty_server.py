"""`allears` with a fault that SIGUSR1 sets free:

    python -m tests.server.faulty_server FAULT serve ...

The faults are real where a machine without a GPU can have them: a thread that is killed, an
allocation that fails. A lost device is the exception that torch raises for one, at every step.
Steps take a while, so that answers are still being written when something happens to them.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from server import cli
from server.engine import engine
from server.engine.answering import answer_question
from steering.kv_slots import KVSlots

STEP_SECONDS = 0.01
MORE_THAN_THERE_IS = 1 << 46  # bytes
LARGE_TOKENS = 100  # prompts from here on ask for them


def kill_thread() -> None:
    """Raise SystemExit in the thread that runs the model, wherever it is."""
    (thread,) = (t for t in threading.enumerate() if t.name == "torch")
    raised = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(*raised) == 1


def exhaust_memory() -> None:
    """Have large prompts allocate, in the thread that runs the model, more than there is."""

    def greedy(runtime: Any, question: Any, prompt: Any) -> Iterator[Any]:
        if len(prompt.tokens) >= LARGE_TOKENS:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        yield from answer_question(runtime, question, prompt)

    setattr(engine, "answer_question", greedy)  # noqa: B010


def lose_device() -> None:
    """Have every decode step say what it says after a failed assert on the device."""

    def lost(slots: KVSlots) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    setattr(KVSlots, "step", lost)  # noqa: B010


def no_fault() -> None:
    """Nothing."""


def slow_down() -> None:
    """Have every decode step take a while."""
    step = KVSlots.step

    def slow(slots: KVSlots) -> Tensor:
        time.sleep(STEP_SECONDS)
        return step(slots)

    setattr(KVSlots, "step", slow)  # noqa: B010


FAULTS = (kill_thread, exhaust_memory, lose_device, no_fault)

if __name__ == "__main__":
    slow_down()
    fault = {f.__name__: f for f in FAULTS}[sys.argv.pop(1)]
    signal.signal(signal.SIGUSR1, lambda *_: fault())
    cli.app()
