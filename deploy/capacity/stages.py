"""What each stage of a request takes on this machine, as samples: the simulation draws from them.

Seconds are taken twice: of this thread on the CPU, for a machine that others use, and by the wall.
With one torch thread the first is what the second would be on a quiet machine.
"""

from __future__ import annotations

import base64
import io
import json
import time
import wave
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from deploy.capacity.costs import Shape
from server.api.questions import RequestBody, audio_files, make_question
from server.api.requests import AudioChatRequest, parse_json
from server.audio.policy import AudioPolicy
from server.bench.models import BenchModel
from server.engine.answering import answer_question, prepare_prompt
from server.engine.messages import Question
from server.engine.runtime import Runtime
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.generation import Sampling
from steering.kv_slots import KVSlots, Row
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.prompt import Prompt, build_prompt
from steering.silence import SilenceCache, contrast_with_silence

ROWS = (1, 2, 4, 8, 16)
_TOKENS = 64  # of an answer: steps read the prompt's keys, and half of these on average
STEPS = 24  # measured of each number of rows

Samples = dict[str, dict[str, list[float]]]  # cpu or wall -> size -> seconds


@dataclass(slots=True)
class Stopwatch:
    """Samples of every stage: name -> clock -> size -> seconds."""

    stages: dict[str, Samples]

    @classmethod
    def new(cls) -> Stopwatch:
        return cls(defaultdict(lambda: {"cpu": defaultdict(list), "wall": defaultdict(list)}))

    def time(self, stage: str, size: float, work: Callable[[], Any]) -> Any:
        """What the work gives; its seconds are noted."""
        wall, cpu = time.perf_counter(), time.thread_time()
        given = work()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        self.stages[stage]["cpu"][f"{size:g}"].append(float(f"{cpu:.4g}"))
        self.stages[stage]["wall"][f"{size:g}"].append(float(f"{wall:.4g}"))
        return given


def measure(
    subject: BenchModel, clips: tuple[float, ...], rounds: int, *, entries: bool = True
) -> dict[str, Any]:
    """Everything about a model, as it goes to the JSON file; one round more warms up.

    `entries` are from the queue to the first token, which only a simulation needs.
    """
    torch.set_num_threads(1)
    model, profile = subject.model, subject.profile
    depth = 1 + max([*profile.layers, *(layer for layer, _ in profile.heads)])
    shape = Shape.of(model, depth)
    prompts = {clip: build_prompt(model, subject.messages(0, clip)) for clip in clips}
    longest = max(len(prompt.tokens) for prompt in prompts.values())
    runtime = Runtime.of(model, profile, rows=max(ROWS), tokens=longest + 16 * _TOKENS)
    watch = Stopwatch.new()
    for turn in range(rounds + 1):
        for clip in clips:
            _front(watch, subject, clip, turn, model.rate_hz)
            _passes(watch, subject, runtime, clip, turn)
            if entries:
                _entries(watch, subject, runtime, clip, turn)
        if turn == rounds:
            _steps(watch, subject, runtime, max(clips))
        watch = watch if turn else Stopwatch.new()
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "shape": asdict(shape),
        "prompts": {f"{clip:g}": _lengths(shape, prompt) for clip, prompt in prompts.items()},
        "kept_bytes": {f"{clip:g}": _kept(runtime, prompts[clip]) for clip in clips},
        "stages": watch.stages,
        "rates": rates(model),
    }


def front(
    subject: BenchModel, shape: Shape, clips: tuple[float, ...], rounds: int
) -> dict[str, Any]:
    """The front alone, which needs no weights: a model on the meta device will do."""
    torch.set_num_threads(1)
    watch = Stopwatch.new()
    for turn in range(rounds + 1):
        for clip in clips:
            _front(watch, subject, clip, turn, subject.model.rate_hz)
        watch = watch if turn else Stopwatch.new()
    prompts = {clip: build_prompt(subject.model, subject.messages(0, clip)) for clip in clips}
    lengths = {f"{clip:g}": _lengths(shape, prompt) for clip, prompt in prompts.items()}
    return {"shape": asdict(shape), "prompts": lengths, "stages": watch.stages}


def body(subject: BenchModel, clip: float, seed: int, **wish: Any) -> bytes:
    """A request for /v1/audio-chat: noise as 16-bit WAV in base64."""
    rate_hz = subject.model.rate_hz
    noise = np.random.default_rng(seed).standard_normal(round(clip * rate_hz)) * 3000
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(noise.clip(-32768, 32767).astype("<i2").tobytes())
    audio = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
    return json.dumps({"audio": audio, "question": subject.question, **wish}).encode()


def rates(model: AudioModel) -> dict[str, float]:
    """Operations of a square product and bytes of a copy, a second of this thread on the CPU."""
    a = torch.randn(1024, 1024, dtype=model.dtype)
    source = torch.zeros(2**27, dtype=torch.uint8)
    target = torch.empty_like(source)
    watch = Stopwatch.new()
    for _ in range(10):
        watch.time("matrix", 1, lambda: a @ a)
        watch.time("copy", 1, lambda: target.copy_(source))
    took = {name: float(np.median(found["cpu"]["1"][1:])) for name, found in watch.stages.items()}
    return {
        "operations_a_second": 2 * 1024**3 / took["matrix"],
        "bytes_a_second": 2 * 2**27 / took["copy"],
    }


def _lengths(shape: Shape, prompt: Prompt) -> dict[str, int]:
    return {
        "positions": shape.positions_of(int(prompt.mel_frames[0])),
        "tokens": len(prompt.tokens),
        "prefix": prompt.audio_end,
        "audio": int(prompt.audio_mask.sum()),
    }


def _kept(runtime: Runtime, prompt: Prompt) -> dict[str, int]:
    """Bytes that a silence cache holds after one twin, and of a row as long as the prompt."""
    model, profile = runtime.model, runtime.profile
    assert profile is not None
    kept = SilenceCache(runtime.silence_cache.limit_bytes)
    heard = prefill(model, prompt, heads=profile.heads, layers=profile.layers)
    contrast_with_silence(
        model, prompt, heard, heads=profile.heads, layers=profile.layers, prefixes=kept
    )
    return {"silence": kept.held_bytes, "row": KVSlots.bytes_of(model, 1, len(prompt.tokens))}


def _front(watch: Stopwatch, subject: BenchModel, clip: float, seed: int, rate_hz: int) -> None:
    """From a body's bytes to the prompt: what worker threads, a decoder, and the engine do."""
    limits = AudioLimits(max_bytes=25_000_000, max_seconds=30.0)
    hearing = AudioPolicy(rate_hz, limits, 8, subject.model.max_clip_seconds, 300.0)
    sent = body(subject, clip, seed)

    files = audio_files(RequestBody(parse_json(AudioChatRequest, sent)), hearing)
    decoded = partial(decode, rate_hz=rate_hz, limits=limits)
    clips = {n: watch.time("decode", clip, partial(decoded, files[n])) for n in files}

    def opened() -> Question:
        wish = parse_json(AudioChatRequest, sent)
        audio_files(RequestBody(wish), hearing)
        return make_question("bench", wish, hearing, clips)

    question = watch.time("open", clip, opened)
    watch.time("prepare", clip, lambda: build_prompt(subject.model, question.messages))


def _passes(
    watch: Stopwatch, subject: BenchModel, runtime: Runtime, clip: float, seed: int
) -> None:
    """Each pass by itself: encoder, prefill, and the twin with all, some or nothing at hand."""
    model, profile = subject.model, subject.profile
    prompt = build_prompt(model, subject.messages(seed, clip))
    hear = partial(model.family.hear, model.network, prompt.log_mels, prompt.mel_frames)
    watch.time("encoder", clip, torch.inference_mode()(hear))
    passed = partial(prefill, model, prompt, heads=profile.heads, layers=profile.layers)
    heard: PrefillResult = watch.time("prefill", clip, passed)
    fresh = SilenceCache(runtime.silence_cache.limit_bytes)
    worded = (f"Number {seed}. ", *subject.messages(seed, clip)[0].parts)
    other = build_prompt(model, (replace(subject.messages(seed, clip)[0], parts=worded),))
    others: PrefillResult = prefill(model, other, heads=profile.heads, layers=profile.layers)
    ask = partial(contrast_with_silence, heads=profile.heads, layers=profile.layers, prefixes=fresh)
    watch.time("twin cold", clip, lambda: ask(model, prompt, heard))
    watch.time("twin hit", clip, lambda: ask(model, prompt, heard))
    watch.time("twin words", clip, lambda: ask(model, other, others))


def _entries(
    watch: Stopwatch, subject: BenchModel, runtime: Runtime, clip: float, seed: int
) -> None:
    """From the prompt to the first token, as the engine lets a question in."""
    fresh = replace(runtime, silence_cache=SilenceCache(runtime.silence_cache.limit_bytes))
    for kind in ("bare", "cold", "hit", "words"):
        messages = subject.messages(seed, clip)
        if kind == "words":
            worded = (f"Number {seed}. ", *messages[0].parts)
            messages = (replace(messages[0], parts=worded),)
        question = Question("bench", messages, steer=kind != "bare", sampling=Sampling(2))
        with_prompt = answer_question(fresh, _endless(question), prepare_prompt(fresh, question))
        watch.time(f"enter {kind}", clip, partial(_to_next_row, with_prompt))
        with_prompt.close()


def _steps(watch: Stopwatch, subject: BenchModel, runtime: Runtime, clip: float) -> None:
    """Decode steps of more and more rows: alone, and with all that the engine does between two."""
    question = _endless(Question("bench", subject.messages(0, clip), sampling=Sampling(1000)))
    prompt = prepare_prompt(runtime, question)
    seated: list[Generator[Any, None, None]] = []

    def whole_round() -> None:
        runtime.slots.step()
        for answer in seated:
            _to_next_row(answer)

    for rows in ROWS:
        while len(seated) < rows:
            seated.append(answer_question(runtime, question, prompt))
            _to_next_row(seated[-1])
        for _ in range(STEPS):
            watch.time("round", rows, whole_round)
    for rows in reversed(ROWS):
        while len(seated) > rows:
            seated.pop().close()
        for _ in range(STEPS):
            watch.time("step", rows, runtime.slots.step)
    seated.pop().close()


def _endless(question: Question) -> Question:
    return replace(question, sampling=replace(question.sampling, ignore_end=True))


def _to_next_row(answer: Generator[Any, None, None]) -> None:
    for event in answer:
        if isinstance(event, Row):
            return
    raise AssertionError("an answer that has no end has ended")
