"""How strongly to steer: the less the model listens, the more."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
        logit = (self.threshold - score) / self.temperature
        return self.max_strength / (1.0 + math.exp(-max(-60.0, min(60.0, logit))))
