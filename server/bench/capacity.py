"""`python -m server.bench.capacity`: everything docs/capacity.md says, measured and made again.

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.bench import capacity_page, capacity_plot, costs, forecast, stages, trial
from server.bench.card import Host
from server.bench.costs import Machine, Shape
from server.bench.forecast import most_a_second
from server.bench.models import REAL, Subject, random_model, random_profile, subject
from server.bench.seconds import Seconds, Stages
from server.bench.simulation import Fleet, simulate
from server.bench.traffic import Asked, Outcome, Traffic, figures, requests
from steering import profile as profiles
from steering.checkpoint import DEMO

PARTS = ("measure", "trial", "forecast", "page")
CLIPS = {DEMO: (1.0, 2.0, 3.0), "mid": (10.0, 30.0)}
REAL_CLIPS = (1.0, 10.0, 30.0)
TRIAL_CLIPS = (1.8, 2.1, 2.4, 2.7, 3.0)
TRIAL_LOADS = (0.5, 0.9, 1.4)  # of what the engine can do at most
_TRIAL_TOKENS = (4, 32)
_TRAFFIC = Traffic(1.0, TRIAL_CLIPS, _TRIAL_TOKENS, steered=0.5)
_TRIAL_FLEET = Fleet(1, 16, 16, 30.0, 3_000_000)  # room for three of the five silences
_PROBE_SECONDS = 10.0


def main(words: Sequence[str] | None = None) -> None:
    """Measure what was asked for, keep the rest, write figures, page and plot."""
    wish = _parser().parse_args(words)
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(wish.out.read_text()) if wish.out.exists() else {}
    if "measure" in wish.parts:
        results |= measured(wish.rounds)
    if "trial" in wish.parts:
        results["trial"] = tried(results["models"][DEMO], wish.trial_seconds)
    if "forecast" in wish.parts:
        results["forecast"] = forecast_of(results)
    wish.out.write_text(json.dumps(results, indent=1) + "\n")
    if "page" in wish.parts:
        wish.page.write_text(capacity_page.filled(wish.page.read_text(), results))
        capacity_plot.draw(results, wish.page.with_suffix(".png"))
    _note(f"written: {wish.out}, {wish.page}")


def measured(rounds: int) -> dict[str, Any]:
    """Stages of both models, and the front of the true sizes, which needs no weights."""
    models, question = {}, ""
    for name, clips in CLIPS.items():
        _note(f"stages of {name}")
        fewer = rounds if name == DEMO else max(rounds // 6, 2)
        measuring = subject(name, torch.device("cpu"))
        models[name] = stages.measure(measuring, clips, fewer)
        question = measuring.question  # all speak the embedded model's tokens
    _note("bodies and prompts of the true sizes")
    model = random_model("real", REAL, torch.device("meta"), torch.bfloat16)
    whole = Subject(model, random_profile(model, REAL), REAL.clip_seconds, question)
    real = stages.front(whole, REAL_CLIPS, rounds)
    real["shape"] = asdict(Shape.of(model, REAL.deepest_layer + 1))
    real["parameters"] = sum(p.numel() for p in model.network.parameters())
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return {"machine": machine, "models": models, "real": real}


def tried(model: Mapping[str, Any], seconds: float) -> list[dict[str, Any]]:
    """The same requests to a real server and through the simulation, at loads around the most."""
    demo = subject(DEMO, torch.device("cpu"))
    folder = profiles.DEMO_PROFILE
    words = ["--queue-limit-requests", f"{_TRIAL_FLEET.queue_limit}"]
    words += ["--silence-cache-bytes", f"{_TRIAL_FLEET.silence_cache_bytes}"]
    most, found = engine_most(model), []
    probe, strain = trial.run(demo, folder, requests(_TRAFFIC, _PROBE_SECONDS, 1), *words)
    slower = float(np.mean(stretches(model, probe)))
    for load in TRIAL_LOADS:
        rate = load * most / slower
        _note(f"a real server, {rate:.3g} requests a second for {seconds:g} s")
        asked = requests(replace(_TRAFFIC, requests_a_second=rate), seconds, 0)
        outcomes, strain = trial.run(demo, folder, asked, *words)
        found.append(_beside(model, asked, outcomes, strain, seconds))
        slower = found[-1]["stretch"]["mean"]
    return found


def _beside(
    model: Mapping[str, Any],
    asked: Sequence[Asked],
    outcomes: Sequence[Outcome],
    strain: trial.Strain,
    seconds: float,
) -> dict[str, Any]:
    """What a real server did, and what the simulation makes of the same requests."""
    stretch = stretches(model, outcomes)
    mean = float(np.mean(stretch))
    drawn = cpu_stages(model, stretch, [strain.other_dilation])
    course = simulate(asked, drawn, _TRIAL_FLEET)
    return {
        "requests": len(asked),
        "load": len(asked) / seconds * mean / engine_most(model),
        "seconds": seconds,
        "strain": asdict(strain),
        "torch_dilation": strain.torch_dilation,
        "other_dilation": strain.other_dilation,
        "stretch": {
            "mean": mean,
            **{f"p{q}": float(np.percentile(stretch, q)) for q in (10, 50, 90)},
        },
        "simulated_torch_cpu": course.replicas[0].busy_seconds / mean,
        "real": figures(outcomes, seconds),
        "simulated": figures(course.outcomes, seconds),
    }


def forecast_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the true sizes are predicted to do on cards, with what was measured of this CPU."""
    real = results["real"]
    sizes = real["prompts"]["30"]
    text = (sizes["prefix"] - sizes["audio"], sizes["tokens"] - sizes["prefix"])
    host = Host(
        open=samples(real, "open"),
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


def curve(model: Mapping[str, Any]) -> list[dict[str, float]]:
    """The trial's traffic simulated at many loads, on a machine that nobody else uses."""
    drawn, most = cpu_stages(model), engine_most(model)
    seconds = 1200 / most
    found = []
    for load in np.linspace(0.1, 1.6, 16):
        traffic = replace(_TRAFFIC, requests_a_second=float(load) * most)
        course = simulate(requests(traffic, seconds, 4), drawn, _TRIAL_FLEET)
        found.append({"load": float(load), **figures(course.outcomes, seconds)})
    return found


# ---- what the measured stages say


def samples(
    model: Mapping[str, Any], stage: str, factors: Sequence[float] = (1.0,)
) -> dict[float, list[float]]:
    """CPU seconds of a stage by size, each once with every factor."""
    found = model["stages"][stage]["cpu"]
    return {float(size): [f * one for one in each for f in factors] for size, each in found.items()}


def median(model: Mapping[str, Any], stage: str, size: float) -> float:
    """CPU seconds of a stage."""
    return float(np.median(samples(model, stage)[size]))


def cpu_stages(
    model: Mapping[str, Any], engine: Sequence[float] = (1.0,), front: Sequence[float] = (1.0,)
) -> Stages:
    """Measured CPU seconds for the simulation, times what a second of them takes by the wall."""
    shape, prompts = Shape(**model["shape"]), model["prompts"]
    clips = sorted(map(float, prompts))
    prefixes, audio = ([prompts[f"{c:g}"][key] for c in clips] for key in ("prefix", "audio"))

    def at(stage: str, factors: Sequence[float]) -> Seconds:
        return Seconds(samples(model, stage, factors))

    return Stages(
        open=at("open", front),
        prepare=at("prepare", front),
        bare=at("enter bare", engine),
        hit=at("enter hit", engine),
        words=at("enter words", engine),
        cold=at("enter cold", engine),
        round=at("round", engine),
        entry_bytes=lambda clip: shape.entry_bytes(round(float(np.interp(clip, clips, prefixes)))),
        feature_bytes=lambda clip: shape.feature_bytes(round(float(np.interp(clip, clips, audio)))),
    )


def engine_most(model: Mapping[str, Any]) -> float:
    """Answers a second of the trial's traffic that the engine can give, by the closed form."""
    bare, hit, words = (median(model, f"enter {kind}", 2.0) for kind in ("bare", "hit", "words"))
    entering = 0.5 * bare + 0.25 * (hit + words)  # half are steered, half of these hit
    return most_a_second(16, float(np.mean(_TRIAL_TOKENS)), entering, median(model, "round", 16))


def stretches(model: Mapping[str, Any], outcomes: Sequence[Outcome]) -> list[float]:
    """Seconds by the wall, as the server itself reports them, of a second of its passes' work.

    A core that others have stretches them, and Python's lock that other threads have.
    """
    found = []
    for one in outcomes:
        if one.status == 200:
            passes = ["prefill", *{"hit": ["twin hit"], "miss": ["twin words"]}.get(one.twin, [])]
            work = sum(median(model, stage, 2.0) for stage in passes)
            found.append(float(f"{one.passes_seconds / work:.3g}"))
    return found


def layer_seconds(model: Mapping[str, Any]) -> float:
    """To start one layer's operators: a step of one row of the smallest model is little else."""
    shape, rates = Shape(**model["shape"]), model["rates"]
    floor = Machine(**rates).seconds(costs.step(shape, 1, 192))
    return max(median(model, "step", 1) - floor, 0.0) / shape.layers


def row_seconds(model: Mapping[str, Any]) -> float:
    """Between two steps, for each answer: its text grows, its event is posted."""
    return max(median(model, "round", 16) - median(model, "step", 16), 0.0) / 16


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.bench.capacity",
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
