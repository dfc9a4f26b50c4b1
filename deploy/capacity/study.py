"""`python -m deploy.capacity.study`: everything docs/capacity.md says, measured and made again.

It measures stages of the embedded and of the mid-size model, sends a load to a real server and
through the simulation, forecasts an H100, and writes figures, page and plot. Minutes, on a CPU;
meant for a quiet machine, and tolerable on another: seconds are of the torch thread's own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deploy.capacity import forecast, page, plot, stages
from deploy.capacity.card import Host
from deploy.capacity.comparison import curve, run_trials
from deploy.capacity.costs import Shape
from deploy.capacity.measurements import engine_most, layer_seconds, row_seconds, samples
from server.bench.models import REAL, BenchModel, bench_model, random_model, random_profile
from steering.model.checkpoint import DEMO

PARTS = ("measure", "trial", "forecast", "page")
CLIPS = {DEMO: (1.0, 2.0, 3.0), "mid": (10.0, 30.0)}
REAL_CLIPS = (1.0, 10.0, 30.0)


def main(words: Sequence[str] | None = None) -> None:
    """Measure what was asked for, keep the rest, write figures, page and plot."""
    wish = _parser().parse_args(words)
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(wish.out.read_text()) if wish.out.exists() else {}
    if "measure" in wish.parts:
        results |= measured(wish.rounds)
    if "trial" in wish.parts:
        results["trial"] = run_trials(results["models"][DEMO], wish.trial_seconds, _note)
    if "forecast" in wish.parts:
        results["forecast"] = forecast_of(results)
    wish.out.write_text(json.dumps(results, indent=1) + "\n")
    if "page" in wish.parts:
        wish.page.write_text(page.filled(wish.page.read_text(), results))
        plot.draw(results, wish.page.with_suffix(".png"))
    _note(f"written: {wish.out}, {wish.page}")


def measured(rounds: int) -> dict[str, Any]:
    """Stages of both models, and the front of the true sizes, which needs no weights."""
    models, question = {}, ""
    for name, clips in CLIPS.items():
        _note(f"stages of {name}")
        is_demo = name == DEMO
        measuring = bench_model(name, torch.device("cpu"))
        fewer = rounds if is_demo else max(rounds // 8, 1)
        models[name] = stages.measure(measuring, clips, fewer, entries=is_demo)
        question = measuring.question  # all speak the embedded model's tokens
    _note("bodies and prompts of the true sizes")
    model = random_model("real", REAL, torch.device("meta"), torch.bfloat16)
    whole = BenchModel(model, random_profile(model, REAL), REAL.clip_seconds, question)
    shape = Shape.of(model, REAL.deepest_layer + 1)
    real = stages.front(whole, shape, REAL_CLIPS, rounds)
    real["parameters"] = sum(p.numel() for p in model.network.parameters())
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return {"machine": machine, "models": models, "real": real}


def forecast_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the true sizes are predicted to do on cards, with what was measured of this CPU."""
    real = results["real"]
    sizes = real["prompts"]["30"]
    text = (sizes["prefix"] - sizes["audio"], sizes["tokens"] - sizes["prefix"])
    host = Host(
        open=samples(real, "open"),
        decode=samples(real, "decode"),
        prepare=samples(real, "prepare"),
        layer_seconds=layer_seconds(results["models"][DEMO]),
        row_seconds=row_seconds(results["models"][DEMO]),
    )
    found = forecast.forecast(Shape(**real["shape"]), host, text, _note)
    return {
        "layer_seconds": host.layer_seconds,
        "row_seconds": host.row_seconds,
        "curve": curve(results["models"][DEMO]),
        "most_a_second": engine_most(results["models"][DEMO]),
        **found,
    }


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.capacity.study",
        description="Measure, simulate and forecast what docs/capacity.md says, and write it.",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--out", type=Path, default=Path("docs/capacity.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/capacity.md"))
    parser.add_argument("--rounds", type=int, default=24, help="samples of each stage")
    parser.add_argument("--trial-seconds", type=float, default=40.0, help="of each load")
    return parser


if __name__ == "__main__":
    main()
