"""The cores that other processes leave to this one.

OpenMP waits at every barrier for its slowest thread. Where another process keeps a core busy, that
is the thread which shares it, and a thread less is faster.
"""

from __future__ import annotations

import time

import psutil

from steering.cpu_threads import available_cores

_LOOK_SECONDS = 1.0
_SMALL_SHARE = 0.35  # of a core, that others may take of it before it is left to them
_NOT_TAKEN = ("idle", "iowait", "guest", "guest_nice")  # the last two are counted as user's too


class SpareCores:
    """Watches how busy the cores are that this process may use."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cores = set(self._process.cpu_affinity()) if psutil.LINUX else set()  # none: all
        self._spare = self._all = available_cores()
        self._looked_at, self._taken = time.monotonic(), self._taken_seconds()

    def count(self) -> int:
        """Number of cores that others leave, at least 1: the mean of about the last second."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            taken = self._taken_seconds()
            others = max(0.0, (taken - self._taken) / (now - self._looked_at))
            self._spare = max(1, min(self._all, int(self._all - others + _SMALL_SHARE)))
            self._looked_at, self._taken = now, taken
        return self._spare

    def _taken_seconds(self) -> float:
        """Seconds of these cores that others took, since some moment; 0 where nobody can tell."""
        try:
            each = psutil.cpu_times(percpu=True)
            own = self._process.cpu_times()
        except (OSError, psutil.Error):
            return 0.0
        cores = [core for number, core in enumerate(each) if number in self._cores] or each
        free = sum(getattr(core, name, 0.0) for core in cores for name in _NOT_TAKEN)
        return float(sum(map(sum, cores)) - free - own.user - own.system)
