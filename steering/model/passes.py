"""Work in passes: a generator that says how many tokens its next pass takes, before it makes it.

Whoever runs it may let others go first there; `at_once` lets nobody.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")
Passes = Generator[int, None, Result]


def at_once(passes: Passes[Result]) -> Result:
    """Make all passes one after the other, and return their result."""
    while True:
        try:
            next(passes)
        except StopIteration as end:
            result: Result = end.value
            return result


def cuts(tokens: int, limit: int | None) -> list[int]:
    """Where passes over so many tokens begin: of about one size, at most `limit`, one if None."""
    count = max(1, -(-tokens // limit)) if limit else 1
    return [tokens * i // count for i in range(count)]
