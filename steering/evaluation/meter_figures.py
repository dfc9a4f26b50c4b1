"""The listening score beside meters of the waveform: what of it a volume meter would show too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations
from steering.evaluation.separation import rounded
from steering.items import Item
from steering.measures import ClusterBootstrap, Flags, aurocs_within_groups, groups_of
from steering.meters.against_heads import REGRESSION
from steering.meters.waveform import METERS
from steering.profile import Profile

ALL, WITHIN = "all", "within wording and cue"
NO_GATE = "no meters in the profile: calibrate again for the regression and its gate"

Groups = Sequence[NDArray[np.int64]]


def meter_figures(
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    scores: NDArray[np.float32],
    effect: NDArray[np.float64],
    seed: int,
) -> dict[str, Any]:
    """AUROC of right against wrong by score, effect, each meter and the regression on all.

    Of all items together, within wordings and cues, and in each of these; beside it the correlation
    of each meter with the score. The best meter is that of these very items, whichever way it
    points: it is favoured. scores (I,), effect (I,) in bits.
    """
    meters = activations.meters
    assert meters is not None
    signals = {"score": scores, "effect": effect, **dict(zip(METERS, meters.T, strict=True))}
    if profile.meter_gate is not None:
        signals[REGRESSION] = profile.meter_gate.regression.log_odds(meters)
    bootstrap = ClusterBootstrap.of([str(item.audio) for item in items], seed=seed)
    return {
        "meters": list(METERS),
        "note": None if profile.meter_gate is not None else NO_GATE,
        "parts": {
            name: _part_figures(signals, activations.right, groups, bootstrap)
            for name, groups in _parts(items).items()
        },
    }


def _parts(items: Sequence[Item]) -> dict[str, Groups]:
    """Groups of items that are compared with each other, by what they have in common."""
    parts: dict[str, Groups] = {ALL: [np.arange(len(items))]}
    strata = [item.stratum for item in items]
    if not any(strata):
        return parts
    names, groups = np.unique(strata).tolist(), groups_of(strata)
    parts[WITHIN] = groups
    for wording in sorted({item.wording for item in items} - {""}):
        own = [rows for rows in groups if items[rows[0]].wording == wording]
        if len(own) > 1:
            parts[f"{wording}, within cue"] = own
    return parts | {name.strip("/"): [rows] for name, rows in zip(names, groups, strict=True)}


def _part_figures(
    signals: dict[str, NDArray[Any]], right: Flags, groups: Groups, bootstrap: ClusterBootstrap
) -> dict[str, Any]:
    columns = np.column_stack(list(signals.values()))
    values = aurocs_within_groups(columns, right, groups)
    auroc = dict(zip(signals, values.tolist(), strict=True))
    best = max(METERS, key=lambda name: abs(auroc[name] - 0.5))
    rows = np.concatenate(groups)

    def lead_over(other: NDArray[Any]) -> list[float | None]:
        """Difference of the two AUROCs, and its 95 % interval."""
        lead = bootstrap.auroc_difference((signals["score"], other), right, groups)
        return [rounded(value) for value in lead]

    turned = signals[best] * (-1 if auroc[best] < 0.5 else 1)
    regression = signals.get(REGRESSION)
    return {
        "items": len(rows),
        "right_percent": rounded(100 * right[rows].mean()),
        "auroc": {REGRESSION: None} | {name: rounded(value) for name, value in auroc.items()},
        "best_meter": None if np.isnan(auroc[best]) else best,
        "score_over_best_meter": lead_over(turned),
        "score_over_regression": None if regression is None else lead_over(regression),
        "correlation_with_score": _correlations(signals, groups),
    }


def _correlations(signals: dict[str, NDArray[Any]], groups: Groups) -> dict[str, float | None]:
    """Pearson r of the score with each other signal, the means of the groups taken out."""
    centred = {}
    for name, values in signals.items():
        parts = [values[rows].astype(np.float64) for rows in groups]
        centred[name] = np.concatenate([part - part.mean() for part in parts])
    score = centred.pop("score")
    norms = {name: float(np.sqrt((score @ score) * (x @ x))) for name, x in centred.items()}
    return {
        name: rounded(float(score @ x) / norms[name] if norms[name] > 0 else np.nan)
        for name, x in centred.items()
    }
