"""A profile, items and evidence by hand, which the tests of evaluation share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from steering.calibration.activations import Activations
from steering.heads import Verdicts
from steering.items import Item
from steering.meters.regression import MeterGate, MeterRegression
from steering.meters.waveform import METERS
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.readout import Intervention
from steering.strength import Gate

HEADS = ((1, 3), (2, 6), (0, 1))


def profile_of(model: AudioModel) -> Profile:
    """A profile that fits, with a gate in the middle of the scores of an untrained model."""
    return Profile(
        name="mine",
        model=model.name,
        revision=None,
        fingerprint=model.fingerprint,
        family=model.family.name,
        heads=HEADS,
        correlations=(0.3, 0.2, 0.1),
        intervention=Intervention(layers=(1, 2)),
        gate=Gate(2.0, 0.3, 0.1),
        fixed_strength=1.2,
        verdicts=Verdicts(0.2, 0.4),
        calibration={},
        held_out={},
        versions={},
        direction=torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(0)),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        head_mean=np.full(3, 0.3, np.float32),
        head_std=np.full(3, 0.1, np.float32),
        silence="exact",  # as passes by hand take it
        meter_gate=MeterGate(
            MeterRegression((-6.0, -9.0, 0.6, 1000, 5, 2000), (1.0,) * 6, (0.4,) * 6, 0.0),
            Gate(1.8, 0.0, 100.0),
        ),
    )


def item(name: str, wording: str = "", task: str = "sound", cue: str = "", **more: Any) -> Item:
    """An item about a clip of its own."""
    choices = ("dog", "cow", "cat")
    return Item(name, Path(f"{name}.wav"), "Which?", choices, "dog", task, wording, cue, dict(more))


def activations(model: AudioModel, count: int) -> Activations:
    """Random numbers; the profile's heads see which answers are right."""
    rng = np.random.default_rng(2)
    right = rng.random(count) < 0.5
    mass = rng.random((count, model.num_layers * model.num_heads)).astype(np.float32)
    mass[:, [11, 22, 1]] += 0.5 * right[:, None].astype(np.float32)
    shape = (count, model.num_layers, model.hidden_size)
    final = rng.standard_normal((count, model.hidden_size)).astype(np.float32)
    return Activations(
        mass=mass,
        silent_mass=mass - 3,
        differences=rng.standard_normal(shape).astype(np.float32),
        final=final,
        deciding=final,
        right_tokens=np.zeros((count, 1), np.int64),
        right=right,
        form=np.zeros(count, np.int64),
        top_probability=rng.random(count).astype(np.float32),
        meters=rng.standard_normal((count, len(METERS))).astype(np.float32),
        event_mass=(mass / 2).astype(np.float32),
        event_share=np.full(count, 0.5, np.float32),
    )
