"""The memory that a deployment will take beside what is free, before anything is loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from server.settings import Settings
from steering.kv_slots import captured_rows
from steering.model import memory_plan
from steering.model.checkpoint import find
from steering.model.families import family_of
from steering.model.loading import SPREAD, Placement, placement, read_config
from steering.model.memory_plan import DTYPES, ModelSizes, Wanted
from steering.model.merging import compiled_rows, packs

log = logging.getLogger("allears")


@dataclass(frozen=True, slots=True)
class MemoryCheck:
    """What a deployment will take, and what is free where it will be."""

    sizes: ModelSizes
    wanted: Wanted
    placed: Placement

    def describe(self) -> str:
        """The plan beside what is free, in words."""
        needed, placed = memory_plan.plan(self.sizes, self.wanted), self.placed
        return (
            f"{memory_plan.describe(needed)}: {memory_plan.gigabytes(needed.total)} at most, of"
            f" {memory_plan.gigabytes(placed.free)} free on {placed.where}"
        )

    def fits(self) -> str:
        """The plan in words. Raises ModelError, with what would fit, if memory is short."""
        memory_plan.refuse_short(self.sizes, self.wanted, self.placed.free, self.placed.where)
        return self.describe()


def check_memory(settings: Settings) -> MemoryCheck:
    """The memory that the settings ask for, from the model's small files alone. Raises ModelError
    for a model or device that is not there.
    """
    folder, _ = find(settings.model, settings.revision, weights=False)
    config = read_config(settings.model, folder)
    placed = placement(settings.model, settings.device, settings.dtype, settings.quantize)
    sizes = memory_plan.sizes(family_of(config.model_type), config)
    packed = packs(placed.device, DTYPES.get(placed.kind, torch.int8), sizes.parameters)
    on_card = placed.device.type == "cuda" and settings.device != SPREAD
    return MemoryCheck(
        sizes,
        Wanted(
            placed.kind,
            settings.max_batch_rows,
            settings.max_context_tokens,
            settings.silence_cache_bytes,
            captured_rows if on_card else lambda rows, tokens: 0,
            compiled_rows if packed else lambda tokens: 0,
        ),
        placed,
    )
