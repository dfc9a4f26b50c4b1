"""The two silent twins side by side: cut from a ladder of silences, and as long as the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steering.attention.taps import Head
from steering.calibration.activations import Activations, pooled_directions
from steering.readout import Intervention
from steering.silence_cache import Ladder

_EDGES_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # lengths that are told apart


def with_exact_twins(activations: Activations) -> Activations:
    """The activations as they are with silence as long as each clip."""
    assert activations.exact_differences is not None and activations.exact_mass is not None
    return replace(
        activations,
        differences=activations.exact_differences,
        silent_mass=activations.exact_mass,
    )


def likeness(
    activations: Activations,
    intervention: Intervention,
    heads: Sequence[Head],
    heads_a_layer: int,
) -> dict[str, Any]:
    """Cosine of the two directions by length of the clip, and how far silence's scores part."""
    exact = with_exact_twins(activations)
    pairs = [pooled_directions(one, intervention).numpy() for one in (activations, exact)]
    lengths = [np.linalg.norm(one, axis=1).clip(1e-12) for one in pairs]
    cosine = (pairs[0] * pairs[1]).sum(1) / (lengths[0] * lengths[1])  # (I,)
    scores = [one.silent_scores(heads, heads_a_layer) for one in (activations, exact)]
    assert activations.seconds is not None
    band = np.searchsorted(_EDGES_SECONDS, activations.seconds, side="right") - 1
    by_length = [
        {
            "from_seconds": _EDGES_SECONDS[i],
            "items": int((band == i).sum()),
            "mean": round(float(cosine[band == i].mean()), 6),
            "lowest": round(float(cosine[band == i].min()), 6),
        }
        for i in np.unique(band)
    ]
    return {
        "items": len(cosine),
        "ratio_of_lengths": 2 ** (1 / Ladder().steps),
        "cosine_with_exact": by_length,
        "silence_score_difference": round(float(np.abs(scores[0] - scores[1]).mean()), 6),
    }
