"""Stalled connections are cut, which uvicorn does not do, so that nobody holds one for nothing.

A body that arrives slowly is a request's affair (`limit_body`). This watch covers what no request
sees: headers that never come, answers that nobody reads, more connections than allowed.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

_SWEEP_SECONDS = 0.5
# Unread bytes of a connection that has no request:
_IDLE = -1  # its headers do not come
_RESTING = -2  # it was answered and waits for the next; uvicorn cuts it when its time is over


@dataclass(slots=True, eq=False)
class ConnectionWatch:
    """The connections of one server."""

    limit: int
    stall_timeout_seconds: float
    connections: set[Any] = field(default_factory=set)  # uvicorn's protocols; uvicorn fills it
    _stalled: dict[Any, tuple[int, float]] = field(default_factory=dict)  # unread bytes, since when

    def crowded(self) -> bool:
        """Whether more than the limit are open although idle ones were cut."""
        excess = len(self.connections) - self.limit
        return excess > 0 and self.sweep(time.monotonic()) < excess

    async def cut_stalled(self) -> None:
        """Cut stalled connections until cancelled."""
        while True:
            await asyncio.sleep(min(_SWEEP_SECONDS, self.stall_timeout_seconds / 4))
            self.sweep(time.monotonic(), spare_new=True)

    def sweep(self, now: float, *, spare_new: bool = False) -> int:
        """Cut those that stalled for too long and, if too many are open, idle ones; not those that
        no sweep has seen yet, if `spare_new`: their request, or a probe, may be on its way.

        Returns how many were cut.
        """
        known = self._stalled.keys()
        stalled: dict[Any, tuple[int, float]] = {}
        for connection in self.connections:
            unread = _unread(connection)
            if unread is not None:
                before, since = self._stalled.get(connection, (unread, now))
                stalled[connection] = (unread, since if before == unread else now)
        self._stalled = stalled
        cut, excess = 0, len(self.connections) - self.limit
        for connection, (unread, since) in sorted(stalled.items(), key=lambda item: item[1][1]):
            too_many = cut < excess and unread in (_IDLE, _RESTING)
            too_many &= not spare_new or connection in known
            stalls = unread != _RESTING and now - since > self.stall_timeout_seconds
            if too_many or stalls:
                connection.transport.abort()
                cut += 1
        return cut


def _unread(connection: Any) -> int | None:
    """Bytes that the client does not read, _IDLE or _RESTING if it has no request; else None."""
    transport, cycle = connection.transport, connection.cycle
    waits_for_reader = connection.flow.write_paused or transport.is_closing()
    if waits_for_reader and transport.get_write_buffer_size():
        return int(transport.get_write_buffer_size())
    if cycle is None or cycle.response_complete:
        return _IDLE if connection.timeout_keep_alive_task is None else _RESTING
    return None
