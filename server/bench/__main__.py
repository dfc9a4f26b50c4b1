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
from server.bench.load import apart, one_at_a_time, through_engine
from server.bench.models import bench_model
from server.bench.rooflines import different_directions, rooflines
from steering.prompt import build_prompt

_ROUNDS = {"demo": 9, "mid": 5, "real": 5}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_CLEAR_PEAK = Path("/proc/self/clear_refs")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write. Ratios that miss their bound are said, and are no failure."""
    wish = _parser().parse_args(words)
    if wish.threads:
        torch.set_num_threads(wish.threads)
    device = torch.device(wish.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wish.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}  # a model each
    for model in wish.model:
        found[model] = measure(
            model,
            device,
            rounds=wish.rounds or _ROUNDS[model],
            tokens=wish.tokens,
            concurrency=wish.concurrency,
            scale_down=wish.scale_down,
            clock=wish.clock,
        )
        print(report(found[model]), end="\n\n", flush=True)
        wish.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {wish.out}")


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
    """Everything that was measured of a model, as it goes to the JSON file."""
    measured = apart(lambda: bench_model(model, device, scale_down=scale_down))
    bench = apart(lambda: Bench.of(measured, tokens, max([1, *concurrency]), CLOCKS[clock]))
    prompt = apart(lambda: build_prompt(measured.model, measured.messages(0)))
    promises = None if scale_down else model  # whose bounds are looked at
    runs = apart(lambda: _rounds(bench, rounds))
    load = _load(bench, (rounds + 2) // 3, concurrency)
    results: dict[str, Any] = {
        "model": model,
        "scaled_down": scale_down,
        "parameters": sum(p.numel() for p in measured.model.network.parameters()),
        "dtype": str(measured.model.dtype).removeprefix("torch."),
        "machine": _machine(device),
        "clock": clock,
        "rounds": rounds,
        "tokens": tokens,
        "prompt_tokens": len(prompt.tokens),
        "audio_tokens": int(prompt.audio_mask.sum()),
        "question_tokens": len(prompt.tokens) - prompt.audio_end,
        "legend": {arm: says for arm, (says, _) in ARMS.items()},
        "arms": figures.summary(runs),
        "load": {name: figures.spread(each) for name, each in load.items()},
        "ratios": figures.ratios(runs, promises) + _load_ratios(load, promises),
        "runs": runs,
    }
    if model == "real":
        rates = rooflines(measured.model, prompt)
        results["floors"] = rates
        results["ratios"] += _floor_ratios(results["arms"], rates, promised=not scale_down)
        rows = 16 if scale_down else 256
        cost = different_directions(measured.model, measured.messages(0, 1.0), rows)
        says = f"{rows} directions / none, a decode step"
        results["ratios"].append(figures.ratio(says, [cost], "<=", None if scale_down else 1.02))
    return results


def report(results: dict[str, Any]) -> str:
    """The tables, under a line about what was measured."""
    size = f"{results['parameters'] / 1e6:.1f} M parameters, {results['dtype']}"
    prompt = (
        f"{results['prompt_tokens']} prompt tokens, {results['audio_tokens']} of them audio,"
        f" {results['question_tokens']} after it; answers of {results['tokens']}"
    )
    machine = ", ".join(f"{value}" for value in results["machine"].values())
    run = f"{results['rounds']} rounds, {results['clock']} clock"
    head = f"{results['model']}: {size}\n{prompt}\n{machine}; {run}"
    load = [figures.load_table] if results["load"] else []
    tables = (figures.arms_table, *load, figures.ratios_table)
    return "\n\n".join([head, *(make(results) for make in tables)])


def _rounds(bench: Bench, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Every arm once a round, from another place in the list each time; one round warms up."""
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
    found: dict[str, list[float]] = {}
    for i in range(rounds if concurrency else 0):
        seed = 10_000 * (i + 1)
        one = apart(partial(one_at_a_time, bench, 4, seed))
        found.setdefault("transformers, one at a time", []).append(one)
        for clients in concurrency:
            for steer in (False, True):
                name = f"allears {'steered' if steer else 'bare'}, {clients} at once"
                rate = through_engine(bench, clients, max(clients, 4), seed, steer=steer)
                found.setdefault(name, []).append(rate)
    return found


def _load_ratios(load: dict[str, list[float]], model: str | None) -> list[dict[str, Any]]:
    """Each load over transformers one at a time."""
    ones = load.get("transformers, one at a time", [])
    promised: dict[tuple[str | None, int], float] = {("demo", 16): 3.0, ("real", 32): 8.0}
    found = []
    for name, rates in load.items():
        if name.endswith("at once"):
            clients = int(name.split()[-3])
            each = [a / b for a, b in zip(rates, ones, strict=True)]
            limit = promised.get((model, clients))
            found.append(figures.ratio(f"{name} / transformers", each, ">=", limit))
    return found


def _floor_ratios(
    arms: dict[str, Any], rates: dict[str, float], *, promised: bool
) -> list[dict[str, Any]]:
    """The share of what the machine allows that is reached, in the prefill and decoding."""
    token = arms["bare"]["seconds_a_token"]["median"]
    passed = arms["bare"]["prefill_seconds"]["median"]
    shares: dict[str, tuple[float, float | None]] = {}
    shares["operations floor / prefill"] = (rates["prefill_floor_seconds"] / passed, None)
    if token:
        bound = 0.6 if promised else None
        shares["bandwidth floor / a token"] = (rates["decode_floor_seconds"] / token, bound)
    return [figures.ratio(says, [share], ">=", limit) for says, (share, limit) in shares.items()]


def clear_peak_memory(device: torch.device) -> None:
    """Start anew to look for the most memory; where the system can't, the peak is the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_PEAK.exists():
        _CLEAR_PEAK.write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes since the last clearing: of the device, or of the process on Linux; else None."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return found[0] if found else None


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
