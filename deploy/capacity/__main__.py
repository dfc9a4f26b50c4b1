"""`python -m deploy.capacity`: the figures, page and plot of docs/capacity.md, made anew.

It measures stages of the embedded and of the mid-size model, sends the same load to a real server
and through the simulation, and forecasts an H100. It takes minutes of a CPU that should be quiet;
on a busy one the figures are usable, for they are CPU seconds of the torch thread.
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

from deploy.capacity import page, plot, stage_measurement
from deploy.capacity.costs import ModelSizes
from deploy.capacity.forecast import Host, forecast
from deploy.capacity.stage_times import engine_limit, layer_seconds, quantiles, row_seconds
from deploy.capacity.trial import run_trials, simulated_curve
from server.bench.models import REAL, BenchModel, bench_model, random_model, random_profile
from steering.model.checkpoint import DEMO

FIGURES = Path(__file__).with_name("figures.json")
PARTS = ("measure", "trial", "forecast", "page")
CLIPS = {DEMO: (1.0, 2.0, 3.0), "mid": (10.0, 30.0)}
REAL_CLIPS = (1.0, 10.0, 30.0)


def main(words: Sequence[str] | None = None) -> None:
    """Make the parts named, keep the others; write figures, page and plot."""
    options = _parser().parse_args(words)
    torch.set_num_threads(1)
    figures: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if "measure" in options.parts:
        figures |= measure(options.rounds)
    if "trial" in options.parts:
        figures["trial"] = run_trials(figures["models"][DEMO], options.trial_seconds, _report)
    if "forecast" in options.parts:
        figures["forecast"] = make_forecast(figures)
    options.out.write_text(to_json(figures))
    if "page" in options.parts:
        options.page.write_text(page.filled(options.page.read_text(), figures))
        plot.draw(figures, options.page.with_suffix(".png"))
    _report(f"written: {options.out}, {options.page}")


def measure(rounds: int) -> dict[str, Any]:
    """Stages of both models, and preprocessing of the true sizes, which needs no weights."""
    models, question = {}, ""
    for name, clips in CLIPS.items():
        _report(f"stages of {name}")
        is_demo = name == DEMO
        bench = bench_model(name, torch.device("cpu"))
        fewer = rounds if is_demo else max(rounds // 8, 1)
        models[name] = stage_measurement.measure(bench, clips, fewer, entries=is_demo)
        question = bench.question  # all speak the embedded model's tokens
    _report("bodies and prompts of the true sizes")
    model = random_model("real", REAL, torch.device("meta"), torch.bfloat16)
    true_sizes = BenchModel(model, model, random_profile(model, REAL), REAL.clip_seconds, question)
    sizes = ModelSizes.of(model, REAL.deepest_layer + 1)
    real = stage_measurement.measure_preprocessing(true_sizes, sizes, REAL_CLIPS, rounds)
    real["parameters"] = sum(p.numel() for p in model.network.parameters())
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return {"machine": machine, "models": models, "real": real}


def make_forecast(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The forecast of the true sizes on cards, with this CPU's measured part."""
    real = figures["real"]
    prompt = real["prompts"]["30"]
    text_tokens = (prompt["prefix"] - prompt["audio"], prompt["tokens"] - prompt["prefix"])
    host = Host(
        open=quantiles(real, "open"),
        decode=quantiles(real, "decode"),
        prompt=quantiles(real, "prompt"),
        layer_seconds=layer_seconds(figures["models"][DEMO]),
        row_seconds=row_seconds(figures["models"][DEMO]),
    )
    return {
        "layer_seconds": host.layer_seconds,
        "row_seconds": host.row_seconds,
        "curve": simulated_curve(figures["models"][DEMO]),
        "max_a_second": engine_limit(figures["models"][DEMO]),
        **forecast(ModelSizes(**real["sizes"]), host, text_tokens, _report),
    }


def to_json(value: Any, indent: str = "") -> str:
    """JSON whose flat objects and arrays stand in a line each."""
    parts = value.values() if isinstance(value, dict) else value
    if not indent:
        return f"{to_json(value, ' ')}\n"
    if not any(isinstance(part, dict | list) for part in parts):
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_nested(part, indent)}" for key, part in value.items()]
    else:
        lines = [_nested(part, indent) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    inner = f",\n{indent}".join(lines)
    return f"{opening}\n{indent}{inner}\n{indent[1:]}{closing}"


def _nested(value: Any, indent: str) -> str:
    return to_json(value, indent + " ") if isinstance(value, dict | list) else json.dumps(value)


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.capacity",
        description="Measure, simulate and forecast what docs/capacity.md says, and write it.",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--page", type=Path, default=Path("docs/capacity.md"))
    parser.add_argument("--rounds", type=int, default=24, help="samples of each stage")
    parser.add_argument("--trial-seconds", type=float, default=40.0, help="of each load")
    return parser


if __name__ == "__main__":
    main()
