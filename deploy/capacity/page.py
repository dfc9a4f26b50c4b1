"""docs/capacity.md: the tables between its markers, and its plot, made from the figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deploy.capacity import costs, forecast_tables
from deploy.capacity.costs import Machine, Shape, Work
from deploy.capacity.markdown import mb, ms, table
from deploy.capacity.measurements import step_reach

Results = Mapping[str, Any]
_BLOCK = re.compile(r"<!-- made: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
STAGES = (
    ("open", "body to question, without decoding"),
    ("decode", "file to clip"),
    ("prepare", "question to prompt"),
    ("encoder", "encoder"),
    ("prefill", "prefill, encoder included"),
    ("twin hit", "twin, hit"),
    ("twin words", "twin, miss; the encoder's silence at hand"),
    ("twin cold", "twin, miss"),
    ("step", "decode step"),
    ("round", "decode step, and what the engine does between two"),
)


def filled(page: str, results: Results) -> str:
    """The page with every table made anew; the text around them stays."""

    def block(found: re.Match[str]) -> str:
        return f"<!-- made: {found[1]} -->\n{TABLES[found[1]](results)}\n<!-- end -->"

    return _BLOCK.sub(block, page)


# ---- measured


def _measured(results: Results) -> str:
    """A line a stage and size: the distribution of its CPU seconds."""
    rows = []
    for name, model in results["models"].items():
        for stage, says in STAGES:
            for size, samples in model["stages"][stage]["cpu"].items():
                what = f"{size} rows" if stage in ("step", "round") else f"{size} s"
                cuts = [ms(float(np.quantile(samples, q))) for q in (0.1, 0.5, 0.9, 1.0)]
                rows.append([name, says, what, *cuts, str(len(samples))])
    return table(
        ["model", "stage", "of", "p10 ms", "median ms", "p90 ms", "most ms", "samples"], rows
    )


def _conditions(results: Results) -> str:
    """What was measured on, and how busy it was."""
    machine, rates = results["machine"], results["models"]["mid"]["rates"]
    entering = results["models"]["demo"]["stages"]["enter bare"]
    ratio = np.median(entering["wall"]["2"]) / np.median(entering["cpu"]["2"])
    product, copy = rates["operations_a_second"] / 1e9, rates["bytes_a_second"] / 1e9
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} torch thread,"
        f" torch {machine['torch']}. A matrix product reached {product:.0f} GFLOP/s and a copy"
        f" {copy:.0f} GB/s, by the same clock. While the embedded model's stages were measured, a"
        f" second of work took {ratio:.1f} s by the wall: more than 1 is what others had of the"
        " machine."
    )


def _bytes(results: Results) -> str:
    """Keys, values and silence: formula and what is really held."""
    rows = []
    for name, model in results["models"].items():
        shape = Shape(**model["shape"])
        for clip, sizes in model["prompts"].items():
            kept = model["kept_bytes"][clip]
            entry = shape.entry_bytes(sizes["prefix"]) + shape.feature_bytes(sizes["audio"])
            row = shape.row_bytes(sizes["tokens"])
            rows.append([name, clip, str(sizes["tokens"]), mb(row), mb(kept["row"])])
            rows[-1] += [mb(entry), mb(kept["silence"])]
    real, shape = results["real"], Shape(**results["real"]["shape"])
    for clip, sizes in real["prompts"].items():
        entry = shape.entry_bytes(sizes["prefix"]) + shape.feature_bytes(sizes["audio"])
        row = shape.row_bytes(sizes["tokens"])
        rows.append(["Qwen2-Audio-7B", clip, str(sizes["tokens"]), mb(row), "", mb(entry), ""])
    head = ["model", "clip s", "prompt tokens", "row MB", "held", "silence MB", "held"]
    return table(head, rows)


# ---- the cost model


def _checked(results: Results) -> str:
    """Predicted and measured seconds, for both models; the start of a layer is the smaller's."""
    layer_seconds, rows = results["forecast"]["layer_seconds"], []
    for name, model in results["models"].items():
        machine = Machine(**model["rates"], layer_seconds=layer_seconds)
        for stage, size, work in _works(model):
            floor = Machine(**model["rates"]).seconds(work)
            predicted = machine.seconds(work)
            took = float(np.median(model["stages"][stage]["cpu"][size]))
            rows.append(
                [
                    *(name, f"{stage}, {size}", f"{work.operations / 1e9:.3g}", ms(floor)),
                    *(ms(predicted), ms(took), f"{took / predicted:.2f}"),
                ]
            )
    head = ["model", "stage", "10⁹ operations", "floor ms", "predicted ms", "measured ms"]
    return table([*head, "measured / predicted"], rows)


def _gap(results: Results) -> str:
    """How far the model of costs is off, for each model."""
    says = []
    for name, model in results["models"].items():
        machine = Machine(**model["rates"], layer_seconds=results["forecast"]["layer_seconds"])
        ratios = [
            float(np.median(model["stages"][stage]["cpu"][size])) / machine.seconds(work)
            for stage, size, work in _works(model)
        ]
        low, mid, high = min(ratios), float(np.median(ratios)), max(ratios)
        says.append(f"`{name}` {mid:.2f} (from {low:.2f} to {high:.2f})")
    return f"Measured over predicted, the median of all passes: {', '.join(says)}."


def _works(model: Results) -> list[tuple[str, str, Work]]:
    """What each measured stage asks for."""
    shape, found = Shape(**model["shape"]), []
    for clip, sizes in model["prompts"].items():
        tokens, prefix = sizes["tokens"], sizes["prefix"]
        heard = costs.encoder(shape, sizes["positions"])
        text, silent = costs.question(shape, tokens, prefix), costs.silent_prefix(shape, prefix)
        found += [
            ("encoder", clip, heard),
            ("prefill", clip, costs.prefill(shape, tokens, sizes["positions"])),
            ("twin hit", clip, text),
            ("twin words", clip, text + silent),
            ("twin cold", clip, text + silent + heard),
        ]
    reach = step_reach(model)
    return found + [
        ("step", rows, costs.step(shape, int(rows), reach)) for rows in ("1", "4", "16")
    ]


# ---- the trial


def _trial(results: Results) -> str:
    """A line a load and measure: of the real server, and simulated."""
    names = {
        "answered_a_second": ("answers a second", "{:.2f}"),
        "p50_seconds": ("p50 s", "{:.2f}"),
        "p99_seconds": ("p99 s", "{:.2f}"),
        "p50_first_token_seconds": ("first token p50 s", "{:.3f}"),
        "p99_first_token_seconds": ("first token p99 s", "{:.3f}"),
        "refused_share": ("429", "{:.1%}"),
        "hit_share": ("cache hits", "{:.1%}"),
    }
    rows = []
    for run in results["trial"]:
        what = f"{run['real']['asked_a_second']:.2f} ({run['load']:.0%})"
        for name, (says, form) in names.items():
            real, simulated = run["real"][name], run["simulated"][name]
            off = f"{simulated / real - 1:+.0%}" if real else ""
            rows.append([what, says, form.format(real), form.format(simulated), off])
            what = ""
        cpu, busy = run["strain"]["torch_cpu"], run["simulated_torch_cpu"]
        rows.append(
            ["", "torch thread's CPU s", f"{cpu:.2f}", f"{busy:.2f}", f"{busy / cpu - 1:+.0%}"]
        )
    return table(["asked a second (load)", "", "real", "simulated", "gap"], rows)


def _strain(results: Results) -> str:
    """How busy the machine was while the trial ran."""
    rows = []
    for run in results["trial"]:
        stretch, core = run["stretch"], run["torch_dilation"]
        rows.append([f"{run['real']['asked_a_second']:.2f}", str(run["requests"])])
        rows[-1] += [
            f"{stretch['mean']:.2f} ({stretch['p10']:.2f}, {stretch['p90']:.2f})",
            *(f"{core:.2f}", f"{stretch['mean'] / core:.2f}"),
            ms(run["strain"]["other_cpu"] / run["requests"]),
        ]
    head = ["asked a second", "requests", "stretch: mean (p10, p90)", "of it: no core"]
    return table(
        [*head, "of it: the rest", "CPU ms a request outside the engine, decoders included"], rows
    )


TABLES: Mapping[str, Callable[[Results], str]] = {
    "conditions": _conditions,
    "measured": _measured,
    "bytes": _bytes,
    "checked": _checked,
    "gap": _gap,
    "trial": _trial,
    "strain": _strain,
    **forecast_tables.TABLES,
}
