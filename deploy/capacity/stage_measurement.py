"""Measured times of a request's stages on this machine, as deciles of this thread's CPU seconds.

With one torch thread CPU seconds are what the wall clock would show on a quiet machine. The wall is
taken as well, for their ratio.
"""

from __future__ import annotations

import base64
import io
import json
import time
import wave
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from deploy.capacity.costs import ModelSizes
from deploy.capacity.stage_times import STEPS
from server.api.questions import audio_files, make_question
from server.api.requests import AudioChatRequest, parse_json
from server.audio.policy import AudioPolicy
from server.bench.models import BenchModel
from server.engine.answering import answer_question, prepare_prompt
from server.engine.events import Event, NeedsToken
from server.engine.messages import Question
from server.engine.runtime import Runtime
from steering.audio.decode import decode
from steering.audio.limits import AudioLimits
from steering.decision import SteeringRequest
from steering.generation import Sampling
from steering.kv_slots import KVSlots
from steering.model.audio_model import AudioModel
from steering.prefill import PrefillResult, prefill
from steering.prompt import Prompt, build_prompt
from steering.silence import contrast_with_silence
from steering.silence_cache import Ladder, SilenceCache

ROWS = (1, 2, 4, 8, 16)
_TOKENS = 64  # of an answer: steps read the prompt's keys, and half of these on average
_DECILES = np.linspace(0, 1, 11)

Samples = dict[str, list[float]]  # size -> seconds


@dataclass(slots=True)
class Stopwatch:
    """Samples of every stage, by two clocks: this thread's CPU, and the wall."""

    cpu: dict[str, Samples]
    wall: dict[str, Samples]

    @classmethod
    def new(cls) -> Stopwatch:
        return cls(defaultdict(lambda: defaultdict(list)), defaultdict(lambda: defaultdict(list)))

    def time(self, stage: str, size: float, work: Callable[[], Any]) -> Any:
        """The result of the work, whose seconds are recorded."""
        wall, cpu = time.perf_counter(), time.thread_time()
        result = work()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        self.cpu[stage][f"{size:g}"].append(cpu)
        self.wall[stage][f"{size:g}"].append(wall)
        return result

    def wall_over_cpu(self) -> float:
        """The median ratio of the two clocks: more than 1 where others use the machine."""
        ratios = [
            float(np.median(self.wall[stage][size]) / np.median(seconds))
            for stage, by_size in self.cpu.items()
            for size, seconds in by_size.items()
        ]
        return float(f"{np.median(ratios):.3g}")


def deciles(stages: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Samples]:
    """Eleven quantiles of each stage and size, least and largest sample included."""
    return {
        stage: {
            size: [float(f"{x:.4g}") for x in np.quantile(seconds, _DECILES)]
            for size, seconds in by_size.items()
        }
        for stage, by_size in stages.items()
    }


def measure(
    bench: BenchModel, clips: tuple[float, ...], rounds: int, *, entries: bool = True
) -> dict[str, Any]:
    """Everything about a model, as it goes to the JSON file; one round more warms up.

    `entries` are from the queue to the first token, which only a simulation needs.
    """
    torch.set_num_threads(1)
    model, profile = bench.model, bench.profile
    depth = 1 + max([*profile.layers, *(layer for layer, _ in profile.heads)])
    sizes = ModelSizes.of(model, depth)
    prompts = {clip: build_prompt(model, bench.messages(0, clip)) for clip in clips}
    longest = max(len(prompt.tokens) for prompt in prompts.values())
    runtime = Runtime.of(model, profile, rows=max(ROWS), tokens=longest + 16 * _TOKENS)
    watch = Stopwatch.new()
    for turn in range(rounds + 1):
        for clip in clips:
            _preprocess(watch, bench, clip, turn, model.sample_rate_hz)
            _passes(watch, bench, runtime, clip, turn)
            if entries:
                _entries(watch, bench, runtime, clip, turn)
        if turn == rounds:
            _steps(watch, bench, runtime, max(clips))
        watch = watch if turn else Stopwatch.new()
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "sizes": asdict(sizes),
        "prompts": {f"{clip:g}": _lengths(sizes, prompt) for clip, prompt in prompts.items()},
        "held_bytes": {f"{clip:g}": _held_bytes(runtime, prompts[clip]) for clip in clips},
        "stages": deciles(watch.cpu),
        "wall_over_cpu": watch.wall_over_cpu(),
        "rates": rates(model),
    }


def measure_preprocessing(
    bench: BenchModel, sizes: ModelSizes, clips: tuple[float, ...], rounds: int
) -> dict[str, Any]:
    """Preprocessing alone needs no weights: a model on the meta device will do."""
    torch.set_num_threads(1)
    watch = Stopwatch.new()
    for turn in range(rounds + 1):
        for clip in clips:
            _preprocess(watch, bench, clip, turn, bench.model.sample_rate_hz)
        watch = watch if turn else Stopwatch.new()
    prompts = {clip: build_prompt(bench.model, bench.messages(0, clip)) for clip in clips}
    lengths = {f"{clip:g}": _lengths(sizes, prompt) for clip, prompt in prompts.items()}
    return {"sizes": asdict(sizes), "prompts": lengths, "stages": deciles(watch.cpu)}


def request_body(bench: BenchModel, clip: float, seed: int, **options: Any) -> bytes:
    """A request for /v1/audio-chat: noise as 16-bit WAV in base64."""
    rate_hz = bench.model.sample_rate_hz
    noise = np.random.default_rng(seed).standard_normal(round(clip * rate_hz)) * 3000
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(noise.clip(-32768, 32767).astype("<i2").tobytes())
    audio = {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}
    return json.dumps({"audio": audio, "question": bench.question, **options}).encode()


def rates(model: AudioModel) -> dict[str, float]:
    """Operations of a square product and bytes of a copy, a second of this thread on the CPU."""
    a = torch.randn(1024, 1024, dtype=model.dtype)
    source = torch.zeros(2**27, dtype=torch.uint8)
    target = torch.empty_like(source)
    watch = Stopwatch.new()
    for _ in range(10):
        watch.time("matrix", 1, lambda: a @ a)
        watch.time("copy", 1, lambda: target.copy_(source))
    seconds = {name: float(np.median(samples["1"][1:])) for name, samples in watch.cpu.items()}
    return {
        "operations_a_second": 2 * 1024**3 / seconds["matrix"],
        "bytes_a_second": 2 * 2**27 / seconds["copy"],
    }


def _lengths(sizes: ModelSizes, prompt: Prompt) -> dict[str, int]:
    return {
        "positions": sizes.positions_of(int(prompt.mel_frames[0])),
        "tokens": len(prompt.tokens),
        "prefix": prompt.audio_end,
        "audio": int(prompt.audio_mask.sum()),
    }


def _held_bytes(runtime: Runtime, prompt: Prompt) -> dict[str, int]:
    """Bytes that a silence cache holds after one twin, and of a row as long as the prompt."""
    model, profile = runtime.model, runtime.profile
    assert profile is not None
    cache = SilenceCache(runtime.silence_cache.limit_bytes, Ladder(0))
    heard = prefill(model, prompt, heads=profile.heads, layers=profile.layers)
    contrast_with_silence(
        model, prompt, heard, heads=profile.heads, layers=profile.layers, silence_cache=cache
    )
    return {"silence": cache.held_bytes, "row": KVSlots.bytes_of(model, 1, len(prompt.tokens))}


def _preprocess(watch: Stopwatch, bench: BenchModel, clip: float, seed: int, rate_hz: int) -> None:
    """From a body's bytes to the prompt: worker threads, a decode process, and the engine."""
    limits = AudioLimits(max_bytes=25_000_000, max_seconds=30.0)
    policy = AudioPolicy(rate_hz, limits, 8, bench.model.max_clip_seconds, 300.0)
    sent = request_body(bench, clip, seed)

    files = audio_files(parse_json(AudioChatRequest, sent), policy)
    decode_file = partial(decode, rate_hz=rate_hz, limits=limits)
    clips = {n: watch.time("decode", clip, partial(decode_file, files[n])) for n in files}

    def open_body() -> Question:
        request = parse_json(AudioChatRequest, sent)
        audio_files(request, policy)
        return make_question("bench", request, policy, clips)

    question = watch.time("open", clip, open_body)
    watch.time("prompt", clip, lambda: build_prompt(bench.model, question.messages))


def _passes(watch: Stopwatch, bench: BenchModel, runtime: Runtime, clip: float, seed: int) -> None:
    """Each pass by itself: encoder, prefill, and the twin with all, some or nothing cached."""
    model, profile = bench.model, bench.profile
    prompt = build_prompt(model, bench.messages(seed, clip))
    encode = partial(model.family.hear, model.network, prompt.log_mels, prompt.mel_frames)
    watch.time("encoder", clip, torch.inference_mode()(encode))
    run_prefill = partial(prefill, model, prompt, heads=profile.heads, layers=profile.layers)
    heard: PrefillResult = watch.time("prefill", clip, run_prefill)
    cache = SilenceCache(runtime.silence_cache.limit_bytes, Ladder(0))
    parts = (f"Number {seed}. ", *bench.messages(seed, clip)[0].parts)
    other = build_prompt(model, (replace(bench.messages(seed, clip)[0], parts=parts),))
    others: PrefillResult = prefill(model, other, heads=profile.heads, layers=profile.layers)
    contrast = partial(
        contrast_with_silence, heads=profile.heads, layers=profile.layers, silence_cache=cache
    )
    watch.time("twin cold", clip, lambda: contrast(model, prompt, heard))
    watch.time("twin hit", clip, lambda: contrast(model, prompt, heard))
    watch.time("twin miss", clip, lambda: contrast(model, other, others))


def _entries(watch: Stopwatch, bench: BenchModel, runtime: Runtime, clip: float, seed: int) -> None:
    """From the prompt to the first token, as the engine admits a question."""
    fresh = replace(
        runtime, silence_cache=SilenceCache(runtime.silence_cache.limit_bytes, Ladder(0))
    )
    for kind in ("bare", "cold", "hit", "miss"):
        messages = bench.messages(seed, clip)
        if kind == "miss":
            parts = (f"Number {seed}. ", *messages[0].parts)
            messages = (replace(messages[0], parts=parts),)
        steering = SteeringRequest(steer=kind != "bare")
        question = Question("bench", messages, steering=steering, sampling=Sampling(2))
        with_prompt = answer_question(fresh, _endless(question), prepare_prompt(fresh, question))
        watch.time(f"enter {kind}", clip, partial(_to_next_token, with_prompt))
        with_prompt.close()


def _steps(watch: Stopwatch, bench: BenchModel, runtime: Runtime, clip: float) -> None:
    """Decode steps of more and more rows: alone, and with the engine's work between two."""
    question = _endless(Question("bench", bench.messages(0, clip), sampling=Sampling(1000)))
    prompt = prepare_prompt(runtime, question)
    running: list[Generator[Event, None, None]] = []

    def whole_round() -> None:
        runtime.slots.step()
        for answer in running:
            _to_next_token(answer)

    for rows in ROWS:
        while len(running) < rows:
            running.append(answer_question(runtime, question, prompt))
            _to_next_token(running[-1])
        for _ in range(STEPS):
            watch.time("round", rows, whole_round)
    for rows in reversed(ROWS):
        while len(running) > rows:
            running.pop().close()
        for _ in range(STEPS):
            watch.time("step", rows, runtime.slots.step)
    running.pop().close()


def _endless(question: Question) -> Question:
    return replace(question, sampling=replace(question.sampling, ignore_end=True))


def _to_next_token(answer: Generator[Event, None, None]) -> None:
    for event in answer:
        if isinstance(event, NeedsToken):
            return
    raise AssertionError("an answer that has no end has ended")
