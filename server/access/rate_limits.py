"""How much one key may ask: so many requests a minute, so many at once. Counted in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.errors import RateLimited, TooManyConcurrent


@dataclass(slots=True)
class TokenBucket:
    """Requests that may come at once: a minute's worth, which fills again evenly."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic  # seconds
    tokens: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.filled_at = float(self.per_minute), self.clock()

    def take(self) -> float:
        """0, with a token taken, or the seconds until there is one."""
        now, rate = self.clock(), self.per_minute / 60
        self.tokens = min(self.per_minute, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


@dataclass(slots=True)
class KeyLimits:
    """What one key may do here, and what it does now. 0 is no limit."""

    requests_per_minute: int
    concurrent_requests: int
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    bucket: TokenBucket = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = TokenBucket(self.requests_per_minute, self.clock)

    @contextmanager
    def used(self) -> Iterator[None]:
        """A request of the key; TooManyConcurrent or RateLimited, which cost it nothing."""
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
