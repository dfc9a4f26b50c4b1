"""Threads of a process's arithmetic: as many as the cores that it may use, and quick to give way.

OpenMP's threads spin at every barrier until the last one comes. Beside another process that keeps a
core busy that is most of the time: libgomp's own limit is some milliseconds. OpenMP reads its
environment once, when torch loads it, so this runs before torch is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

SPIN_COUNT = "10000"  # turns at a barrier before a thread sleeps: about 0.1 ms
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def limit_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's variables that the user has not set; no effect once torch is imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    cores, quota = available_cores(), cpu_quota()
    if quota < cores:  # affinity is known to OpenMP, a quota is not
        environment.setdefault("OMP_NUM_THREADS", str(max(1, int(quota))))


def available_cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> float:
    """Seconds of CPU for each second that the process's cgroups allow; infinite without a limit."""
    return min(_quotas(cgroups, own), default=math.inf)


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """The quotas of the process's cgroups and of those around them, of both versions."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = cgroups
        if controllers:  # version 1
            if "cpu" not in controllers.split(","):
                continue
            root = cgroups / "cpu"
        inside = PurePosixPath(path).relative_to("/")
        for folder in (root / inside, *(root / outer for outer in inside.parents)):
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The quota of one cgroup, if it has one."""
    try:
        if (folder / "cpu.max").exists():  # version 2: "200000 100000" or "max 100000"
            allowed, period = (folder / "cpu.max").read_text().split()
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text().strip()  # -1 without a limit
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if allowed not in ("max", "-1"):
            yield int(allowed) / int(period)
    except (OSError, ValueError):  # no such file, or of another form
        return
