"""The strength of steering: the less the model listens, the more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FELT_BITS = 0.1  # under this effect the sound is said to do nothing
Reading = Literal["score", "effect"]  # the listening score, or the sound's effect in bits


def gate_input(readings: NDArray[np.floating], reads: Reading) -> NDArray[np.float64]:
    """What a gate's threshold is of: the score itself, of the effect log2(bits + 0.1)."""
    exact = readings.astype(np.float64)
    return np.asarray(np.log2(exact + FELT_BITS)) if reads == "effect" else exact


@dataclass(frozen=True, slots=True)
class Gate:
    """strength(x) = max_strength * sigmoid((threshold - x) / temperature), x of `gate_input`.

    Fitted by calibration; max_strength 0 means that steering did not help this model.
    """

    max_strength: float
    threshold: float
    temperature: float
    reads: Reading = "score"

    def strength(self, reading: float) -> float:
        """Strength in [0, max_strength] for a listening score, or an effect in bits."""
        return float(self.strengths(np.asarray(reading)))

    def strengths(self, readings: NDArray[np.floating]) -> NDArray[np.float64]:
        """The same for an array of readings."""
        inputs = gate_input(readings, self.reads)
        return self.max_strength * sigmoid((self.threshold - inputs) / self.temperature)


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logits)), in a form in which nothing overflows."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
