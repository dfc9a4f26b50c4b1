"""The result of one row of a batch in a user's own `generate`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steering.decision import Listening, Steering


@dataclass(frozen=True, slots=True, eq=False)
class RowResult:
    """Listening measurements of one row, and how strongly its answer is steered."""

    score: float  # in [0, 1]
    percentile: float  # in the profile's calibration set
    verdict: str  # not_listening, partly_listening, listening
    strength: float  # 0: bare
    reason: str | None  # why it is bare; None where it is steered
    silence_score: float | None  # of the silent twin; None where none was run
    timeline: NDArray[np.float32]  # (F,) sums to the score
    masses: NDArray[np.float32]  # (N,) audio mass of each of the profile's heads
    effect_bits: float | None = None  # of the sound on the bare answer; None where no twin was run


def row_result(listening: Listening, steering: Steering) -> RowResult:
    """The row's result from its measurements and its decision."""
    assert listening.score is not None
    assert listening.percentile is not None
    return RowResult(
        score=listening.score,
        percentile=listening.percentile,
        verdict=listening.verdict,
        strength=steering.strength,
        reason=steering.reason,
        silence_score=listening.silence_score,
        timeline=listening.timeline,
        masses=np.array([mass for _, _, mass in listening.heads], np.float32),
        effect_bits=listening.effect_bits,
    )
