"""Limits of one key, counted in this process: requests a minute, requests at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.errors import RateLimited, TooManyConcurrent


@dataclass(slots=True)
class TokenBucket:
    """A minute's requests may come at once; the bucket fills again evenly."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic  # seconds
    tokens: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.filled_at = float(self.per_minute), self.clock()

    def take(self) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        now, rate = self.clock(), self.per_minute / 60
        self.tokens = min(self.per_minute, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


@dataclass(slots=True)
class KeyLimits:
    """The limits of one key, and its running requests. 0 is no limit."""

    requests_per_minute: int
    concurrent_requests: int
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    bucket: TokenBucket = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = TokenBucket(self.requests_per_minute, self.clock)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Run a request of the key. Raises TooManyConcurrent or RateLimited, at no cost to it."""
        if self.concurrent_requests and self.running >= self.concurrent_requests:
            raise TooManyConcurrent(
                f"{self.running} requests of this key run, as many as may run at once; wait for"
                " one to end"
            )
        wait = self.bucket.take() if self.requests_per_minute else 0.0
        if wait:
            raise RateLimited(
                f"this key may ask {self.requests_per_minute} times a minute and has done so;"
                " Retry-After says when it may again",
                math.ceil(wait),
            )
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
