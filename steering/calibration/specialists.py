"""The choice of the specialist heads, and whether it is better than chance.

A few heads are chosen among hundreds or a thousand, on some hundred items: on these the chosen ones
look good even where none knows anything (AUROC 0.95 for 150 items and 1,024 heads of pure noise).
So they are judged on items that they were not chosen on, and beside choices on shuffled answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations
from steering.errors import DataError
from steering.heads import choose, correlations
from steering.items import Item
from steering.measures import (
    auroc_within_strata,
    aurocs,
    aurocs_within_groups,
    groups_of,
)

MIN_HEADS, MAX_HEADS = 4, 24
MAX_CANDIDATES = 48  # heads among which specialists are chosen
MIN_AUDIBILITY = 0.8  # of a candidate: AUROC of its mass on a clip against its silence
MIN_BETTER = 1e-3  # of a sum of two AUROCs, or a correlation: what another head must add
SHUFFLES = 39  # a choice above them all has p = 1/40
HALVINGS = 2  # of the clips: heads are chosen on one half and judged on the other
_CLEAR = 2.5  # standard deviations over the mean of chance: mostly above all SHUFFLES
_HOPELESS = 0.5  # standard deviations under which no number of items is named

Criterion = Literal["correctness", "effect"]  # what heads are chosen by
CORRECTNESS: Criterion = "correctness"  # right answers: the paper's
EFFECT: Criterion = "effect"  # what the sound does to every token: no labels

Flags = NDArray[np.bool_]
Columns = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class HeadData:
    """All that the choice of heads looks at: I items, J of which tell what was followed."""

    heard: NDArray[np.float32]  # (I, L * H) audio mass of every head on the clips
    silent: NDArray[np.float32]  # (I, L * H) the same on their silent twins
    audible: Flags  # (L * H,) heads that separate a clip from its silence on their own
    telling: NDArray[np.float32]  # (J, L * H) audio mass on the items that tell
    right: Flags  # (J,) whether they were answered right
    strata: tuple[str, ...]  # (J,)
    clips: NDArray[np.str_]  # (J,)

    @classmethod
    def of(cls, activations: Activations, items: Sequence[Item]) -> HeadData:
        """The data of items and their activations.

        If they name wordings, those tell whose text and sound disagree: only there does the answer
        show which of the two was followed.
        """
        rows = telling_rows(items)
        separation = audibility(activations)
        floor = np.sort(separation)[-min(MIN_HEADS, len(separation))]
        return cls(
            activations.mass,
            activations.silent_mass,
            separation >= min(MIN_AUDIBILITY, float(floor)),
            activations.mass[rows],
            activations.right[rows],
            tuple(items[int(i)].stratum for i in rows),
            np.array([str(items[int(i)].audio) for i in rows]),
        )

    def half(self, rows: Flags) -> HeadData:
        """The data with some of the telling items, and every second of all."""
        return replace(
            self,
            heard=self.heard[::2],
            silent=self.silent[::2],
            telling=self.telling[rows],
            right=self.right[rows],
            strata=tuple(s for s, wanted in zip(self.strata, rows, strict=True) if wanted),
            clips=self.clips[rows],
        )


@dataclass(frozen=True, slots=True, eq=False)
class HeadChoice:
    """The heads chosen from some data."""

    columns: tuple[int, ...]  # among L * H, the first the most correlated
    r: NDArray[np.float64]  # (L * H,) of every head with a right answer
    tried: int  # sets of heads


def telling_rows(items: Sequence[Item]) -> NDArray[np.int64]:
    """(J,) the items that tell what was followed: all, or those whose text and sound disagree."""
    tell = np.array([item.wording in ("", "conflict") for item in items], bool)
    return np.flatnonzero(tell if tell.any() else ~tell)


def choose_heads(data: HeadData) -> HeadChoice:
    """Choose the heads that best show whether the sound decided.

    1. Candidates separate a clip from its silence on their own.
    2. They are ranked by correlation with a right answer, within strata.
    3. Greedy forward selection: from the first on, the head is added with which the mean of all
       best separates right from wrong and clip from silence, as long as that gains something.

    Source: arXiv 2603.06854, audio-specialist heads; steps 1 and 3 are ours.

    Args:
        data: the data to choose on.

    Returns:
        The choice.

    Raises:
        DataError: all items of every stratum are right or all wrong.
    """
    r = correlations(data.telling, data.right, data.strata)
    ranked = choose(np.where(data.audible, r, -2.0), int(data.audible.sum()))[:MAX_CANDIDATES]
    groups = groups_of(data.strata)
    by_clip = np.arange(2 * len(data.heard)) < len(data.heard)
    both = np.concatenate([data.heard[:, ranked], data.silent[:, ranked]])  # (2 I, C)
    telling = data.telling[:, ranked]  # (J, C)

    def qualities(chosen: list[int], left: list[int]) -> NDArray[np.float64]:
        """(N,) of the chosen candidates with each of the N left."""
        told, heard = (_means(mass, chosen, left) for mass in (telling, both))
        return aurocs_within_groups(told, data.right, groups) + aurocs(heard, by_clip)

    chosen, tried = greedy_forward_selection(len(ranked), qualities)
    return HeadChoice(tuple(int(ranked[i]) for i in chosen), r, tried)


def auroc_of(choice: HeadChoice, data: HeadData) -> float:
    """AUROC within strata of the chosen heads' mean, right against wrong answers of some data."""
    score = data.telling[:, list(choice.columns)].mean(1)
    return auroc_within_strata(score, data.right, data.strata)


def _means(mass: NDArray[np.float32], chosen: list[int], left: list[int]) -> NDArray[np.float32]:
    """(I, N) mean mass of the chosen columns with each of the N left."""
    together = mass[:, chosen].sum(1, keepdims=True)
    return np.asarray((together + mass[:, left]) / (len(chosen) + 1))


def greedy_forward_selection(
    count: int, qualities: Callable[[list[int], list[int]], NDArray[np.float64]]
) -> tuple[list[int], int]:
    """The first candidate, and further ones added one by one as long as each improves the set.

    Also the number of sets tried.
    """
    chosen, best_quality, tried = [0], -np.inf, 0
    while len(chosen) < min(MAX_HEADS, count):
        left = [head for head in range(count) if head not in chosen]
        reached = qualities(chosen, left)
        tried += len(left)
        best = int(np.argmax(reached))  # of equals the most correlated
        if len(chosen) >= MIN_HEADS and reached[best] < best_quality + MIN_BETTER:
            break
        chosen, best_quality = [*chosen, left[best]], float(reached[best])
    return chosen, tried


def audibility(activations: Activations) -> NDArray[np.float64]:
    """(L * H,) AUROC of each head alone, clip against silence."""
    both = np.concatenate([activations.mass, activations.silent_mass])  # (2 I, L * H)
    return aurocs(both, np.arange(len(both)) < len(activations.mass))


# ---- chance


def against_chance(data: HeadData, items: int) -> dict[str, Any]:
    """The choice of heads beside SHUFFLES choices on shuffled answers.

    Answers are exchanged within strata, those of one clip together. The choice is above chance if
    its AUROC, on the half it was not made on, is above that of every shuffled one. Of the same data
    the figures are the same.

    Args:
        data: the data that the heads were chosen on.
        items: number of items behind it, also of those that do not tell.

    Returns:
        The figures, and a warning in plain words where the choice is not above chance.

    Raises:
        DataError: as `choose_heads`.
    """
    rng = np.random.default_rng(4)
    firsts = [half_of_clips(data.clips, rng) for _ in range(HALVINGS)]
    blocks = exchangeable(data.strata, data.clips)
    own = _across_halves(data, firsts), _best_r(data)
    shuffled = (replace(data, right=_shuffled(data.right, blocks, rng)) for _ in range(SHUFFLES))
    chance = [(_across_halves(other, firsts), _best_r(other)) for other in shuffled]
    aurocs_by_chance, r_by_chance = np.array(chance).T
    figures = {
        "criterion": CORRECTNESS,
        "telling_items": len(data.right),
        "auroc_across": round(own[0], 4),
        "chance_auroc_mean": round(float(aurocs_by_chance.mean()), 4),
        "chance_auroc_best": round(float(aurocs_by_chance.max()), 4),
        "r_best": round(own[1], 4),
        "chance_r_best": round(float(r_by_chance.max()), 4),
        "shuffles": SHUFFLES,
        "above_chance": bool(own[0] > aurocs_by_chance.max()),
    }
    if figures["above_chance"]:
        return figures
    needed = items_needed(own[0], aurocs_by_chance, items)
    return {**figures, "items_needed": needed, "warning": _warning(figures, items, needed)}


def half_of_clips(clips: NDArray[np.str_], rng: np.random.Generator) -> Flags:
    """(J,) the items of a random half of the clips."""
    names, which = np.unique(clips, return_inverse=True)
    return np.asarray((rng.permutation(len(names)) % 2 == 0)[which])


def _across_halves(data: HeadData, firsts: Sequence[Flags]) -> float:
    """Mean AUROC of heads chosen on one half and judged on the other; 0.5 where none is known."""
    aurocs = []
    for first in firsts:
        halves = data.half(first), data.half(~first)
        for chosen_on, judged_on in (halves, halves[::-1]):
            with suppress(DataError):  # only right answers in that half, or only wrong ones
                aurocs.append(auroc_of(choose_heads(chosen_on), judged_on))
    known = [auroc for auroc in aurocs if np.isfinite(auroc)]
    return float(np.mean(known)) if known else 0.5


def _best_r(data: HeadData) -> float:
    """The highest correlation of a candidate with a right answer."""
    return float(correlations(data.telling, data.right, data.strata)[data.audible].max())


def items_needed(auroc: float, by_chance: NDArray[np.float64], items: int) -> int | None:
    """The number of items at which a choice would about be above chance; None if none is in sight.

    What is above the mean of chance stays, or grows, as the items become more, and the spread of
    chance shrinks with the square root of their number.
    """
    deviations = (auroc - float(by_chance.mean())) / max(float(by_chance.std(ddof=1)), 1e-9)
    if deviations < _HOPELESS:
        return None
    wanted = items * max(1.5, (_CLEAR / deviations) ** 2)
    digits: int = 10 ** (len(str(int(wanted))) - 2)
    return int(np.ceil(wanted / digits)) * digits


def _warning(figures: dict[str, Any], items: int, needed: int | None) -> str:
    advice = (
        "no number of items can be named: use others, on which the model is right and wrong"
        " about equally often"
        if needed is None
        else f"about {needed:,} would be enough"
    )
    return (
        "the chosen heads are no better than chance: chosen on half of the items they tell right"
        f" from wrong answers on the other half with an AUROC of {figures['auroc_across']:.2f},"
        f" on shuffled answers with up to {figures['chance_auroc_best']:.2f} (mean"
        f" {figures['chance_auroc_mean']:.2f}). {items:,} items, {figures['telling_items']:,} of"
        f" them telling, are too few; {advice}"
    )


def exchangeable(strata: Sequence[str], clips: NDArray[np.str_]) -> list[Columns]:
    """Blocks of rows that may be exchanged: each (N, S), N clips with S items.

    All rows of a block are of one stratum; items about one clip stay together, because they are
    alike whatever the answers are.
    """
    blocks = []
    for group in groups_of(strata):
        _, which = np.unique(clips[group], return_inverse=True)
        rows = [group[which == clip] for clip in range(which.max() + 1)]
        for size in sorted({len(each) for each in rows}):
            blocks.append(np.stack([each for each in rows if len(each) == size]))
    return blocks


def _shuffled(right: Flags, blocks: Sequence[Columns], rng: np.random.Generator) -> Flags:
    """The answers, exchanged among the rows of each block."""
    exchanged = right.copy()
    for rows in blocks:
        exchanged[rows] = right[rows[rng.permutation(len(rows))]]
    return exchanged
