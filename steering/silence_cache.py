"""What is kept of silence: which lengths, the words before them, and how long it stays."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from steering.attention.taps import KVPairs

SILENCE_BYTES = 1_000_000_000  # that a cache may hold, where nothing else is said
TOP_FRAMES = 3000  # 30 s, at Whisper's 100 mel frames a second
_DOUBLINGS = 6  # down to 0.47 s


@dataclass(frozen=True, slots=True)
class Ladder:
    """The lengths of silence that are run, in mel frames: a geometric series through 30 s."""

    steps: int = 1  # rungs a doubling of length; 0: every length is a rung

    def rungs(self, longest: int) -> Iterator[int]:
        """The rungs from the shortest to `longest`, the last one."""
        for step in count(-_DOUBLINGS * self.steps):
            rung = min(math.ceil(TOP_FRAMES * 2 ** (step / self.steps)), longest)
            yield rung
            if rung == longest:
                return

    @classmethod
    def within(
        cls, limit_bytes: int, token_bytes: int, audio_tokens: Callable[[int], int], longest: int
    ) -> Ladder:
        """The finest ladder whose rungs up to `longest` take a quarter of the limit; or ratio 2."""
        ladders = (cls(steps) for steps in (4, 2))
        limit = limit_bytes // 4 // token_bytes
        return next((one for one in ladders if one.tokens(audio_tokens, longest) <= limit), cls())

    def tokens(self, audio_tokens: Callable[[int], int], longest: int) -> int:
        """Audio tokens of all rungs up to `longest`."""
        return sum(audio_tokens(rung) for rung in self.rungs(longest))

    def rung(self, frames: int, longest: int) -> int:
        """The shortest rung that is as long as a clip of so many mel frames."""
        return next(r for r in self.rungs(longest) if r >= frames) if self.steps else frames


@dataclass(frozen=True, slots=True)
class SilenceKey:
    """All that the keys and values of a silent prefix depend on, but for their depth."""

    tokens: bytes  # int64, before the last clip
    rungs: tuple[int, ...]  # mel frames of the silence that each clip's is cut from
    counts: tuple[int, ...] = ()  # audio tokens of each clip but the last, which is cut when used


class SilenceCache:
    """Keys and values of silent prefixes, and the encoder's silences, in bounded bytes.

    Least recently used out first, but what follows the `pinned` words stays; what finds no room is
    not kept. Used by one thread. `ahead` are entries that may be asked for: the other rungs of the
    newest words that missed. Whoever is idle makes them with `make_ahead`.
    """

    def __init__(self, limit_bytes: int, ladder: Ladder | None = None) -> None:
        self.limit_bytes, self.ladder = limit_bytes, ladder or Ladder()
        self.held_bytes = 0
        self.pinned = b""  # int64 tokens before a first clip
        self.longest_ahead = 0  # mel frames of the longest clip to expect; 0: none is
        self.ahead: list[tuple[SilenceKey, int]] = []  # with the depth of each; the next one last
        self._kept: OrderedDict[SilenceKey, KVPairs] = OrderedDict()
        self._features: OrderedDict[int, Tensor] = OrderedDict()  # mel frames -> (F, D)

    def get(self, key: SilenceKey, depth: int = 0) -> KVPairs | None:
        """The pairs of a prefix, if they are deep enough; they become the most recently used."""
        pairs = self._kept.get(key)
        if pairs is None or len(pairs) < depth:
            return None
        self._kept.move_to_end(key)
        return pairs

    def beginning(self, key: SilenceKey, depth: int) -> tuple[int, KVPairs]:
        """How many of the clips are in the longest kept prefix that `key` continues; its pairs."""
        for clips in range(len(key.rungs) - 1, 0, -1):
            for kept in self._kept:
                same = (kept.rungs, kept.counts) == (key.rungs[:clips], key.counts[: clips - 1])
                pairs = self.get(kept, depth) if same and key.tokens.startswith(kept.tokens) else ()
                if pairs:
                    return clips, pairs
        return 0, ()

    def put(self, key: SilenceKey, pairs: KVPairs) -> None:
        """Keep the pairs of a prefix and let the oldest go until all fit."""
        self.held_bytes -= _bytes(self._kept.pop(key, ()))  # those were less deep
        if self._make_room(_bytes(pairs)):
            self._kept[key] = pairs
            self.held_bytes += _bytes(pairs)

    def features(self, frames: int) -> Tensor | None:
        """(F, D) that the encoder makes of so many mel frames of silence, or None."""
        return self._features.get(frames)

    def put_features(self, frames: int, features: Tensor) -> None:
        """Keep the encoder's features (F, D) of a length of silence, in an eighth of the limit."""
        others = sum(kept.nbytes for kept in self._features.values())
        if others + features.nbytes <= self.limit_bytes // 8 and self._make_room(features.nbytes):
            self._features[frames] = features
            self.held_bytes += features.nbytes

    def want(self, tokens: bytes, depth: int, longest: int) -> None:
        """Have the rungs behind these words made ahead, the longest first."""
        if self.longest_ahead and self.ladder.steps:
            top = self.ladder.rung(self.longest_ahead, longest)
            self.ahead = [(SilenceKey(tokens, (r,)), depth) for r in self.ladder.rungs(top)]

    def clear(self) -> None:
        """Forget all of it."""
        for kept in (self._kept, self._features, self.ahead):
            kept.clear()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def _make_room(self, size: int) -> bool:
        """Let the oldest go until so many bytes fit; False, and none goes, if they never will."""
        unpinned = [key for key in self._kept if key.tokens != self.pinned]
        spare = self.limit_bytes - self.held_bytes
        if size > spare + sum(_bytes(self._kept[key]) for key in unpinned):
            return False
        while size > self.limit_bytes - self.held_bytes:
            self.held_bytes -= _bytes(self._kept.pop(unpinned.pop(0)))
        return True


def _bytes(pairs: KVPairs) -> int:
    return sum(t.nbytes for pair in pairs for t in pair)
