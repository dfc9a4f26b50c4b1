"""Made sounds for honest requests: short, and the same for a seed on every machine."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import soundfile

RATE_HZ = 16_000


@cache
def sound(seed: int, seconds: float = 0.5, container: str = "WAV") -> bytes:
    """A file of two tones and noise."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ  # (samples,) seconds
    tones = sum(np.sin(2 * np.pi * hz * time) for hz in random.uniform(100, 3000, 2))
    samples = 0.2 * tones + 0.05 * random.standard_normal(len(time))
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), RATE_HZ, format=container)
    return file.getvalue()
