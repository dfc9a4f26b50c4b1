"""The choice of the specialist heads, and whether it is better than chance.

A few heads are chosen among hundreds or a thousand, on some hundred items: the best of them look
good even where none knows anything. So the whole choice is made again on shuffled answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations
from steering.heads import choose, correlations
from steering.items import Item
from steering.measures import auroc_against_silence, aurocs, aurocs_within_groups, groups_of

MIN_HEADS, MAX_HEADS = 4, 24
MAX_CANDIDATES = 48  # heads among which specialists are chosen
MIN_AUDIBILITY = 0.8  # of a candidate: AUROC of its mass on a clip against its silence
MIN_BETTER = 1e-3  # of the sum of two AUROCs: what another head must add
SHUFFLES = 39  # a choice above them all has p = 1/40
_CLEAR = 2.5  # standard deviations over the mean of chance: mostly above all SHUFFLES
_HOPELESS = 0.5  # standard deviations under which no number of items is named

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
        tell = np.array([item.wording in ("", "conflict") for item in items], bool)
        rows = np.flatnonzero(tell if tell.any() else ~tell)
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


@dataclass(frozen=True, slots=True, eq=False)
class HeadChoice:
    """The heads chosen from some data."""

    columns: tuple[int, ...]  # among L * H, the first the most correlated
    r: NDArray[np.float64]  # (L * H,) of every head with a right answer
    auroc: float  # of their mean, right against wrong within strata, on the data it was chosen on
    tried: int  # sets of heads


def choose_heads(data: HeadData, right: Flags | None = None) -> HeadChoice:
    """Choose the heads that best show whether the sound decided.

    1. Candidates separate a clip from its silence on their own.
    2. They are ranked by correlation with a right answer, within strata.
    3. Greedy forward selection: from the first on, the head is added with which the mean of all
       best separates right from wrong and clip from silence, as long as that gains something.

    Source: arXiv 2603.06854, audio-specialist heads; steps 1 and 3 are ours.

    Args:
        data: the data to choose on.
        right: (J,) answers in place of the data's own.

    Returns:
        The choice.

    Raises:
        DataError: all items of every stratum are right or all wrong.
    """
    right = data.right if right is None else right
    r = correlations(data.telling, right, data.strata)
    ranked = choose(np.where(data.audible, r, -2.0), int(data.audible.sum()))[:MAX_CANDIDATES]
    groups = groups_of(data.strata)
    by_clip = np.arange(2 * len(data.heard)) < len(data.heard)
    both = np.concatenate([data.heard[:, ranked], data.silent[:, ranked]])  # (2 I, C)
    telling = data.telling[:, ranked]  # (J, C)

    def qualities(chosen: list[int], left: list[int]) -> NDArray[np.float64]:
        """(N,) of the chosen candidates with each of the N left."""
        told, heard = (_means(mass, chosen, left) for mass in (telling, both))
        return aurocs_within_groups(told, right, groups) + aurocs(heard, by_clip)

    chosen, tried = _greedy_forward_selection(len(ranked), qualities)
    score = telling[:, chosen].mean(1, keepdims=True)
    auroc = float(aurocs_within_groups(score, right, groups)[0])
    return HeadChoice(tuple(int(ranked[i]) for i in chosen), r, auroc, tried)


def _means(mass: NDArray[np.float32], chosen: list[int], left: list[int]) -> NDArray[np.float32]:
    """(I, N) mean mass of the chosen columns with each of the N left."""
    together = mass[:, chosen].sum(1, keepdims=True)
    return np.asarray((together + mass[:, left]) / (len(chosen) + 1))


def _greedy_forward_selection(
    count: int, qualities: Callable[[list[int], list[int]], NDArray[np.float64]]
) -> tuple[list[int], int]:
    """The first candidate, and further ones added one by one as long as each improves the set.

    Also the number of sets tried.
    """
    chosen, best_quality, tried = [0], -np.inf, 0
    while len(chosen) < min(MAX_HEADS, count):
        left = [head for head in range(count) if head not in chosen]
        found = qualities(chosen, left)
        tried += len(left)
        best = int(np.argmax(found))  # of equals the most correlated
        if len(chosen) >= MIN_HEADS and found[best] < best_quality + MIN_BETTER:
            break
        chosen, best_quality = [*chosen, left[best]], float(found[best])
    return chosen, tried


def audibility(activations: Activations) -> NDArray[np.float64]:
    """(L * H,) AUROC of each head alone, clip against silence."""
    pairs = zip(activations.mass.T, activations.silent_mass.T, strict=True)
    return np.array([auroc_against_silence(heard, silent) for heard, silent in pairs])


# ---- chance


def against_chance(data: HeadData, items: int) -> dict[str, Any]:
    """The choice of heads beside SHUFFLES choices on shuffled answers.

    Answers are exchanged within strata, those of one clip together. The choice is above chance if
    its AUROC is above that of every shuffled one. Of the same data the figures are the same.

    Args:
        data: the data that the heads were chosen on.
        items: number of items behind it, also of those that do not tell.

    Returns:
        The figures, and a warning in plain words where the choice is not above chance.

    Raises:
        DataError: as `choose_heads`.
    """
    own = choose_heads(data)
    rng, blocks = np.random.default_rng(4), _exchangeable(data)
    shuffled = [choose_heads(data, _shuffled(data.right, blocks, rng)) for _ in range(SHUFFLES)]
    by_chance = np.array([choice.auroc for choice in shuffled])
    figures = {
        "telling_items": len(data.right),
        "auroc": round(own.auroc, 4),
        "chance_auroc_mean": round(float(by_chance.mean()), 4),
        "chance_auroc_best": round(float(by_chance.max()), 4),
        "r_best": round(_best_r(own), 4),
        "chance_r_best": round(max(_best_r(choice) for choice in shuffled), 4),
        "shuffles": SHUFFLES,
        "above_chance": bool(own.auroc > by_chance.max()),
    }
    if figures["above_chance"]:
        return figures
    needed = items_needed(own.auroc, by_chance, items)
    return {**figures, "items_needed": needed, "warning": _warning(figures, items, needed)}


def items_needed(auroc: float, by_chance: NDArray[np.float64], items: int) -> int | None:
    """The number of items at which a choice would about be above chance; None if none is in sight.

    What is above the mean of chance stays as the items become more, and the spread of chance
    shrinks with the square root of their number.
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
        f"the chosen heads are no better than chance: they tell right from wrong answers with an"
        f" AUROC of {figures['auroc']:.2f}, and choices on shuffled answers reach"
        f" {figures['chance_auroc_best']:.2f} (mean {figures['chance_auroc_mean']:.2f}). {items:,}"
        f" items, {figures['telling_items']:,} of them telling, are too few; {advice}"
    )


def _best_r(choice: HeadChoice) -> float:
    return float(max(choice.r[list(choice.columns)]))


def _exchangeable(data: HeadData) -> list[Columns]:
    """Blocks of rows whose answers may be exchanged: each (N, S), N clips with S items.

    All rows of a block are of one stratum; items about one clip stay together, because they are
    alike whatever the answers are.
    """
    blocks = []
    for group in groups_of(data.strata):
        _, which = np.unique(data.clips[group], return_inverse=True)
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
