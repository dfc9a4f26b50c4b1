"""Open connections: those that are stuck are cut, so that nobody holds one for nothing.

A body that arrives slowly is a request's affair (`middleware.bounded`). What no request sees is
here: headers that never come, answers that nobody reads, more connections than there may be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_SWEEP_SECONDS = 0.5
_IDLE = -1  # bytes unread of a connection that has no request


@dataclass(slots=True, eq=False)
class ConnectionWatch:
    """The connections of one server."""

    open: Collection[Any]  # uvicorn's protocols
    limit: int
    stall_timeout_seconds: float
    _stuck: dict[Any, tuple[int, float]] = field(default_factory=dict)  # bytes unread, since when

    def crowded(self) -> bool:
        """Whether more are open than may be, although idle ones were cut."""
        over = len(self.open) - self.limit
        return over > 0 and self.sweep(time.monotonic()) < over

    async def watch(self) -> None:
        """Cut those that are stuck, until cancelled."""
        while True:
            await asyncio.sleep(min(_SWEEP_SECONDS, self.stall_timeout_seconds / 4))
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> int:
        """Cut those that have been stuck for too long and, if too many are open, idle ones.

        Returns how many were cut.
        """
        stuck: dict[Any, tuple[int, float]] = {}
        for one in self.open:
            unread = _unread(one)
            if unread is not None:
                before, since = self._stuck.get(one, (unread, now))
                stuck[one] = (unread, since if before == unread else now)
        self._stuck = stuck
        cut, over = 0, len(self.open) - self.limit
        for one, (unread, since) in sorted(stuck.items(), key=lambda item: item[1][1]):
            too_many = cut < over and unread == _IDLE
            if too_many or now - since > self.stall_timeout_seconds:
                one.transport.abort()
                cut += 1
        return cut


def _unread(connection: Any) -> int | None:
    """Bytes that the client does not read, _IDLE if it has no request; None if all goes well."""
    transport, cycle = connection.transport, connection.cycle
    waits_for_reader = connection.flow.write_paused or transport.is_closing()
    if waits_for_reader and transport.get_write_buffer_size():
        return int(transport.get_write_buffer_size())
    return _IDLE if cycle is None or cycle.response_complete else None
