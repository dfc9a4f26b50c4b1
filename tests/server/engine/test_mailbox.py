"""One request's mailbox: written from any thread, read in order, ended once."""

from __future__ import annotations

import asyncio

import pytest

from server.engine.events import Piece
from server.engine.mailbox import Mailbox


def test_events_of_another_thread_come_in_order_and_end() -> None:
    def write(mailbox: Mailbox) -> None:
        mailbox.leave_queue()
        mailbox.put(Piece("a"))
        mailbox.put(Piece("b"))
        mailbox.end()
        mailbox.put(Piece("after the end"))

    async def read() -> list[object]:
        mailbox = Mailbox()
        await asyncio.to_thread(write, mailbox)
        await mailbox.wait_in_queue()
        return [await mailbox.next_event() for _ in range(3)]

    assert asyncio.run(read()) == [Piece("a"), Piece("b"), None]


def test_only_the_first_end_counts_and_ends_the_wait_as_well() -> None:
    async def read() -> None:
        mailbox = Mailbox()
        mailbox.put(Piece("a"))
        mailbox.end(TimeoutError("too long"))
        mailbox.end(ValueError("later"))
        await mailbox.wait_in_queue()
        assert await mailbox.next_event() == Piece("a")
        with pytest.raises(TimeoutError, match="too long"):
            await mailbox.next_event()

    asyncio.run(read())


def test_a_loop_that_is_closed_is_told_nothing() -> None:
    async def make() -> Mailbox:
        return Mailbox()

    mailbox = asyncio.run(make())
    mailbox.put(Piece("a"))
    mailbox.end()
