"""`verify`: every check of a loaded model against plain transformers on the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from steering.kv_slots import KVSlots
from steering.model.audio_model import AudioModel
from steering.verification.findings import Finding
from steering.verification.rows import (
    RAW,
    ROWS,
    check_decode,
    check_rows,
    check_steering,
    tokens_needed,
)
from steering.verification.trial import ERRORS, Trial, check_prompt

_SECONDS = 2.7  # of the clip


def verify(model: AudioModel) -> Iterator[Finding]:
    """Hold a model's prompt, pass, taps, twin, steps and steering against plain transformers.

    Args:
        model: the model, which nobody else uses meanwhile. Nothing is loaded a second time.

    Returns:
        Findings, one a check; on a CPU steps are of rounded sizes where a card records them.
    """
    try:
        trial = Trial.of(model, _SECONDS)
        slots = KVSlots(model, ROWS, tokens_needed(trial), RAW, trial.heads[1::3], rounded=True)
    except ERRORS as error:
        yield Finding("transformers", float("inf"), 0.0, f"{type(error).__name__}: {error}")
        return
    yield from check_prompt(trial)
    yield check_decode(trial)
    yield from check_rows(trial, slots)
    yield check_steering(trial, slots)
