"""How well score and effect separate items, and whether the choice of heads matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.attention.taps import Head
from steering.calibration.activations import Activations
from steering.errors import DataError
from steering.evaluation.arms import random_heads
from steering.heads import correlations
from steering.items import Item
from steering.measures import auroc, auroc_against_silence, auroc_within_strata
from steering.model.audio_model import AudioModel
from steering.profile import Profile

RANDOM_SETS = 60


def listening_figures(
    model: AudioModel,
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    effect: NDArray[np.float64],
    seed: int,
) -> dict[str, Any]:
    """AUROC of the listening score: right against wrong within each cue, clip against silence.

    Beside it the effect in bits (I,), the model's own top probability, and random sets of as many
    heads.
    """
    scores = activations.scores(profile.heads, model.num_heads)
    silent = activations.silent_scores(profile.heads, model.num_heads)
    chance = random_scores(model, len(profile.heads), activations, seed)
    strata = [item.stratum for item in items]
    cues: dict[str, Any] = {}
    for cue in sorted({i.cue for i in items if i.wording == "conflict"}, key=_cue_order):
        rows = np.array([i.wording == "conflict" and i.cue == cue for i in items])
        right, top = activations.right[rows], activations.top_probability[rows]
        cues[cue] = {
            "items": int(rows.sum()),
            "auroc": rounded(auroc(scores[rows], right)),
            "effect": rounded(auroc(effect[rows], right)),
            "top_probability": rounded(auroc(top, right)),
            **beside(auroc(scores[rows], right), [auroc(other[rows], right) for other in chance]),
        }
    own = auroc_within_strata(scores, activations.right, strata)
    others = [auroc_within_strata(other, activations.right, strata) for other in chance]
    return {
        "heads": [list(head) for head in profile.heads],
        "right_wrong": rounded(auroc(scores, activations.right)),
        "right_wrong_within_wording": {
            "auroc": rounded(own),
            "effect": rounded(auroc_within_strata(effect, activations.right, strata)),
            **beside(own, others),
            "random_each": [rounded(other) for other in sorted(others)],
        },
        "right_wrong_within_cue_of_conflict": cues,
        "clip_silence": rounded(auroc_against_silence(scores, silent)),
        "mean_right": _mean(scores[activations.right]),
        "mean_wrong": _mean(scores[~activations.right]),
        "mean_silent": _mean(silent),
        "mean_effect_right": _mean(effect[activations.right]),
        "mean_effect_wrong": _mean(effect[~activations.right]),
    }


def random_sets(model: AudioModel, heads: int, seed: int) -> list[list[Head]]:
    """RANDOM_SETS random sets of as many heads; the same seed gives the same."""
    rng = np.random.default_rng([seed, 1])
    return [random_heads(model, heads, rng) for _ in range(RANDOM_SETS)]


def random_scores(
    model: AudioModel, heads: int, activations: Activations, seed: int
) -> list[NDArray[np.float32]]:
    """(I,) listening scores by each of RANDOM_SETS random sets of heads."""
    return [activations.scores(s, model.num_heads) for s in random_sets(model, heads, seed)]


def correlation_map(
    model: AudioModel, items: Sequence[Item], activations: Activations
) -> list[list[float]] | None:
    """L x H: r of each head's audio mass with a right answer, within wordings; None if all answers
    are right or all wrong.
    """
    strata = [item.stratum for item in items]
    try:
        r = correlations(activations.mass, activations.right, strata)
    except DataError:
        return None
    rows: list[list[float]] = r.reshape(model.num_layers, model.num_heads).round(4).tolist()
    return rows


def _cue_order(cue: str) -> tuple[int, str]:
    """Sort key of a cue: weak, medium, strong, then others by name."""
    known = ("weak", "medium", "strong")
    return (known.index(cue) if cue in known else len(known), cue)


def beside(own: float, others: Sequence[float]) -> dict[str, float | None]:
    """Mean, spread and best of random sets, and the share of them below `own`."""
    values = np.array(others)
    above = np.nan if np.isnan(own) else float((own > values).mean())
    return {
        "random_mean": rounded(values.mean()),
        "random_sd": rounded(values.std()),
        "random_best": rounded(values.max()),
        "above_random_share": rounded(above),
    }


def _mean(values: NDArray[np.floating]) -> float | None:
    return rounded(values.mean()) if len(values) else None


def rounded(figure: float | np.floating[Any]) -> float | None:
    """A figure to 4 digits; None if it could not be measured, since JSON has no NaN."""
    return None if np.isnan(figure) else round(float(figure), 4)
