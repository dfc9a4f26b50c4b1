"""Faults to plant in the real functions, and who must catch them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from steering import kv_slots, prefill, prompt, readout, silence
from steering.attention import taps
from steering.kv_slots import KVSlots, Row
from steering.model.passes import Passes
from steering.silence_cache import SilenceCache

Patch = pytest.MonkeyPatch


def change(patch: Patch, owner: Any, name: str, changed: Callable[..., Any]) -> None:
    """`changed` in place of a function, which it is given first."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **options: changed(original, *args, **options))


def no_mask(patch: Patch) -> None:
    """The prompt's tokens see those that follow them."""

    def blind(original: Any, module: Any, q: Tensor, *rest: Any, **options: Any) -> Any:
        if q.shape[2] > 1 and rest[2] is None:
            options["is_causal"] = False
        return original(module, q, *rest, **options)

    change(patch, taps, "sdpa_attention_forward", blind)


def mask_of_the_question(patch: Patch) -> None:
    """The question's tokens behind silence see the next token in place of themselves."""

    def ahead(original: Any, module: Any, q: Any, k: Tensor, v: Tensor, *rest: Any) -> Any:
        return original(module, q, k.roll(-1, 2), v.roll(-1, 2), *rest)

    change(patch, taps, "_follow", ahead)


def mask_of_a_step(patch: Patch) -> None:
    """The newest token of a row is not seen."""

    def short(
        original: Any, model: Any, states: Any, at: Any, mask: Tensor, *rest: Any, **opts: Any
    ) -> Any:
        return original(model, states, at, pad(mask[..., 1:], (0, 1)), *rest, **opts)

    change(patch, kv_slots, "run_layers", short)


def position(patch: Patch) -> None:
    """A token of the answer stands one place too far."""

    def shifted(
        original: Any, model: Any, states: Tensor, at: Tensor, *rest: Any, **opts: Any
    ) -> Any:
        return original(model, states, at + (states.shape[1] == 1), *rest, **opts)

    change(patch, prefill, "run_layers", shifted)


def position_of_a_step(patch: Patch) -> None:
    """A row's token stands one place too far."""

    def shifted(original: Any, model: Any, states: Any, at: Tensor, *rest: Any, **opts: Any) -> Any:
        return original(model, states, at + 1, *rest, **opts)

    change(patch, kv_slots, "run_layers", shifted)


def stale_step(patch: Patch) -> None:
    """A recorded step replays the inputs that it was recorded with."""
    recorded: dict[tuple[int, tuple[int, int]], Tensor] = {}

    def stale(original: Any, slots: KVSlots, size: tuple[int, int]) -> Tensor:
        out: Tensor = original(slots, size)
        return recorded.setdefault((id(slots), size), out) if slots.bucketing else out

    change(patch, KVSlots, "_decode", stale)


def tap(patch: Patch) -> None:
    """The head beside the wanted one is read."""

    def next_one(
        original: Any, q: Tensor, k: Tensor, mask: Any, scaling: Any, heads: Tensor
    ) -> Any:
        return original(q, k, mask, scaling, (heads + 1) % q.shape[1])

    change(patch, taps, "last_row", next_one)


def score(patch: Patch) -> None:
    """A token is scored by the keys beside its own."""
    change(patch, taps, "_products", lambda original, q, k: original(q, k.roll(1, 1)))


def twin(patch: Patch) -> None:
    """The twin hears the first half of a silence, twice."""

    def halved(original: Any, *given: Any) -> Passes[Tensor]:
        features: Tensor = yield from original(*given)
        half = features[: -(-len(features) // 2)]
        return torch.cat([half, half])[: len(features)]

    change(patch, silence, "_silent_features", halved)


def wrong_end(patch: Patch) -> None:
    """What is cut from a longer silence is its end."""

    def turned(
        original: Any, model: Any, frames: int, silence_cache: SilenceCache, *given: Any
    ) -> Passes[Tensor]:
        features: Tensor = yield from original(model, frames, silence_cache, *given)
        return features.flip(0) if silence_cache.ladder.steps else features

    change(patch, silence, "_silent_features", turned)


def mixed_up(patch: Patch) -> None:
    """The pass that prompt and twin share gives the twin's state for the prompt's."""

    def swapped(original: Any, *given: Any, **options: Any) -> Any:
        heard, silent = yield from original(*given, **options)
        return replace(heard, final=silent.final), silent

    change(patch, silence, "prefill_beside", swapped)


def row(patch: Patch) -> None:
    """A row that moves into a free slot finds the keys of the one that left."""

    def leaky(original: Any, slots: KVSlots, left: Row) -> None:
        slot = left.slot
        kept = slots.store[:, :, slot].clone()
        original(slots, left)
        slots.store[:, :, slot] = kept

    change(patch, KVSlots, "release", leaky)


def strength(patch: Patch) -> None:
    """Steering adds a tenth too much."""

    def strong(original: Any, final: Any, direction: Any, given: Tensor, *rest: Any) -> Any:
        return original(final, direction, given * 1.1, *rest)

    change(patch, readout, "steer", strong)


def template(patch: Patch) -> None:
    """The prompt lacks a token of the checkpoint's template."""
    change(patch, prompt, "_joined", lambda original, *given: original(*given)[:-1])


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, what it looks like in the table, and who catches it."""

    name: str
    plant: Callable[[Patch], None]
    caught: tuple[str, ...]  # findings of `verify` that are not ok
    start: str


TWIN = ("twin", "kept twin", "cut silence", "one pass")
TEMPLATE = ("prompt ids", "encoder", "logits", "taps", *TWIN, "decode")
FAULTS = (
    Fault("prompt without its mask", no_mask, ("logits", "taps", *TWIN, "decode"), "refused"),
    Fault("question without its mask", mask_of_the_question, TWIN, "refused"),
    Fault("mask of a step too short", mask_of_a_step, ("rows",), "refused"),
    Fault("position shifted", position, ("one pass", "decode", "live score", "rows"), "refused"),
    Fault("row's position shifted", position_of_a_step, ("live score", "rows"), "refused"),
    Fault("stale recorded step", stale_step, ("recorded step",), "switched off"),
    Fault("tap on another head", tap, ("taps", *TWIN, "live score"), "refused"),
    Fault("score by other keys", score, ("live score",), "switched off"),
    Fault("twin of another length", twin, TWIN, "refused"),
    Fault("silence cut at the wrong end", wrong_end, ("cut silence",), "switched off"),
    Fault("prompt and twin mixed up", mixed_up, ("one pass",), "switched off"),
    Fault("keys leak into another row", row, ("rows",), "refused"),
    Fault("strength off by a tenth", strength, ("steering",), "refused"),
    Fault("template cut", template, TEMPLATE, "refused"),
)
