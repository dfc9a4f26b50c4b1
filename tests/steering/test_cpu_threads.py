"""Threads of arithmetic: they give way, and are as many as the process may use cores."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steering.cpu_threads import SPIN_COUNT, cpu_quota, limit_threads

THREADS = (
    "import steering, os, torch; print(os.environ.get('GOMP_SPINCOUNT'), torch.get_num_threads())"
)


def in_a_process(code: str, **variables: str) -> list[str]:
    unset = ("GOMP_SPINCOUNT", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_process_that_computes_does_not_spin_for_long() -> None:
    assert in_a_process(THREADS)[0] == SPIN_COUNT
    assert in_a_process(THREADS, GOMP_SPINCOUNT="7", OMP_NUM_THREADS="1") == ["7", "1"]
    assert in_a_process(THREADS, OMP_WAIT_POLICY="active")[0] == "None"


def test_threads_follow_the_cores_that_the_process_may_use() -> None:
    pin = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); "
    assert in_a_process(pin + THREADS)[1] == "1"


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        (
            "3:cpu,cpuacct:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2.0,
        ),
        (
            "3:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
        ("0::/\n", {"cpu.max": "of another form"}, math.inf),
        ("0::/\n", {}, math.inf),
    ],
)
def test_a_quota_is_read_from_cgroups(
    tmp_path: Path, lines: str, files: dict[str, str], quota: float
) -> None:
    own = tmp_path / "own"
    own.write_text(lines)
    for name, text in files.items():
        file = tmp_path / "cgroups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert cpu_quota(tmp_path / "cgroups", own) == quota


def test_a_quota_under_the_cores_bounds_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering.cpu_threads.available_cores", lambda: 8)
    monkeypatch.setattr("steering.cpu_threads.cpu_quota", lambda: 2.5)
    variables: dict[str, str] = {}
    limit_threads(variables)
    assert variables["OMP_NUM_THREADS"] == "2"
    theirs = {"OMP_NUM_THREADS": "4"}
    limit_threads(theirs)
    assert theirs["OMP_NUM_THREADS"] == "4"
