"""Score against effect, by token of open answers and by item, for several sets of heads.

The profile's own heads were chosen on other clips. The other criterion's are chosen here, on half
of the clips, and judged on the other half, and the same the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations, head_columns
from steering.calibration.effects.effect_heads import (
    DECIDED_BITS,
    EffectData,
    choose_by_effect,
)
from steering.calibration.effects.token_effects import TokenEffects
from steering.calibration.specialists import (
    CORRECTNESS,
    EFFECT,
    HeadData,
    choose_heads,
    half_of_clips,
)
from steering.decision import FELT_BITS
from steering.errors import DataError
from steering.evaluation.arms import random_heads
from steering.evaluation.predictions import csv_text
from steering.evaluation.separation import RANDOM_SETS, beside, rounded
from steering.items import DataSet, Item
from steering.measures import auroc_within_strata, rank_correlation_within_strata
from steering.model.audio_model import AudioModel
from steering.profile import Profile

_SHOWN = ("auroc", "rank_correlation")

Flags = NDArray[np.bool_]
Scores = NDArray[np.float32]


def open_questions(dataset: DataSet, question: str) -> DataSet:
    """An open question about every clip of a data set."""
    first: dict[Path, Item] = {}
    for item in dataset.items:
        first.setdefault(item.audio, item)
    items = tuple(
        replace(item, question=question, choices=(), answer="", wording="", cue="")
        for item in first.values()
    )
    key = sha256(f"{dataset.sha256} {question}".encode()).hexdigest()
    return replace(dataset, items=items, sha256=key)


@dataclass(frozen=True, slots=True, eq=False)
class JudgedPlaces:
    """N places of answers at which scores are set against effects."""

    data: EffectData
    halves: Flags  # (N,) in which half of the clips each is
    strata: Sequence[str]  # (N,)

    @classmethod
    def of(cls, data: EffectData, first: Mapping[str, bool]) -> JudgedPlaces:
        """The places of some data; `first` tells the half of each clip."""
        half = np.array([first[clip] for clip in data.clips])
        return cls(data, half[data.item], data.place_strata)

    def score(self, columns: Sequence[Sequence[int]]) -> Scores:
        """(N,) scores by the heads of each half."""
        both = [self.data.mass[:, list(each)].mean(1) for each in columns]
        return np.asarray(np.where(self.halves, both[1], both[0]))

    def figures(self, score: Scores) -> dict[str, float | None]:
        """AUROC at DECIDED_BITS and rank correlation, within strata and halves."""
        strata = [f"{s}/{half}" for s, half in zip(self.strata, self.halves, strict=True)]
        decided = self.data.effect >= DECIDED_BITS
        return {
            "auroc": rounded(auroc_within_strata(score, decided, strata)),
            "rank_correlation": rounded(
                rank_correlation_within_strata(score, self.data.effect, strata)
            ),
        }


def effect_figures(
    model: AudioModel,
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    effect: NDArray[np.float64],
    opened: EffectData,
    seed: int,
) -> dict[str, Any]:
    """Score against effect of the profile's heads, of the other criterion's, and of random ones.

    `effect` (I,) is of the items' first tokens, `opened` of all tokens of open answers about the
    same clips.
    """
    own = EffectData(
        np.asarray(activations.mass),
        effect.astype(np.float32),
        np.arange(len(items)),
        np.zeros(len(items), np.int64),
        tuple(item.stratum for item in items),
        np.array([str(item.audio) for item in items]),
    )
    clips = np.unique(own.clips)
    flags = half_of_clips(clips, np.random.default_rng([seed, 3]))
    first = dict(zip(clips.tolist(), flags.tolist(), strict=True))
    places = {"tokens": JudgedPlaces.of(opened, first), "items": JudgedPlaces.of(own, first)}
    columns = head_columns(profile.heads, model.num_heads)
    other = _other_heads(profile, items, activations, places)
    rng = np.random.default_rng([seed, 1])
    drawn = [random_heads(model, len(columns), rng) for _ in range(RANDOM_SETS)]
    chance = [head_columns(heads, model.num_heads) for heads in drawn]
    figures: dict[str, Any] = {"criterion": profile.criterion, "decided_bits": DECIDED_BITS}
    for name, judged in places.items():
        sets = {profile.criterion: [columns, columns], **other[name]}
        figures[name] = _spread(judged.data.effect) | {"sets": _beside_random(judged, sets, chance)}
    for name, columns_of in {profile.criterion: [columns, columns], **other["items"]}.items():
        score = places["items"].score(columns_of)
        within = auroc_within_strata(score, activations.right, places["items"].strata)
        figures["items"]["sets"][name]["right_wrong"] = rounded(within)
    figures["items"]["by_wording"] = _by_wording(places["items"], items, columns)
    return figures


def _other_heads(
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    places: Mapping[str, JudgedPlaces],
) -> dict[str, dict[str, list[list[int]]]]:
    """By kind of places: columns of the other criterion's heads for each half, chosen on the other
    half; none where they can't be chosen.
    """
    wanted = CORRECTNESS if profile.criterion == EFFECT else EFFECT
    chosen: dict[str, dict[str, list[list[int]]]] = {}
    for name, judged in places.items():
        half = places["items"].halves if wanted == CORRECTNESS else _of_items(judged)
        chosen[name] = {}
        with suppress(DataError):
            chosen[name][wanted] = [
                _chosen(wanted, items, activations, judged.data, np.flatnonzero(half != mine))
                for mine in (False, True)
            ]
    return chosen


def _of_items(judged: JudgedPlaces) -> Flags:
    """(I,) the half of each item that has places."""
    return judged.halves[np.flatnonzero(judged.data.place == 0)]


def _chosen(
    criterion: str,
    items: Sequence[Item],
    activations: Activations,
    data: EffectData,
    rows: NDArray[np.int64],
) -> list[int]:
    """Columns of the heads that a criterion chooses on some items."""
    if criterion == EFFECT:
        return list(choose_by_effect(data.select(rows)).columns)
    some = HeadData.of(activations.select(rows), [items[int(i)] for i in rows])
    return list(choose_heads(some).columns)


def _spread(effect: Scores) -> dict[str, Any]:
    """Number of effects, and how large they are."""
    return {
        "count": len(effect),
        "decided_share": rounded((effect >= DECIDED_BITS).mean()),
        "unfelt_share": rounded((effect < FELT_BITS).mean()),
        "median_bits": rounded(np.median(effect)),
    }


def _beside_random(
    judged: JudgedPlaces,
    sets: Mapping[str, list[list[int]]],
    chance: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Figures of each set of heads, beside those of the random ones."""
    by_chance = [judged.figures(judged.score([each, each])) for each in chance]
    aurocs = [_number(each["auroc"]) for each in by_chance]
    figures: dict[str, Any] = {}
    for name, columns in sets.items():
        own = judged.figures(judged.score(columns))
        heads = float(np.mean([len(each) for each in columns]))
        figures[name] = {"heads": heads, **own, **beside(_number(own["auroc"]), aurocs)}
    figures["random"] = {
        "sets": len(chance),
        "auroc": rounded(np.mean(aurocs)),
        "rank_correlation": rounded(
            np.mean([_number(each["rank_correlation"]) for each in by_chance])
        ),
        "each": sorted(auroc for auroc in aurocs if np.isfinite(auroc)),
    }
    return figures


def _by_wording(
    judged: JudgedPlaces, items: Sequence[Item], columns: list[int]
) -> dict[str, dict[str, Any]]:
    """The profile's figures among the items of each wording, within cues."""
    figures = {}
    score = judged.score([columns, columns])
    for wording in sorted({item.wording for item in items if item.wording}):
        rows = np.array([item.wording == wording for item in items])
        strata = [s for s, wanted in zip(judged.strata, rows, strict=True) if wanted]
        effect = judged.data.effect[rows]
        figures[wording] = _spread(effect) | {
            "auroc": rounded(auroc_within_strata(score[rows], effect >= DECIDED_BITS, strata)),
            "rank_correlation": rounded(
                rank_correlation_within_strata(score[rows], effect, strata)
            ),
        }
    return figures


def effect_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text for people: a header, then one row for each set of heads."""
    tokens, items = (results["effect"][name]["sets"] for name in ("tokens", "items"))
    rows = [["heads by", "heads", "tokens", "rank r", "items", "rank r", "right / wrong"]]
    for name in dict.fromkeys([*tokens, *items]):
        figures = [
            tokens.get(name, {}).get("heads", items.get(name, {}).get("heads")),
            *(part.get(name, {}).get(key) for part in (tokens, items) for key in _SHOWN),
            items.get(name, {}).get("right_wrong"),
        ]
        shown = ["?" if figure is None else f"{figure:.3g}" for figure in figures]
        rows.append([name, *shown])
    return rows


def tokens_csv(model: AudioModel, profile: Profile, opened: DataSet, effects: TokenEffects) -> str:
    """CSV: every token of every open answer, with its score and its effect in bits."""
    columns = head_columns(profile.heads, model.num_heads)
    rows: list[list[Any]] = [["id", "audio", "place", "token", "score", "effect_bits"]]
    for i, item in enumerate(opened.items):
        for k in range(int(effects.places[i])):
            token = int(effects.token_ids[i, k])
            text = model.processor.tokenizer.decode([token]) if token >= 0 else ""
            score = float(effects.mass[i, k, columns].mean())
            numbers = round(score, 5), round(float(effects.effect[i, k]), 4)
            rows.append([item.id, item.audio.name, k, text, *numbers])
    return csv_text(rows)


def _number(figure: float | None) -> float:
    return float("nan") if figure is None else figure
