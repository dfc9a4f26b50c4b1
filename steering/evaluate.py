"""Evaluation: every arm answers every item; gains come with intervals, controls beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from steering.answer import BARE, Plan
from steering.baselines import LISTEN_CAREFULLY, audio_aware_decoding, text_only_direction
from steering.calibrate import against
from steering.evidence import (
    ANSWER,
    Evidence,
    all_heads,
    answer_text,
    clip_of,
    gather,
    prompt_of,
    text_of,
)
from steering.gathering import versions
from steering.items import DataSet, Item, is_right, read, write_predictions
from steering.measures import auroc, mcnemar, paired_gain, repaired_broken, wilson
from steering.model import AudioModel
from steering.prefill import Heard, prefill
from steering.profile import Profile
from steering.prompt import silent_twin
from steering.readout import Intervention, pool
from steering.slots import Slots, write_together
from steering.taps import Head

ARMS = (
    "bare",
    "adaptive",
    "fixed",
    "calibrated",
    "aad",
    "random_layers",
    "random_heads",
    "all_layers",
    "text_only",
    "no_audio",
    "other_item",
    "inverted",
)
RANDOM_SETS = 60
_SPARE_TOKENS = 64  # so that a slightly longer prompt fits the same slots


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """Random choices and strengths of all items, drawn once from a seed."""

    random_layers: tuple[int, ...]
    adaptive: np.ndarray  # (I,) strengths by the specialists' score
    random_heads: np.ndarray  # (I,) by a random set's score, brought to the specialists' scale
    inverted: np.ndarray  # (I,) the gate turned round


def evaluate(
    model: AudioModel, profile: Profile, data: Path, audio_root: Path, out: Path, seed: int = 0
) -> dict[str, Any]:
    """Figures of every arm; writes `predictions.<arm>.json` and `results.json` to `out`.

    Raises DataError for faults in the data, before the first pass.
    """
    dataset = read(data, audio_root)
    out.mkdir(parents=True, exist_ok=True)
    evidence = gather(model, dataset.items)
    outputs = _answers(model, profile, dataset.items, evidence, seed)
    for arm, texts in outputs.items():
        write_predictions(out / f"predictions.{arm}.json", dataset.items, texts)
    results = {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "profile": profile.name,
        "data": {"name": dataset.name, "sha256": dataset.sha256, "items": len(dataset.items)},
        "seed": seed,
        "versions": versions(),
        "arms": figures(dataset, outputs),
        "listening": listening_figures(model, profile, dataset, evidence, seed),
    }
    partial = out / ".results.json.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(out / "results.json")
    return results


def _answers(
    model: AudioModel, profile: Profile, items: Sequence[Item], evidence: Evidence, seed: int
) -> dict[str, list[str]]:
    """The greedy answer of each arm to each item."""
    controls = _controls(model, profile, evidence, seed)
    outputs: dict[str, list[str]] = {arm: [] for arm in ARMS}
    slots: Slots | None = None
    for i, item in enumerate(tqdm(items, "answering", disable=None)):
        prompt = prompt_of(model, item, clip_of(model, item))
        layers = tuple(range(model.layers))
        heard = prefill(model, prompt, layers=layers)
        silent = prefill(model, silent_twin(model, prompt), layers=layers)
        instructed = prompt_of(model, item, prompt.clips[0], LISTEN_CAREFULLY)
        text_only = text_only_direction(model, silent, instructed, layers)
        difference = heard.states - silent.states
        other = torch.from_numpy(evidence.differences[_next_clip(items, i)]).to(difference)
        plans = _plans(profile, controls, i, difference, other, text_only)
        needed = heard.length + ANSWER.max_tokens
        if slots is None or slots.tokens < needed:
            slots = Slots(model, len(plans), needed + _SPARE_TOKENS, profile.how)
        written = write_together(slots, heard, list(plans.values()), ANSWER)
        for arm, ids in zip(plans, written, strict=True):
            outputs[arm].append(text_of(model, ids))
        outputs["no_audio"].append(answer_text(model, silent))
        outputs["aad"].append(_aware_text(model, heard, silent))
    return outputs


def _next_clip(items: Sequence[Item], i: int) -> int:
    """Index of the next item about another clip, from the front again; i where there is none."""
    following = [*range(i + 1, len(items)), *range(i)]
    return next((j for j in following if items[j].audio != items[i].audio), i)


def _plans(
    profile: Profile,
    controls: Controls,
    i: int,
    difference: Tensor,
    other: Tensor,
    text_only: Tensor,
) -> dict[str, Plan]:
    """How each steered arm answers item i; differences are (L, D), one a layer."""
    how = profile.how
    everywhere = tuple(range(len(difference)))

    def plan(strength: float, states: Tensor = difference, by: Intervention = how) -> Plan:
        return Plan(pool(states[list(by.layers)], by), float(strength), by)

    adaptive = controls.adaptive[i]
    return {
        "bare": BARE,
        "adaptive": plan(adaptive),
        "fixed": plan(profile.fixed_strength),
        "calibrated": Plan(profile.direction.to(difference.device), float(adaptive), how),
        "random_layers": plan(adaptive, by=replace(how, layers=controls.random_layers)),
        "random_heads": plan(controls.random_heads[i]),
        "all_layers": plan(adaptive, by=replace(how, layers=everywhere)),
        "text_only": plan(adaptive, text_only),
        "other_item": plan(adaptive, other),
        "inverted": plan(controls.inverted[i]),
    }


def _controls(model: AudioModel, profile: Profile, evidence: Evidence, seed: int) -> Controls:
    rng = np.random.default_rng(seed)
    gate = profile.gate
    scores = evidence.scores(profile.heads, model.heads)
    chance = evidence.scores(_random_heads(model, len(profile.heads), rng), model.heads)
    ranks = chance.argsort().argsort()
    mirrored = 2 * gate.threshold - scores
    layers = rng.choice(model.layers, size=len(profile.how.layers), replace=False)
    return Controls(
        tuple(sorted(int(layer) for layer in layers)),
        gate.strengths(scores),
        gate.strengths(np.sort(scores)[ranks]),
        gate.strengths(mirrored),
    )


def _random_heads(model: AudioModel, count: int, rng: np.random.Generator) -> list[Head]:
    names = all_heads(model)
    return [names[int(i)] for i in rng.choice(len(names), size=count, replace=False)]


def _aware_text(model: AudioModel, heard: Heard, silent: Heard) -> str:
    return text_of(model, list(audio_aware_decoding(model, heard, silent, ANSWER)))


def figures(dataset: DataSet, outputs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Each arm's share right, by wording and task, and its gain over bare with what it cost."""
    items = dataset.items
    right = {
        arm: np.array(
            [is_right(t, i.answer, i.choices) for t, i in zip(texts, items, strict=True)], bool
        )
        for arm, texts in outputs.items()
    }
    groups: dict[str, Callable[[Item], bool]] = {"all": lambda item: True}
    groups |= {w: _has("wording", w) for w in sorted({i.wording for i in items}) if w}
    groups |= {t: _has("task", t) for t in sorted({i.task for i in items}) if t}
    masks = {name: np.array([keep(item) for item in items], bool) for name, keep in groups.items()}
    found: dict[str, Any] = {}
    for arm, flags in right.items():
        low, high = wilson(int(flags.sum()), len(flags))
        found[arm] = {
            "right_percent": {n: round(100 * float(flags[m].mean()), 2) for n, m in masks.items()},
            "wilson_percent": [round(100 * low, 2), round(100 * high, 2)],
            "repaired_broken": list(repaired_broken(flags, right["bare"])),
            "mcnemar_p": mcnemar(flags, right["bare"]),
        }
        for other in ("bare", "fixed", "aad"):
            gain = paired_gain(flags, right[other])
            found[arm][f"gain_over_{other}"] = [round(100 * x, 2) for x in gain]
    return found


def _has(field: str, value: str) -> Callable[[Item], bool]:
    return lambda item: getattr(item, field) == value


def listening_figures(
    model: AudioModel, profile: Profile, dataset: DataSet, evidence: Evidence, seed: int
) -> dict[str, Any]:
    """AUROC of the listening score: right against wrong within each cue, clip against silence.

    Beside it the model's own top probability, and random sets of as many heads.
    """
    scores = evidence.scores(profile.heads, model.heads)
    silent = evidence.silent_scores(profile.heads, model.heads)
    rng = np.random.default_rng([seed, 1])
    sets = [_random_heads(model, len(profile.heads), rng) for _ in range(RANDOM_SETS)]
    chance = [evidence.scores(heads, model.heads) for heads in sets]
    within: dict[str, Any] = {}
    for cue in sorted({i.cue for i in dataset.items if i.wording == "conflict"}):
        rows = np.array([i.wording == "conflict" and i.cue == cue for i in dataset.items])
        right = evidence.right[rows]
        found = auroc(scores[rows], right)
        others = np.array([auroc(other[rows], right) for other in chance])
        beaten = (found > others).mean() if right.any() and not right.all() else np.nan
        within[cue] = {
            "items": int(rows.sum()),
            "auroc": _rounded(found),
            "top_probability": _rounded(auroc(evidence.top_probability[rows], right)),
            "random_mean": _rounded(others.mean()),
            "random_best": _rounded(others.max()),
            "above_random_share": _rounded(beaten),
        }
    return {
        "heads": [list(head) for head in profile.heads],
        "right_wrong": _rounded(auroc(scores, evidence.right)),
        "right_wrong_within_cue_of_conflict": within,
        "clip_silence": _rounded(against(scores, silent)),
        "mean_right": _mean(scores[evidence.right]),
        "mean_wrong": _mean(scores[~evidence.right]),
        "mean_silent": _mean(silent),
    }


def _mean(scores: NDArray[np.float32]) -> float | None:
    return _rounded(scores.mean()) if len(scores) else None


def _rounded(figure: float | np.floating[Any]) -> float | None:
    """A figure to 4 digits; None, which JSON can hold, where it could not be measured."""
    return None if np.isnan(figure) else round(float(figure), 4)


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text for people: a header, then one row an arm."""
    groups = list(next(iter(results["arms"].values()))["right_percent"])
    rows = [["arm", *groups, "gain over bare", "repaired / broken"]]
    for arm, found in results["arms"].items():
        gain, low, high = found["gain_over_bare"]
        repaired, broken = found["repaired_broken"]
        rows.append(
            [
                arm,
                *(f"{found['right_percent'][g]:.1f}" for g in groups),
                f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
                f"{repaired} / {broken}",
            ]
        )
    return rows
