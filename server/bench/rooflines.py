"""What the machine itself allows: floors under a decode step and under a prefill."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from steering.generation import UNSTEERED, Sampling, SteeringPlan
from steering.kv_slots import KVSlots, Row
from steering.model.audio_model import AudioModel
from steering.prefill import prefill
from steering.prompt import Message, Prompt, build_prompt
from steering.readout import Intervention


def rooflines(model: AudioModel, prompt: Prompt) -> dict[str, float]:
    """Measured rates, and the seconds below which no decode step and no prefill can go.

    Decoding must read every weight of the decoder and the readout once a token; a prefill must do
    two operations for each weight and position, in the decoder and in the encoder.
    """
    on_gpu = model.device.type == "cuda"
    bandwidth = _copy_bandwidth(model.device, 2**30 if on_gpu else 2**27)
    rate = _matrix_rate(model, 8192 if on_gpu else 1024)
    decoder = _weights(model.decoder.layers)
    weights = decoder + _weights(model.network.lm_head)
    tower = model.network.model.audio_tower
    encoded = len(prompt.mel_frames) * int(tower.config.max_source_positions)
    operations = 2 * (decoder * len(prompt.tokens) + _weights(tower.layers) * encoded)
    return {
        "copy_bytes_a_second": bandwidth,
        "matrix_operations_a_second": rate,
        "weight_bytes": weights * torch.empty(0, dtype=model.dtype).element_size(),
        "prefill_operations": operations,
        "decode_floor_seconds": weights
        * torch.empty(0, dtype=model.dtype).element_size()
        / bandwidth,
        "prefill_floor_seconds": operations / rate,
    }


def different_directions(model: AudioModel, messages: tuple[Message, ...], rows: int) -> float:
    """Time of a decode step of `rows` rows, each steered its own way, over that of bare rows."""
    prompt = build_prompt(model, messages)
    heard = prefill(model, prompt)
    intervention = Intervention(layers=(0,))
    slots = KVSlots(model, rows, heard.length + 40, intervention)
    draws = torch.randn(rows, model.hidden_size, generator=torch.Generator().manual_seed(2))
    directions = draws.to(model.device)
    took: dict[bool, list[float]] = {True: [], False: []}
    for steered in (True, False) * 4:
        for direction in directions:
            row = Row(
                SteeringPlan(direction, 0.5, intervention) if steered else UNSTEERED,
                Sampling(),
                token=1,
            )
            slots.admit(row, heard)
        slots.step()
        took[steered].append(_median_seconds(slots.step, model.device, 5))
        for row in list(slots.active):
            slots.release(row)
    return min(took[True]) / min(took[False])


def _weights(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second, read and written."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device, 9)


def _matrix_rate(model: AudioModel, size: int) -> float:
    """Operations a second of a square product in the model's dtype."""
    a = torch.randn(size, size, device=model.device, dtype=model.dtype)
    return 2 * size**3 / _median_seconds(lambda: a @ a, model.device, 9)


def _median_seconds(work: Callable[[], Any], device: torch.device, times: int) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    took = []
    for _ in range(times):
        wait()
        start = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - start)
    return sorted(took)[times // 2]
