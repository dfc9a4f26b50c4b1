"""Controls by decisive tokens: constant strengths, random layers and heads, other gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.calibration.activations import Activations
from steering.evaluation.arms import ArmStrengths, Strengths, random_layers, rank_matched
from steering.evaluation.figures import gain_percent, percent, share_percent
from steering.evaluation.first_tokens import FirstTokens, divergence, one_token
from steering.evaluation.reweighting import Weights, mixes
from steering.evaluation.separation import random_scores
from steering.items import Item
from steering.measures import ClusterBootstrap, Flags
from steering.model.audio_model import AudioModel
from steering.profile import Profile

LAYER_SETS = 24
GRID = 31  # constant strengths tried, from 0 to half as much again as the profile's largest
_GATES = (  # arms whose strengths are set otherwise than by the score
    "fixed",
    "oracle_fixed",
    "oracle_fixed_natural",
    "wording_only",
    "cue_only",
    "meter_gate",
    "shuffled",
)
WHAT = (
    "whether the token that decides an answer is right, read from stored vectors without further"
    " passes; of scored options only items whose options are one token each"
)


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """All constant strengths, tried on the items that one token judges."""

    tokens: FirstTokens
    strengths: Strengths  # (S,)
    right: NDArray[np.bool_]  # (S, N)
    weights: Mapping[str, Weights]  # (N,) of each mix

    def best(self) -> dict[str, float]:
        """By arm: the best strength on these very items, of equals the smallest."""
        if not len(self.tokens.known.rows):
            return {}
        first = "balanced" if "balanced" in self.weights else "all"
        mixes_of = {"oracle_fixed": first, "oracle_fixed_natural": "natural"}
        return {
            arm: float(self.strengths[int(np.argmax(self.right @ self.weights[mix]))])
            for arm, mix in mixes_of.items()
            if mix in self.weights
        }


def try_constants(
    model: AudioModel, profile: Profile, items: Sequence[Item], activations: Activations, mode: str
) -> Constants:
    """Right decisive tokens at each of GRID constant strengths."""
    known = one_token(model, items, mode)
    tokens = FirstTokens(model, activations, known)
    strengths = np.linspace(0.0, 1.5 * (profile.max_strength or 1.0), GRID).round(4)
    rows = [tokens.right(profile.intervention, np.full(len(known.rows), s)) for s in strengths]
    weights = {mix: weight[known.rows] for mix, weight in mixes(items).items()}
    return Constants(tokens, strengths, np.stack(rows), weights)


def control_figures(
    model: AudioModel,
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    constants: Constants,
    arm_strengths: ArmStrengths,
    seed: int,
) -> dict[str, Any]:
    """Accuracy against constant strength, gates beside the profile's, random layers and heads."""
    known = constants.tokens.known
    figures: dict[str, Any] = {
        "what": WHAT,
        "items": len(known.rows),
        "left_out": len(items) - len(known.rows),
    }
    if not len(known.rows):
        return figures | {"reason": "no item's options are one token each"}
    rows, tokens, weights = known.rows, constants.tokens, constants.weights
    adaptive = arm_strengths.by_arm["adaptive"][rows]
    steered = tokens.right(profile.intervention, adaptive)
    rng = np.random.default_rng([seed, 2])
    layer_sets = [random_layers(model, profile.intervention, rng) for _ in range(LAYER_SETS)]
    by_layers = [
        tokens.right(replace(profile.intervention, layers=layers), adaptive)
        for layers in layer_sets
    ]
    scores = random_scores(model, len(profile.heads), activations, seed)
    by_heads = [tokens.right(profile.intervention, rank_matched(adaptive, s[rows])) for s in scores]
    bootstrap = ClusterBootstrap.of([str(items[i].audio) for i in rows], seed=seed)
    gates = _gates(model, profile, activations, arm_strengths, rows)
    right_by_gate = {
        name: tokens.right(profile.intervention, strengths) for name, strengths in gates.items()
    }
    return figures | {
        "by_strength": _curve(constants),
        "gates": {
            name: _gate_figures(right, steered, weights, bootstrap)
            for name, right in right_by_gate.items()
        },
        "random_layers": _sets(steered, by_layers, weights),
        "random_heads": _sets(steered, by_heads, weights),
    }


def _gate_figures(
    right: Flags, steered: Flags, weights: Mapping[str, Weights], bootstrap: ClusterBootstrap
) -> dict[str, Any]:
    """In each mix: share right by one gate, and the gain of the adaptive arm over it."""
    return {
        mix: share_percent(right, weight)
        | {"gain_of_adaptive": gain_percent(steered, right, weight, bootstrap)}
        for mix, weight in weights.items()
    }


def _gates(
    model: AudioModel,
    profile: Profile,
    activations: Activations,
    arm_strengths: ArmStrengths,
    rows: NDArray[np.int64],
) -> dict[str, Strengths]:
    """(N,) strengths by arm, and the adaptive ones in the order of other signals."""
    adaptive = arm_strengths.by_arm["adaptive"]
    strengths = {"bare": np.zeros(len(rows)), "adaptive": adaptive[rows]}
    strengths |= {
        name: arm_strengths.by_arm[name][rows] for name in _GATES if name in arm_strengths.by_arm
    }
    scores = activations.scores(profile.heads, model.num_heads)
    by_score = rank_matched(adaptive, scores)
    by_divergence = rank_matched(adaptive, divergence(model, activations))
    by_confidence = rank_matched(adaptive, activations.top_probability)
    others = {"score": by_score, "divergence": by_divergence, "confidence": by_confidence}
    return strengths | {name: each[rows] for name, each in others.items()}


def _curve(constants: Constants) -> dict[str, Any]:
    """Share right at each constant strength, in each mix."""
    return {
        "strengths": constants.strengths.tolist(),
        "mixes": {
            mix: [share_percent(right, weight) for right in constants.right]
            for mix, weight in constants.weights.items()
        },
    }


def _sets(
    profile_flags: Flags, random_flags: Sequence[Flags], weights: Mapping[str, Weights]
) -> dict[str, Any]:
    """Mean, spread and best of random sets, and the share of them below the profile's choice."""
    figures: dict[str, Any] = {"sets": len(random_flags)}
    for mix, weight in weights.items():
        shares = np.array([(weight * flags).sum() / weight.sum() for flags in random_flags])
        profile_share = float((weight * profile_flags).sum() / weight.sum())
        figures[mix] = {
            "chosen_percent": percent(profile_share),
            "mean_percent": percent(shares.mean()),
            "sd_percent": percent(shares.std(ddof=1)),
            "best_percent": percent(shares.max()),
            "each_percent": [percent(share) for share in np.sort(shares)],
            "chosen_above_share": round(float((profile_share > shares).mean()), 4),
        }
    return figures
