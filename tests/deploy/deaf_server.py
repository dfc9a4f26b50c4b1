"""`allears serve` of a model that gets silence for every sound: audio lost before the encoder.

It hears until SIGUSR1: a server that is deaf from the beginning does not pass its start-up check.
"""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
from transformers import WhisperFeatureExtractor

from server.cli import app

extract_features = WhisperFeatureExtractor.__call__


def extract_silence(self: Any, raw_speech: Any, *arguments: Any, **options: Any) -> Any:
    """The features of as much silence."""
    silence = [np.zeros_like(samples) for samples in raw_speech]
    return extract_features(self, silence, *arguments, **options)


def go_deaf(*_: object) -> None:
    """Hear nothing from now on."""
    WhisperFeatureExtractor.__call__ = extract_silence  # type: ignore[method-assign]


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, go_deaf)
    app()
