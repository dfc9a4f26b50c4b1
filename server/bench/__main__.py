"""`python -m server.bench`: all arms interleaved in one process, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from server.bench import figures
from server.bench.arms import ARMS, Bench
from server.bench.live_score import live_score_ratios
from server.bench.load import in_own_thread, one_at_a_time, through_engine
from server.bench.models import bench_model
from server.bench.rooflines import different_directions, rooflines
from server.bench.traffic import real_traffic, traffic_ratios, traffic_table
from steering.prompt import build_prompt

_ROUNDS = {"demo": 9, "mid": 5, "real": 5}
_STEPS_A_ROUND = 8  # with the live score, and as many without
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_CLEAR_PEAK = Path("/proc/self/clear_refs")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write. A ratio that misses its bound is reported, and is no failure."""
    options = _parser().parse_args(words)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}  # of each model
    for model in options.model:
        results[model] = measure(
            model,
            device,
            rounds=options.rounds or _ROUNDS[model],
            tokens=options.tokens,
            concurrency=options.concurrency,
            scale_down=options.scale_down,
            clock=options.clock,
        )
        print(report(results[model]), end="\n\n", flush=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {options.out}")


def measure(
    model: str,
    device: torch.device,
    *,
    rounds: int,
    tokens: int,
    concurrency: Sequence[int],
    scale_down: bool = False,
    clock: str = "wall",
) -> dict[str, Any]:
    """All measurements of a model, as they go to the JSON file."""
    subject = in_own_thread(lambda: bench_model(model, device, scale_down=scale_down))
    rows = max([1, *concurrency])
    bench = in_own_thread(lambda: Bench.of(subject, tokens, rows, CLOCKS[clock]))
    prompt = in_own_thread(lambda: build_prompt(subject.model, subject.messages(0)))
    bounds_of = None if scale_down else model  # the model whose bounds apply
    runs = in_own_thread(lambda: _rounds(bench, rounds))
    live_score = in_own_thread(lambda: live_score_ratios(bench, bounds_of, rounds * _STEPS_A_ROUND))
    traffic = in_own_thread(lambda: real_traffic(bench, model, scale_down=scale_down))
    load = _load(bench, (rounds + 2) // 3, concurrency)
    results: dict[str, Any] = {
        "model": model,
        "scaled_down": scale_down,
        "parameters": sum(p.numel() for p in subject.plain.network.parameters()),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "machine": _machine(device),
        "clock": clock,
        "rounds": rounds,
        "tokens": tokens,
        "prompt_tokens": len(prompt.tokens),
        "audio_tokens": int(prompt.audio_mask.sum()),
        "question_tokens": len(prompt.tokens) - prompt.audio_end,
        "legend": {arm: text for arm, (text, _) in ARMS.items()},
        "arms": figures.summary(runs),
        "load": {name: figures.spread(rates) for name, rates in load.items()},
        "traffic": traffic,
        "ratios": [
            *figures.ratios(runs, bounds_of),
            *live_score,
            *traffic_ratios(traffic, bounds_of),
            *_load_ratios(load, bounds_of),
        ],
        "runs": runs,
    }
    if model == "real":
        floors = rooflines(subject.plain, prompt)
        results["floors"] = floors
        results["ratios"] += _floor_ratios(results["arms"], floors, bounded=not scale_down)
        rows = 16 if scale_down else 256
        cost = different_directions(subject.model, subject.messages(0, 1.0), rows)
        label = f"{rows} directions / none, a decode step"
        results["ratios"].append(figures.ratio(label, [cost], "<=", None if scale_down else 1.02))
    return results


def report(results: dict[str, Any]) -> str:
    """The tables, under lines about the model, the prompt and the machine."""
    size = f"{results['parameters'] / 1e6:.1f} M parameters, {results['dtype']}"
    prompt = (
        f"{results['prompt_tokens']} prompt tokens, {results['audio_tokens']} of them audio,"
        f" {results['question_tokens']} after it; answers of {results['tokens']}"
    )
    machine = ", ".join(f"{value}" for value in results["machine"].values())
    run = f"{results['rounds']} rounds, {results['clock']} clock"
    head = f"{results['model']}: {size}\n{prompt}\n{machine}; {run}"
    load = [figures.load_table] if results["load"] else []
    tables = (figures.arms_table, traffic_table, *load, figures.ratios_table)
    return "\n\n".join([head, *(table(results) for table in tables)])


def _rounds(bench: Bench, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Every arm once a round, in an order that rotates; a first round only warms up."""
    names = list(ARMS)
    for name in names:
        ARMS[name][1](bench, 0)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(rounds):
        print(f"round {i + 1} of {rounds}", file=sys.stderr, flush=True)
        turn = 3 * i % len(names)
        for name in names[turn:] + names[:turn]:
            clear_peak_memory(bench.subject.model.device)
            run = ARMS[name][1](bench, 1 + i)
            row = {field: float(getattr(run, field)) for field in run.__slots__}
            peak = peak_memory(bench.subject.model.device)
            runs[name].append(row if peak is None else {**row, "peak_memory_bytes": float(peak)})
    return runs


def _load(bench: Bench, rounds: int, concurrency: Sequence[int]) -> dict[str, list[float]]:
    """Requests a second of each way of serving, a figure a round."""
    load: dict[str, list[float]] = {}
    for i in range(rounds if concurrency else 0):
        seed = 10_000 * (i + 1)
        sequential = in_own_thread(partial(one_at_a_time, bench, 4, seed))
        load.setdefault("transformers, one at a time", []).append(sequential)
        for clients in concurrency:
            for steer in (False, True):
                name = f"allears {'steered' if steer else 'bare'}, {clients} at once"
                rate = through_engine(bench, clients, max(clients, 4), seed, steer=steer)
                load.setdefault(name, []).append(rate)
    return load


def _load_ratios(load: dict[str, list[float]], model: str | None) -> list[dict[str, Any]]:
    """Each load over transformers one at a time."""
    sequential = load.get("transformers, one at a time", [])
    bounds: dict[tuple[str | None, int], float] = {("demo", 16): 3.0, ("real", 32): 8.0}
    ratios = []
    for name, rates in load.items():
        if name.endswith("at once"):
            clients = int(name.split()[-3])
            quotients = [a / b for a, b in zip(rates, sequential, strict=True)]
            limit = bounds.get((model, clients))
            ratios.append(figures.ratio(f"{name} / transformers", quotients, ">=", limit))
    return ratios


def _floor_ratios(
    arms: dict[str, Any], floors: dict[str, float], *, bounded: bool
) -> list[dict[str, Any]]:
    """The rooflines over the measured times of prefill and decoding."""
    token_seconds = arms["bare"]["seconds_a_token"]["median"]
    prefill_seconds = arms["bare"]["prefill_seconds"]["median"]
    share = floors["prefill_floor_seconds"] / prefill_seconds
    ratios = [figures.ratio("operations floor / prefill", [share], ">=", None)]
    if token_seconds:
        share, limit = floors["decode_floor_seconds"] / token_seconds, 0.6 if bounded else None
        ratios.append(figures.ratio("bandwidth floor / a token", [share], ">=", limit))
    return ratios


def clear_peak_memory(device: torch.device) -> None:
    """Reset the peak of memory; where the system can't, the peak is since the process's start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_PEAK.exists():
        _CLEAR_PEAK.write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Peak of memory since it was cleared: of the device, or of the process on Linux; else None."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else None


def _machine(device: torch.device) -> dict[str, str]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": f"{torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "torch": f"torch {torch.__version__}",
        "transformers": f"transformers {transformers.__version__}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="allears bench",
        description="Measure what steering and batching cost, beside transformers.",
        epilog="Example: allears bench --model demo mid --device cpu",
    )
    parser.add_argument("--model", nargs="+", choices=tuple(_ROUNDS), default=["demo"])
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--rounds", type=int, help="default: 9 for demo, 5 for others")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument(
        "--concurrency", type=int, nargs="*", default=[1, 4, 16], help="none: no load"
    )
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: time of this process only, for a machine that others use, with --threads 1;"
        " the load is by the wall always",
    )
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument(
        "--scale-down", action="store_true", help="the script of `real` at a small size, for a CPU"
    )
    return parser


if __name__ == "__main__":
    main()
