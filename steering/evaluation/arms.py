"""Arms: the variants in which every item is answered, and their strength for each item.

The first four are served; the others are baselines to beat and controls that explain the gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from steering.attention.taps import Head
from steering.calibration.activations import Activations, all_heads
from steering.calibration.effects.first_effects import first_effects
from steering.generation import UNSTEERED, SteeringPlan
from steering.items import Item
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.readout import Intervention, pool

Strengths = NDArray[np.float64]

ARMS: Mapping[str, str] = {
    "bare": "not steered",
    "adaptive": "steered as far as the profile's gate says",
    "fixed": "steered by the profile's best constant strength",
    "calibrated": "adaptive, along the profile's stored direction",
    "aad": "Audio-Aware Decoding: two branches at every token",
    "random_layers": "adaptive, direction from as many random layers",
    "random_heads": "the adaptive strengths, handed out by a random set of heads",
    "all_layers": "adaptive, direction from all layers",
    "text_only": "adaptive, direction from an instruction to listen, without sound",
    "no_audio": "not steered, silence as the clip",
    "other_item": "adaptive, direction of another item's clip",
    "inverted": "the gate turned round: the more it listens, the more it is steered",
    "permuted_bare": "not steered, options in another order",
    "permuted_adaptive": "adaptive, options in another order",
    "wording_only": "the gate at the mean reading of the item's wording and cue",
    "cue_only": "the gate at the mean reading of the item's cue, right or wrong",
    "meter_gate": "a gate fed by meters of the waveform (level, length, spectrum), not the score",
    "shuffled": "the adaptive strengths, shuffled among items of one wording and cue",
    "oracle_fixed": "the constant strength that is best on these very items",
    "oracle_fixed_natural": "the same for the natural mix",
}
PERMUTED_ARMS = ("permuted_bare", "permuted_adaptive")


@dataclass(frozen=True, slots=True, eq=False)
class ArmStrengths:
    """Strengths of every item by arm, and the layers drawn at random."""

    by_arm: Mapping[str, Strengths]  # (I,) each
    random_layers: tuple[int, ...]


def choose_strengths(
    model: AudioModel,
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    seed: int,
    oracles: Mapping[str, float],
) -> ArmStrengths:
    """The strength of each arm for each item; `oracles` are constant strengths by arm."""
    rng = np.random.default_rng(seed)
    count = len(items)
    readings = gate_readings(model, profile, activations)
    adaptive = profile.gate.strengths(readings)
    chance = activations.scores(random_heads(model, len(profile.heads), rng), model.num_heads)
    strata = np.array([item.stratum for item in items])
    by_arm = {
        "fixed": np.full(count, profile.fixed_strength),
        "random_heads": rank_matched(adaptive, chance),
        "inverted": profile.gate.max_strength - adaptive,
        "shuffled": shuffled(adaptive, strata, rng),
        **{arm: np.full(count, strength) for arm, strength in oracles.items()},
    }
    by_arm |= {arm: adaptive for arm in _AS_ADAPTIVE}
    if profile.meter_gate is not None and activations.meters is not None:
        by_arm["meter_gate"] = profile.meter_gate.strengths(activations.meters)
    if any(strata):
        cues = np.array([item.cue for item in items])
        by_arm["wording_only"] = profile.gate.strengths(group_means(readings, strata))
        by_arm["cue_only"] = profile.gate.strengths(group_means(readings, cues))
    return ArmStrengths(by_arm, random_layers(model, profile.intervention, rng))


_AS_ADAPTIVE = (
    "adaptive",
    "calibrated",
    "random_layers",
    "all_layers",
    "text_only",
    "other_item",
)


def random_heads(model: AudioModel, count: int, rng: np.random.Generator) -> list[Head]:
    """A number of different heads, drawn at random."""
    names = all_heads(model)
    return [names[int(i)] for i in rng.choice(len(names), size=count, replace=False)]


def random_layers(
    model: AudioModel, intervention: Intervention, rng: np.random.Generator
) -> tuple[int, ...]:
    """As many different layers as the intervention has, drawn at random."""
    drawn = rng.choice(model.num_layers, size=len(intervention.layers), replace=False)
    return tuple(sorted(int(layer) for layer in drawn))


def rank_matched(strengths: Strengths, scores: NDArray[np.floating]) -> Strengths:
    """(I,) the same strengths in another order: the lowest of these scores gets the largest."""
    ranks = scores.argsort(kind="stable").argsort(kind="stable")
    return np.asarray(np.sort(strengths)[::-1][ranks])


def shuffled(strengths: Strengths, groups: NDArray[np.str_], rng: np.random.Generator) -> Strengths:
    """(I,) the same strengths, exchanged at random between items of one group."""
    exchanged = strengths.copy()
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        exchanged[rows] = strengths[rng.permutation(rows)]
    return exchanged


def gate_readings(
    model: AudioModel, profile: Profile, activations: Activations
) -> NDArray[np.floating]:
    """(I,) what the profile's gate reads of each item: its score, or the effect of its clip."""
    if profile.gate.reads == "effect":
        return first_effects(model, activations)
    return activations.scores(profile.heads, model.num_heads)


def group_means(readings: NDArray[np.floating], groups: NDArray[np.str_]) -> NDArray[np.floating]:
    """(I,) the mean reading of each item's group."""
    means = np.empty_like(readings)
    for group in np.unique(groups):
        means[groups == group] = readings[groups == group].mean()
    return means


@dataclass(frozen=True, slots=True, eq=False)
class Differences:
    """The states that the directions of one item are made from, (L, D) each, one row a layer."""

    clip: Tensor  # (L, D) the clip minus its silence
    other_clip: Tensor  # (L, D) the same of another item's clip
    text_only: Tensor  # (L, D) with an instruction to listen minus without, both on silence


def plans(
    profile: Profile, arm_strengths: ArmStrengths, i: int, differences: Differences
) -> dict[str, SteeringPlan]:
    """The plan of each arm that is one forward pass and a readout, for item i."""
    own = profile.intervention
    every = replace(own, layers=tuple(range(len(differences.clip))))
    drawn = replace(own, layers=arm_strengths.random_layers)
    sources = {
        "text_only": (differences.text_only, own),
        "other_item": (differences.other_clip, own),
        "all_layers": (differences.clip, every),
        "random_layers": (differences.clip, drawn),
    }
    plan_by_arm = {"bare": UNSTEERED}
    for arm, strengths in arm_strengths.by_arm.items():
        states, intervention = sources.get(arm, (differences.clip, own))
        direction = pool(states[list(intervention.layers)], intervention)
        if arm == "calibrated":
            direction = profile.direction.to(direction.device)
        plan_by_arm[arm] = SteeringPlan(direction, float(strengths[i]), intervention)
    return plan_by_arm


def another_clip(items: Sequence[Item], i: int) -> int:
    """Index of the next item about another clip, cyclically; i if there is none."""
    following = [*range(i + 1, len(items)), *range(i)]
    return next((j for j in following if items[j].audio != items[i].audio), i)


def permuted(item: Item, seed: int) -> Item:
    """The item with its options in another order; the same seed gives the same."""
    count = len(item.choices)
    order = np.random.default_rng([seed, *item.id.encode()]).permutation(count)
    if (order == np.arange(count)).all():
        order = np.roll(order, 1)
    return replace(item, choices=tuple(item.choices[int(k)] for k in order))
