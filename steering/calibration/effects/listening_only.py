"""A profile of the score alone, from items without answers: heads by effect, no strength.

Whether steering helps can be told by right answers only. So the profile says how far the model
listens, and refuses to steer.
"""

from __future__ import annotations

import numpy as np
import torch

from steering.calibration.activations import all_heads, head_columns
from steering.calibration.assembly import FittedProfile
from steering.calibration.effects.effect_heads import (
    EffectData,
    choose_by_effect,
    effect_against_chance,
)
from steering.calibration.effects.token_effects import TokenEffects
from steering.calibration.search import BY_EFFECT, FittedSettings
from steering.model.audio_model import AudioModel
from steering.readout import Intervention, pool
from steering.strength import Gate

REFUSAL = (
    "calibrated without answers, by the effect of the sound: without them no strength can be fitted"
)


def fit_listening(model: AudioModel, effects: TokenEffects, data: EffectData) -> FittedProfile:
    """Heads by effect, their scores, and the mean direction of their layers.

    The verdicts are fitted to which answers' first tokens the sound decides.
    """
    choice = choose_by_effect(data)
    heads = tuple(all_heads(model)[column] for column in choice.columns)
    mass = np.array(effects.mass[:, 0, head_columns(heads, model.num_heads)])  # (I, N)
    intervention = Intervention(tuple(sorted({layer for layer, _ in heads})))
    differences = [effects.differences[:, layer].mean(0) for layer in intervention.layers]
    best = FittedSettings(
        heads,
        tuple(float(choice.r[column]) for column in choice.columns),
        intervention,
        {"score": Gate(0.0, float(np.median(mass.mean(1))), 1.0)},
        0.0,
    )
    return FittedProfile(
        best,
        mass,
        pool(torch.from_numpy(np.stack(differences)), intervention),
        data.decided_first,
        {
            "heads_optimise": BY_EFFECT,
            "head_choice": effect_against_chance(data),
            "settings_tried": choice.tried,
        },
        {},
        REFUSAL,
        "ladder",
    )
