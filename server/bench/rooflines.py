"""Rooflines: the least time that the machine allows for a decode step and for a prefill."""

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
    """Measured rates, and the least seconds of a decode step and of a prefill.

    Decoding must read every weight of the decoder and the readout once a token; a prefill must do
    two operations for each weight and position, in the decoder and in the encoder.
    """
    on_gpu = model.device.type == "cuda"
    bandwidth = _copy_bandwidth(model.device, 2**30 if on_gpu else 2**27)
    rate = _matrix_rate(model, 8192 if on_gpu else 1024)
    decoder_weights = _count_weights(model.decoder.layers)
    weights = decoder_weights + _count_weights(model.network.lm_head)
    weight_bytes = weights * torch.empty(0, dtype=model.dtype).element_size()
    encoder = model.network.model.audio_tower
    positions = len(prompt.mel_frames) * int(encoder.config.max_source_positions)
    encoder_operations = 2 * _count_weights(encoder.layers) * positions
    operations = 2 * decoder_weights * len(prompt.tokens) + encoder_operations
    return {
        "copy_bytes_a_second": bandwidth,
        "matrix_operations_a_second": rate,
        "weight_bytes": weight_bytes,
        "prefill_operations": operations,
        "decode_floor_seconds": weight_bytes / bandwidth,
        "prefill_floor_seconds": operations / rate,
    }


def different_directions(model: AudioModel, messages: tuple[Message, ...], rows: int) -> float:
    """Time of a decode step of `rows` rows, each with its own direction, over that of bare rows."""
    result = prefill(model, build_prompt(model, messages))
    intervention = Intervention(layers=(0,))
    slots = KVSlots(model, rows, result.length + 40, intervention)
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(rows, model.hidden_size, generator=generator).to(
        model.device
    )  # (B, D)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for steered in (True, False) * 4:
        for direction in directions:
            row = Row(
                SteeringPlan(direction, 0.5, intervention) if steered else UNSTEERED,
                Sampling(),
                token=1,
            )
            slots.admit(row, result)
        slots.step()
        seconds[steered].append(_median_seconds(slots.step, model.device, 5))
        for row in list(slots.active):
            slots.release(row)
    return min(seconds[True]) / min(seconds[False])


def _count_weights(module: Any) -> int:
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
    seconds = []
    for _ in range(times):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[times // 2]
