"""A real server and the simulation, given the same requests.

A machine that others use is slower at one time than at another. How much is known from the server's
own answers, which say what their passes took; the simulation is as slow at the same times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from deploy.capacity import trial
from deploy.capacity.measurements import TRIAL_CLIPS, TRIAL_TOKENS, cpu_stages, engine_most, usual
from deploy.capacity.simulation import SimulatedReplicas, simulate
from deploy.capacity.traffic import Outcome, SimulatedRequest, Traffic, figures, requests
from server.bench.models import bench_model
from steering import profile as profiles
from steering.model.checkpoint import DEMO

TRIAL_LOADS = (0.5, 0.9, 1.4)  # of what the engine can do at most
_TRAFFIC = Traffic(1.0, TRIAL_CLIPS, TRIAL_TOKENS, steered=0.5)
_TRIAL_FLEET = SimulatedReplicas(1, 16, 16, 30.0, 3_000_000)  # room for three of the five silences
_PROBE_SECONDS = 10.0
_LOOK_SECONDS = 4.0  # a stretch is the mean of so long


def run_trials(
    model: Mapping[str, Any], seconds: float, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The same requests to a real server and through the simulation, at loads around the most."""
    demo = bench_model(DEMO, torch.device("cpu"))
    folder = profiles.DEMO_PROFILE
    words = ["--queue-limit-requests", f"{_TRIAL_FLEET.queue_limit}"]
    words += ["--silence-cache-bytes", f"{_TRIAL_FLEET.silence_cache_bytes}"]
    most, found = engine_most(model), []
    probe, strain = trial.run(demo, folder, requests(_TRAFFIC, _PROBE_SECONDS, 1), *words)
    slower = float(np.mean(stretches(model, probe)))
    for load in TRIAL_LOADS:
        rate = load * most / slower
        note(f"a real server, {rate:.3g} requests a second for {seconds:g} s")
        asked = requests(replace(_TRAFFIC, requests_a_second=rate), seconds, 0)
        outcomes, strain = trial.run(demo, folder, asked, *words)
        found.append(_beside(model, asked, outcomes, strain, seconds))
        slower = found[-1]["stretch"]["mean"]
    return found


def _beside(
    model: Mapping[str, Any],
    asked: Sequence[SimulatedRequest],
    outcomes: Sequence[Outcome],
    strain: trial.CpuContention,
    seconds: float,
) -> dict[str, Any]:
    """What a real server did, and what the simulation makes of the same requests."""
    stretch = stretches(model, outcomes)
    mean = float(np.mean(stretch))
    drawn = replace(
        cpu_stages(model, front=strain.other_dilation / mean),
        stretch=stretch_over_time(model, outcomes),
    )
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
        "simulated_torch_cpu": course.replicas[0].work_seconds,
        "real": figures(outcomes, seconds),
        "simulated": figures(course.outcomes, seconds),
    }


def curve(model: Mapping[str, Any]) -> list[dict[str, float]]:
    """The trial's traffic simulated at many loads, on a machine that nobody else uses."""
    drawn, most = cpu_stages(model), engine_most(model)
    seconds = 1200 / most
    found = []
    for load in np.linspace(0.1, 2.2, 22):
        traffic = replace(_TRAFFIC, requests_a_second=float(load) * most)
        course = simulate(requests(traffic, seconds, 4), drawn, _TRIAL_FLEET)
        found.append({"load": float(load), **figures(course.outcomes, seconds)})
    return found


def stretches(model: Mapping[str, Any], outcomes: Sequence[Outcome]) -> list[float]:
    """Seconds by the wall, as the server itself reports them, of a second of its passes' work.

    A core that others have stretches them, and Python's lock that other threads have.
    """
    found = []
    for one in outcomes:
        if one.status == 200:
            passes = ["prefill", *{"hit": ["twin hit"], "miss": ["twin words"]}.get(one.twin, [])]
            work = sum(usual(model, stage) for stage in passes)
            found.append(float(f"{one.passes_seconds / work:.3g}"))
    return found


def stretch_over_time(
    model: Mapping[str, Any], outcomes: Sequence[Outcome]
) -> Callable[[float], float]:
    """The mean stretch around a time, from the questions that entered then."""
    answered = [one for one in outcomes if one.status == 200]
    times = np.array([one.at + one.first_token_seconds for one in answered])
    each = np.array(stretches(model, answered))
    looks = (times // _LOOK_SECONDS).astype(int)
    at = [(look + 0.5) * _LOOK_SECONDS for look in np.unique(looks)]
    means = [float(each[looks == look].mean()) for look in np.unique(looks)]
    return lambda now: float(np.interp(now, at, means))
