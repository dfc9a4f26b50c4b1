"""How long the stages of a replica take, as the simulation draws it: measured, or predicted."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


class Seconds:
    """Measured seconds at some sizes (of a clip, or rows); drawn at any size between them."""

    def __init__(self, samples: Mapping[float, Sequence[float]]) -> None:
        self._sizes = sorted(samples)
        self._samples = [sorted(samples[size]) for size in self._sizes]

    def draw(self, size: float, draw: float) -> float:
        """The sample at the share `draw`, in [0, 1), of the sorted ones; linear between sizes."""
        above = bisect.bisect_left(self._sizes, size)
        if above == 0 or above == len(self._sizes):
            return _at(self._samples[min(above, len(self._sizes) - 1)], draw)
        low, high = self._sizes[above - 1], self._sizes[above]
        share = (size - low) / (high - low)
        before, after = _at(self._samples[above - 1], draw), _at(self._samples[above], draw)
        return before + share * (after - before)


def _at(samples: Sequence[float], draw: float) -> float:
    return samples[int(draw * len(samples))]


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """How long a replica takes for what; by seconds of the clip, a round by its rows."""

    open: Seconds  # a body becomes files, and they with their clips a question: a worker thread's
    decode: Seconds  # a file becomes a clip: of a process of its own
    prepare: Seconds  # a question becomes a prompt: the engine's, or a worker thread's on a card
    bare: Seconds  # in the engine, up to the first token
    hit: Seconds  # the same with a twin whose silent prefix is at hand
    words: Seconds  # whose prefix is not, but the encoder's silence is
    cold: Seconds  # of which nothing is at hand
    round: Seconds  # one token more for every row
    entry_bytes: Callable[[float], int]  # of a silent prefix, by seconds of the clip
    feature_bytes: Callable[[float], int]
    stretch: Callable[[float], float] = lambda _: 1.0  # of all these, by seconds from the start
