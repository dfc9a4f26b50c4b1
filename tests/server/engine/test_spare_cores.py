"""The engine computes with the cores that others leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from server.engine import spare_cores
from server.engine.spare_cores import SpareCores

BUSY = "while True: pass"


def watched(
    monkeypatch: pytest.MonkeyPatch, cores: int, own: float, *looks: list[float]
) -> list[int]:
    """Counts after seconds in which each core was taken for so long, `own` of them by us."""
    now, taken, used = [0.0], [0.0] * cores, [0.0]

    def times(percpu: bool) -> list[Any]:
        assert percpu
        names = ("user", "nice", "system", "idle", "iowait", "guest")
        idle = [now[0] - seconds for seconds in taken]
        return [
            Times((seconds / 2, 0.0, seconds / 2, rest, 0.0, 0.0), names)
            for seconds, rest in zip(taken, idle, strict=True)
        ]

    process = SimpleNamespace(
        cpu_affinity=lambda: list(range(cores)),
        cpu_times=lambda: SimpleNamespace(user=used[0], system=0.0),
    )
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(psutil, "cpu_times", times)
    monkeypatch.setattr(spare_cores, "available_cores", lambda: cores)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    spare, counts = SpareCores(), []
    for look in looks:
        now[0] += 1.0
        used[0] += own
        taken = [before + seconds for before, seconds in zip(taken, look, strict=True)]
        counts.append(spare.count())
    return counts


class Times(tuple[float, ...]):
    """A row of times with names, as psutil gives it."""

    def __new__(cls, values: tuple[float, ...], names: tuple[str, ...]) -> Times:
        row = super().__new__(cls, values)
        for name, value in zip(names, values, strict=True):
            setattr(row, name, value)
        return row


def test_a_core_is_left_to_who_takes_a_third_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, beside_one, beside_all = [0.9, 0.9], [1.0, 1.0], [1.0, 1.0]
    assert watched(monkeypatch, 2, 1.8, quiet, quiet) == [2, 2]
    assert watched(monkeypatch, 2, 1.2, quiet, beside_one) == [1, 1]
    assert watched(monkeypatch, 2, 1.7, beside_one) == [2]
    assert watched(monkeypatch, 2, 0.1, beside_all, [0.1, 0.1]) == [1, 2]
    assert watched(monkeypatch, 8, 5.0, [1.0] * 8) == [5]


def test_nobody_who_can_tell_leaves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(percpu: bool) -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(spare_cores, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(psutil, "cpu_times", unreadable)
    spare = SpareCores()
    assert spare.count() == spare.count() == len(os.sched_getaffinity(0))


def test_beside_busy_processes_one_is_left() -> None:
    spare = SpareCores()
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
    try:
        deadline = time.monotonic() + 60
        while spare.count() > 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for process in busy:
            process.kill()
            process.wait()
