"""The choice of heads by effect: their audio mass rises where the sound decides the next token.

Places of all answers, and their items, are correlated with the logarithm of the effect, within
wordings. No item needs a known answer, so that this works where a model is always right, or always
wrong. As among answers, a few of many heads look good by chance on what they were chosen on: they
are judged on clips that they were not chosen on, beside choices on exchanged effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.effects.token_effects import TokenEffects
from steering.calibration.specialists import (
    EFFECT,
    HALVINGS,
    MAX_CANDIDATES,
    SHUFFLES,
    HeadChoice,
    exchangeable,
    greedy_forward_selection,
    half_of_clips,
    items_needed,
)
from steering.decision import FELT_BITS
from steering.errors import DataError
from steering.heads import choose
from steering.items import Item
from steering.measures import auroc_within_strata, groups_of

DECIDED_BITS = 1.0  # from this effect on the sound is said to decide a token
LEAST_BITS = 0.01  # counted for any less: two effects of nothing differ by orders of magnitude
MIN_FELT_CLIPS = 10
MIN_DECIDED = 5  # places on either side of DECIDED_BITS for an AUROC

Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class EffectData:
    """All that the choice looks at: N places of I items."""

    mass: NDArray[np.float32]  # (N, L * H) audio mass of every head
    effect: NDArray[np.float32]  # (N,) bits
    item: Rows  # (N,) the item of each place, in ascending order
    place: Rows  # (N,) its number in the answer, from 0
    strata: tuple[str, ...]  # (I,)
    clips: NDArray[np.str_]  # (I,)

    @classmethod
    def of(cls, effects: TokenEffects, items: Sequence[Item]) -> EffectData:
        """The places of items, read from disk item by item."""
        counts = np.asarray(effects.places)
        return cls(
            np.concatenate([effects.mass[i, :count] for i, count in enumerate(counts)]),
            np.concatenate([effects.effect[i, :count] for i, count in enumerate(counts)]),
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([np.arange(count) for count in counts]),
            tuple(item.stratum for item in items),
            np.array([str(item.audio) for item in items]),
        )

    def select(self, rows: Rows) -> EffectData:
        """The places of some items."""
        number = np.full(len(self.clips), -1)
        number[rows] = np.arange(len(rows))
        kept = number[self.item] >= 0
        order = np.argsort(number[self.item[kept]], kind="stable")
        places = np.flatnonzero(kept)[order]
        return EffectData(
            self.mass[places],
            self.effect[places],
            number[self.item[places]],
            self.place[places],
            tuple(self.strata[int(i)] for i in rows),
            self.clips[rows],
        )

    @property
    def log_effect(self) -> NDArray[np.float32]:
        """(N,) logarithm of the effect."""
        return np.asarray(np.log2(self.effect.clip(LEAST_BITS)))

    @property
    def decided_first(self) -> Flags:
        """(I,) whether the sound decides the first token of each item's answer."""
        return np.asarray(self.effect[self.place == 0] >= DECIDED_BITS)

    @property
    def place_strata(self) -> list[str]:
        """(N,) the stratum of each place."""
        return [self.strata[int(i)] for i in self.item]


# ---- the choice


def choose_by_effect(data: EffectData) -> HeadChoice:
    """Choose the heads whose mean audio mass goes with the effect.

    1. All heads are ranked by correlation with the logarithm of the effect, within strata.
    2. Greedy forward selection among the first: from the first on, the head is added with which
       the mean of all correlates best, as long as that gains something.

    Args:
        data: the data to choose on.

    Returns:
        The choice.

    Raises:
        DataError: all effects are alike, or no head's mass rises with them.
    """
    groups = groups_of(data.place_strata)
    return _choose(_centred(data.mass, groups), _centred(data.log_effect, groups))


def _centred(values: NDArray[np.float32], groups: Sequence[Rows]) -> NDArray[np.float32]:
    """The values (N, ...) without the mean of each group."""
    centred = np.array(values, np.float32)
    for rows in groups:
        centred[rows] -= centred[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
    return centred


def _choose(mass: NDArray[np.float32], target: NDArray[np.float32]) -> HeadChoice:
    """The choice from centred mass (N, L * H) and logarithms of effects (N,)."""
    length = float(np.linalg.norm(target))
    lengths = np.sqrt(np.einsum("nh,nh->h", mass, mass, dtype=np.float64))
    if length <= 1e-6 * np.sqrt(len(target)):
        raise DataError("the sound does the same to every answer: no head can be told from another")
    varies = lengths > 1e-9 * np.sqrt(len(target))
    r = np.where(varies, (target @ mass) / (length * lengths.clip(1e-30)), 0.0)
    ranked = choose(r, min(MAX_CANDIDATES, int((r > 0).sum())))
    if not len(ranked):
        raise DataError("no head looks more at the audio where the sound does more")
    candidates = mass[:, ranked].astype(np.float64)  # (N, C)
    shared, own = candidates.T @ candidates, candidates.T @ target  # (C, C), (C,)

    def qualities(chosen: list[int], left: list[int]) -> NDArray[np.float64]:
        """(N,) correlation of the mean of the chosen with each of the N left."""
        among = shared[np.ix_(chosen, chosen)].sum()
        across = 2 * shared[np.ix_(chosen, left)].sum(0)
        spread = np.sqrt(among + across + shared[left, left])
        return np.asarray((own[chosen].sum() + own[left]) / (spread * length))

    chosen, tried = greedy_forward_selection(len(ranked), qualities)
    return HeadChoice(tuple(int(ranked[i]) for i in chosen), r, tried)


# ---- chance


def refuse_without_effect(data: EffectData) -> None:
    """Raise DataError if the sound does nothing to the answers: there is nothing to go by."""
    felt = len(np.unique(data.clips[data.item[data.effect >= FELT_BITS]]))
    clips = len(np.unique(data.clips))
    if felt < MIN_FELT_CLIPS:
        raise DataError(
            f"the sound hardly changes what this model says: {felt} of {clips} clips change any"
            f" token of its answer by {FELT_BITS:g} bits or more (the most is"
            f" {float(data.effect.max()):.2g}), and at least {MIN_FELT_CLIPS} are needed. Heads"
            " can't be chosen by effect; ask what only the clip can answer, or use other clips"
        )


def effect_against_chance(data: EffectData) -> dict[str, Any]:
    """The choice by effect beside SHUFFLES choices on exchanged effects.

    Items exchange the effects of their whole answers within strata, those of one clip together, so
    that what a token's place alone tells stays. The choice is above chance if its score, on the
    half that it was not made on, correlates better than that of every other.

    Args:
        data: the data that the heads were chosen on.

    Returns:
        The figures, and a warning in plain words where the choice is not above chance.
    """
    rng = np.random.default_rng(5)
    firsts = [half_of_clips(data.clips, rng) for _ in range(HALVINGS)]
    blocks = exchangeable(data.strata, data.clips)
    halves = [_Half.of(data, mine) for first in firsts for mine in (first, ~first)]
    own, decided = _across_halves(halves, data.log_effect), data.effect >= DECIDED_BITS
    exchanged = (data.log_effect[_exchanged(data, blocks, rng)] for _ in range(SHUFFLES))
    chance = np.array([_across_halves(halves, other)[0] for other in exchanged])
    figures = {
        "criterion": EFFECT,
        "places": len(data.effect),
        "decided_share": round(float(decided.mean()), 4),
        "r_across": round(own[0], 4),
        "auroc_across": round(own[1], 4) if np.isfinite(own[1]) else None,
        "chance_r_mean": round(float(chance.mean()), 4),
        "chance_r_best": round(float(chance.max()), 4),
        "shuffles": SHUFFLES,
        "above_chance": bool(own[0] > chance.max()),
    }
    if figures["above_chance"]:
        return figures
    needed = items_needed(own[0], chance, len(data.clips))
    return {**figures, "items_needed": needed, "warning": _warning(figures, data, needed)}


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    """Half of the clips, and its mass without the mean of each stratum."""

    places: Rows  # (M,) of all N
    groups: Sequence[Rows]  # of the M
    strata: Sequence[str]  # (M,)
    mass: NDArray[np.float32]  # (M, L * H) centred
    decided: Flags  # (M,)

    @classmethod
    def of(cls, data: EffectData, mine: Flags) -> _Half:
        places = np.flatnonzero(mine[data.item])
        strata = [data.strata[int(i)] for i in data.item[places]]
        groups = groups_of(strata)
        mass = _centred(data.mass[places], groups)
        return cls(places, groups, strata, mass, data.effect[places] >= DECIDED_BITS)


def _across_halves(halves: Sequence[_Half], log_effect: NDArray[np.float32]) -> tuple[float, float]:
    """Mean correlation, and AUROC at DECIDED_BITS, of heads chosen on one half, on the other."""
    figures = []
    for k, chosen_on in enumerate(halves):
        judged_on = halves[k ^ 1]
        target, judged = (_centred(log_effect[h.places], h.groups) for h in (chosen_on, judged_on))
        with suppress(DataError):  # nothing to choose by in that half
            columns = list(_choose(chosen_on.mass, target).columns)
            score = judged_on.mass[:, columns].mean(1)
            figures.append((_r(score, judged), _auroc(score, judged_on)))
    if not figures:
        return 0.0, float("nan")
    r, auroc = np.array(figures).T
    known = auroc[np.isfinite(auroc)]
    return float(r.mean()), float(known.mean()) if len(known) else float("nan")


def _r(score: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """Correlation of centred values; 0 where one does not vary."""
    lengths = float(np.linalg.norm(score)) * float(np.linalg.norm(target))
    return float(score @ target) / lengths if lengths > 0 else 0.0


def _auroc(score: NDArray[np.float32], half: _Half) -> float:
    """AUROC of decided places within strata; NaN where too few are, or are not."""
    fewest = min(int(half.decided.sum()), int((~half.decided).sum()))
    if fewest < MIN_DECIDED:
        return float("nan")
    return auroc_within_strata(score, half.decided, half.strata)


def _exchanged(
    data: EffectData, blocks: Sequence[Rows], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(N,) the place that each place gets its effect from: that of the same number in the other
    item's answer, or of its last.
    """
    source = np.arange(len(data.clips))
    for rows in blocks:
        source[rows] = rows[rng.permutation(len(rows))]
    counts = np.bincount(data.item, minlength=len(source))
    starts = np.cumsum(counts) - counts
    other = source[data.item]
    return np.asarray(starts[other] + np.minimum(data.place, counts[other] - 1))


def _warning(figures: dict[str, Any], data: EffectData, needed: int | None) -> str:
    advice = "use other clips or questions" if needed is None else f"about {needed:,} may be enough"
    return (
        "the heads chosen by effect are no better than chance: chosen on half of the clips, their"
        f" score correlates with the effect on the other half by {figures['r_across']:.2f}, with"
        f" effects exchanged by up to {figures['chance_r_best']:.2f} (mean"
        f" {figures['chance_r_mean']:.2f}). {len(data.clips):,} items with"
        f" {len(data.effect):,} tokens are too few; {advice}"
    )
