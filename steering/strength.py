"""The strength of steering: the less the model listens, the more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Gate:
    """strength(score) = max_strength * sigmoid((threshold - score) / temperature).

    Fitted by calibration; max_strength 0 means that steering did not help this model.
    """

    max_strength: float
    threshold: float
    temperature: float

    def strength(self, score: float) -> float:
        """Strength in [0, max_strength] for a listening score."""
        return float(self.strengths(np.asarray(score)))

    def strengths(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """The same for an array of scores."""
        logits = (self.threshold - scores.astype(np.float64)) / self.temperature
        sigmoid = 0.5 * (1 + np.tanh(logits / 2))  # in this form nothing overflows
        return np.asarray(self.max_strength * sigmoid)
