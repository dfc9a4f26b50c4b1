"""The most memory that 16 answers of a model took in this process, beside its plan, as JSON.

python -m tests.server.engine.peak_memory DTYPE FOLDER [FOLDER ...]: the last one is measured. The
others are served before, so that code which is loaded and compiled at first use counts for nothing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from server.engine.engine import Engine
from server.engine.messages import Answer, Question
from server.engine.runtime import Runtime
from server.memory_check import check_memory
from server.settings import Settings
from steering.audio.clip import Clip
from steering.decision import SteeringRequest
from steering.generation import Sampling
from steering.heads import Verdicts
from steering.model import memory_plan
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.model.merging import merge_and_pack
from steering.profile import Profile
from steering.prompt import Message
from steering.readout import Intervention
from steering.strength import Gate

ROWS, TOKENS, SILENCE_BYTES = 16, 320, 30_000_000
ANSWER_TOKENS = 48  # so many that all rows are written at once


def status(name: str) -> int:
    """Bytes of a line of this process's status."""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None, name
    return int(match[1]) * 1024


def profile_of(model: AudioModel) -> Profile:
    """A profile that reads and steers by the last layer."""
    last = model.num_layers - 1
    return Profile(
        name="any", model=model.name, revision=None, fingerprint=model.fingerprint,
        family=model.family.name, heads=((last, 0),), correlations=(0.5,),
        intervention=Intervention(layers=(last,)), gate=Gate(1.0, 0.3, 0.1), fixed_strength=0.5,
        verdicts=Verdicts(partly=0.2, listening=0.6), calibration={}, held_out={}, versions={},
        direction=torch.ones(model.hidden_size),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        head_mean=np.zeros(1, np.float32), head_std=np.ones(1, np.float32),
    )  # fmt: skip


def message(model: AudioModel, seconds: float, words: int) -> Message:
    """Noise of a length, and a text of so many tokens."""
    samples = np.random.default_rng(0).standard_normal(int(seconds * model.sample_rate_hz))
    clip = Clip(samples.astype(np.float32) * 0.1, model.sample_rate_hz, seconds,
                model.sample_rate_hz, 1)  # fmt: skip
    return Message("user", (clip, "x" * words))


def lengths(model: AudioModel, every: int) -> Iterator[Question]:
    """Questions of all lengths, one after the other: what is kept of a length is there."""
    steered, sampling = SteeringRequest(True, 0.5, "request"), Sampling(max_tokens=1)
    for words in range(1, TOKENS - 72, 15 * every):
        asked = message(model, 0.1, words)
        yield Question(f"text-{words}", (asked,), steering=steered, sampling=sampling)
    for i in range(1, int(model.max_clip_seconds / 0.3) + 1, every):
        asked = message(model, 0.3 * i, 1)
        yield Question(f"clip-{i}", (asked,), steering=steered, sampling=sampling)


def questions(model: AudioModel) -> Iterator[Question]:
    """Questions whose prompts and answers fill their rows, each about another length of sound."""
    for i in range(ROWS):
        seconds = model.max_clip_seconds - 0.1 * i
        words = TOKENS - ANSWER_TOKENS - 40 - model.audio_tokens(int(100 * seconds))
        yield Question(
            f"question-{i}",
            (message(model, seconds, words),),
            steering=SteeringRequest(True, 0.5, "request"),
            sampling=Sampling(max_tokens=ANSWER_TOKENS, ignore_end=True),
            with_clips=i % 4 == 0,
            with_unsteered=i % 4 == 1,
        )


def serve(folder: str, dtype: str, every: int = 1) -> tuple[list[Answer], int]:
    """Answers at once by a model, and the prompts' caches that were alive when all were running."""
    model = load(folder, device="cpu", dtype=dtype, mmap=False)
    merge_and_pack(model)
    runtime = Runtime.of(
        model, profile_of(model), silence_cache_bytes=SILENCE_BYTES, rows=ROWS, tokens=TOKENS
    )
    engine = Engine(runtime, queue_limit_requests=64, queue_timeout_seconds=600)
    step, caches = runtime.slots.step, list[int]()

    def counted() -> torch.Tensor:
        if len(runtime.slots.active) == ROWS and not caches:
            alive = [c for c in gc.get_objects() if type(c) is DynamicCache and c.layers]
            caches.append(len(alive))
        return step()

    runtime.slots.step = counted  # type: ignore[method-assign]

    async def ask() -> list[Answer]:
        for question in lengths(model, every):
            await engine.answer(question)
        return await asyncio.gather(*[engine.answer(q) for q in questions(model)])

    try:
        return asyncio.run(ask()), caches[0]
    finally:
        engine.close()


def main(dtype: str, folders: list[str]) -> None:
    for folder in folders[:-1]:
        serve(folder, dtype, every=10)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    answers, caches = serve(folders[-1], dtype)
    given = {
        "model": folders[-1],
        "device": "cpu",
        "dtype": dtype,
        "max_batch_rows": ROWS,
        "max_context_tokens": TOKENS,
        "silence_cache_bytes": SILENCE_BYTES,
    }
    memory = check_memory(Settings.model_validate(given))
    needed = memory_plan.plan(memory.sizes, memory.wanted)
    found = {
        "planned": needed.total,
        "parts": needed.parts(),
        "measured": status("VmHWM") - before,
        "caches": caches,
        "tokens": [len(a.prompt.tokens) + a.completion_tokens for a in answers],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
