"""Whether the timeline points at the sound: its mass inside the events against their length.

The share of the score's audio mass inside an event, over the event's share of the clip: 1 is what a
look at everything alike gives. The effect by time is judged in the same way: what the answer's
distribution loses when one stretch of the clip is made silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from steering.calibration.activations import (
    Activations,
    all_heads,
    build_item_prompt,
    head_columns,
    load_item_clip,
)
from steering.clip_attribution import equal_stretches
from steering.decision import stretch_effects
from steering.evaluation.separation import random_sets, rounded
from steering.heads import inside_events
from steering.items import Item
from steering.measures import ClusterBootstrap, groups_of
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.profile import Profile

STRETCHES = 10  # of a clip, made silent one at a time
EFFECT_CLIPS = 100  # for which that is done: each is a pass for every stretch
LOCALISES = 2.0  # ratio from which on a timeline is said to point at the events


def localisation_figures(
    model: AudioModel,
    profile: Profile,
    items: Sequence[Item],
    activations: Activations,
    seed: int,
) -> dict[str, Any] | None:
    """Medians over clips of mass inside the events, the events' share, and their ratio.

    By the profile's heads, by random sets of as many, by the one head that is best on these very
    items, and by the effect of stretches. None where no item knows its events.
    """
    share, inside = activations.event_share, activations.event_mass
    assert share is not None and inside is not None
    rows = np.flatnonzero(share > 0)  # NaN is not; an event behind the window was not heard
    if not len(rows):
        return None
    names = [str(items[i].audio) for i in rows.tolist()]
    clips, bootstrap = groups_of(names), ClusterBootstrap.of(names, seed=seed)

    def ratios(columns: list[int]) -> NDArray[np.float64]:
        """(I,) of the mean of some heads."""
        mass = inside[rows][:, columns].mean(1, dtype=np.float64)
        whole = activations.mass[rows][:, columns].mean(1, dtype=np.float64)
        return np.asarray(mass / whole.clip(1e-12) / share[rows])

    own = ratios(head_columns(profile.heads, model.num_heads))
    single = [_median(ratios([column]), clips) for column in range(inside.shape[1])]
    best = int(np.argmax(single))
    chance = [
        _median(ratios(head_columns(heads, model.num_heads)), clips)
        for heads in random_sets(model, len(profile.heads), seed)
    ]
    ratio = _median(own, clips)
    effect = _effect_figures(model, items, rows, seed)
    return {
        "items": len(rows),
        "clips": len(clips),
        "event_share": rounded(_median(share[rows], clips)),
        "mass_share": rounded(_median(own * share[rows], clips)),
        "ratio": [rounded(x) for x in (ratio, *_interval(own, bootstrap))],
        "localises": bool(ratio >= LOCALISES),
        "words": _words(ratio, effect),
        "random_heads": {
            "mean": rounded(float(np.mean(chance))),
            "best": rounded(float(np.max(chance))),
        },
        "best_head": {"head": list(all_heads(model)[best]), "ratio": rounded(single[best])},
        "effect_by_time": effect,
    }


def _effect_figures(
    model: AudioModel, items: Sequence[Item], rows: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """The same of the effect by time, of one item of each of up to EFFECT_CLIPS clips."""
    names = [str(items[i].audio) for i in rows]
    firsts = rows[np.sort(np.unique(names, return_index=True)[1])][:EFFECT_CLIPS]
    pairs = [_effect_inside(model, items[i]) for i in tqdm(firsts, "stretches", disable=None)]
    share, mass = np.array(pairs, np.float64).T
    known = np.isfinite(mass) & (share > 0)  # where nothing has an effect there is none to share
    if not known.any():
        return {"stretches": STRETCHES, "clips": 0}
    clips = [np.array([i]) for i in range(int(known.sum()))]
    ratio = mass[known] / share[known]
    bootstrap = ClusterBootstrap.of([f"{i:04d}" for i in range(len(ratio))], seed=seed)
    return {
        "stretches": STRETCHES,
        "clips": len(clips),
        "event_share": rounded(_median(share[known], clips)),
        "effect_share": rounded(_median(mass[known], clips)),
        "ratio": [rounded(x) for x in (_median(ratio, clips), *_interval(ratio, bootstrap))],
        "localises": bool(_median(ratio, clips) >= LOCALISES),
    }


def _effect_inside(model: AudioModel, item: Item) -> tuple[float, float]:
    """The events' share of a clip, and the share of the effect by time inside them."""
    prompt = build_item_prompt(model, item, load_item_clip(model, item))
    stretches = equal_stretches(prompt, 0, STRETCHES)
    bits = stretch_effects(model, prompt, prefill(model, prompt), 0, stretches)
    hop_seconds = prompt.heard_seconds[0] / STRETCHES
    inside = inside_events(item.events, STRETCHES, hop_seconds)
    total = float(bits.sum())
    return float(inside.mean()), float(bits @ inside) / total if total > 0 else np.nan


def _words(ratio: float, effect: Mapping[str, Any]) -> str:
    """Whether attention and effect point at the events, in plain words."""
    attention = (
        f"The specialists' attention points at the events: {ratio:.1f} times their share."
        if ratio >= LOCALISES
        else f"The specialists' attention does not localise: {ratio:.1f} times the events' share,"
        f" {LOCALISES:g} are asked for."
    )
    if not effect["clips"]:
        return f"{attention} No stretch of a clip has an effect."
    verb = "does" if effect["localises"] else "does not either" if ratio < LOCALISES else "does not"
    return f"{attention} The effect by time {verb}: {effect['ratio'][0]:.1f} times."


def _median(values: NDArray[np.floating], clips: Sequence[NDArray[np.int64]]) -> float:
    """The median over clips of the mean of each one's items."""
    return float(np.median([values[rows].mean() for rows in clips]))


def _interval(values: NDArray[np.floating], bootstrap: ClusterBootstrap) -> tuple[float, float]:
    """95 % interval of that median, the clips drawn anew."""
    count = bootstrap.counts.shape[1]
    means = np.bincount(bootstrap.which, values, count) / np.bincount(bootstrap.which)
    order = np.argsort(means)
    reached = bootstrap.counts[:, order].cumsum(1)
    middle = (reached >= count / 2).argmax(1)
    low, high = np.quantile(means[order][middle], [0.025, 0.975])
    return float(low), float(high)
