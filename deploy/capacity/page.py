"""docs/capacity.md: the tables between its markers, made from the figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from deploy.capacity import costs
from deploy.capacity.costs import Machine, ModelSizes, Work
from deploy.capacity.forecast import H100, AssumedShares, h100_machine
from deploy.capacity.stage_times import median, step_kv_length

Figures = Mapping[str, Any]
_BLOCK = re.compile(r"<!-- made: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
STAGES = (
    ("open", "body to question"),
    ("decode", "file to clip"),
    ("prompt", "question to prompt"),
    ("encoder", "encoder"),
    ("prefill", "prefill"),
    ("twin hit", "twin, hit"),
    ("twin miss", "miss, known length"),
    ("twin cold", "miss, new length"),
)


def filled(page: str, figures: Figures) -> str:
    """The page with every table made anew; the text around them stays."""

    def block(marked: re.Match[str]) -> str:
        return f"<!-- made: {marked[1]} -->\n{TABLES[marked[1]](figures)}\n<!-- end -->"

    return _BLOCK.sub(block, page)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    first, *others = ("| " + " | ".join(line) + " |" for line in (head, *rows))
    return "\n".join([first, "|---" * len(head) + "|", *others])


def ms(seconds: float) -> str:
    """Milliseconds, three digits, never as a power of ten."""
    value = float(f"{1000 * seconds:.3g}")
    return f"{value:.0f}" if value >= 100 else f"{value:g}"


# ---- measured


def _conditions(figures: Figures) -> str:
    """The machine, and how busy it was."""
    machine, rates = figures["machine"], figures["models"]["mid"]["rates"]
    product, copy = rates["operations_a_second"] / 1e9, rates["bytes_a_second"] / 1e9
    busy = ", ".join(f"{m['wall_over_cpu']:.2f} (`{n}`)" for n, m in figures["models"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} torch thread,"
        f" torch {machine['torch']}; a matrix product reached {product:.0f} GFLOP/s, a copy"
        f" {copy:.0f} GB/s. Wall over CPU seconds, which is 1 on a quiet machine: {busy}."
    )


def _measured(figures: Figures) -> str:
    """Median CPU milliseconds of each stage."""
    clips = [("demo", 3.0), ("mid", 10.0), ("mid", 30.0)]
    rows = [
        [says, *(ms(median(figures["models"][name], stage, clip)) for name, clip in clips)]
        for stage, says in STAGES
    ]
    return table(["ms", *(f"{name}, {clip:g} s" for name, clip in clips)], rows)


def _steps(figures: Figures) -> str:
    """Median CPU milliseconds of decode steps."""
    counts = (1, 4, 16)
    each = (
        f"`{name}` {'; '.join(ms(median(model, 'step', n)) for n in counts)} ms"
        for name, model in figures["models"].items()
    )
    return f"A decode step of {'; '.join(map(str, counts))} rows: {', '.join(each)}."


def _bytes(figures: Figures) -> str:
    """Keys, values and silence of the longest clip, of the true sizes."""
    clip, prompt = max(figures["real"]["prompts"].items(), key=lambda item: float(item[0]))
    sizes = ModelSizes(**figures["real"]["sizes"])
    entry = sizes.entry_bytes(prompt["prefix"]) + sizes.feature_bytes(prompt["audio"])
    row = sizes.row_bytes(prompt["tokens"])
    return (
        f"Qwen2-Audio-7B holds {row / 1e6:.0f} MB for an answer's row about {clip} s and"
        f" {entry / 1e6:.0f} MB for their silence."
    )


def _gap(figures: Figures) -> str:
    """Distance of the cost model from what was measured, for each model."""
    sentences = []
    for name, model in figures["models"].items():
        machine = Machine(**model["rates"], layer_seconds=figures["forecast"]["layer_seconds"])
        ratios = [
            median(model, stage, size) / machine.seconds(work)
            for stage, size, work in _works(model)
        ]
        low, middle, high = min(ratios), float(np.median(ratios)), max(ratios)
        sentences.append(f"`{name}` {middle:.2f} ({low:.2f} to {high:.2f})")
    return f"Measured over predicted, median and range of all passes: {', '.join(sentences)}."


def _works(model: Figures) -> list[tuple[str, float, Work]]:
    """The operations and bytes of each measured stage."""
    sizes = ModelSizes(**model["sizes"])
    works: list[tuple[str, float, Work]] = []
    for clip, prompt in model["prompts"].items():
        tokens, prefix = prompt["tokens"], prompt["prefix"]
        heard = costs.encoder(sizes, prompt["positions"])
        text, silent = costs.question(sizes, tokens, prefix), costs.silent_prefix(sizes, prefix)
        works += [
            ("encoder", float(clip), heard),
            ("prefill", float(clip), costs.prefill(sizes, tokens, prompt["positions"])),
            ("twin hit", float(clip), text),
            ("twin miss", float(clip), text + silent),
            ("twin cold", float(clip), text + silent + heard),
        ]
    kv_length = step_kv_length(model)
    return works + [("step", n, costs.step(sizes, n, kv_length)) for n in (1, 4, 16)]


# ---- the trial


def _trial(figures: Figures) -> str:
    """A line a measure, a column a load: of the real server, and simulated."""
    measures = {
        "answered_a_second": ("answers a second", "{:.1f}"),
        "p50_seconds": ("p50 s", "{:.2f}"),
        "p99_seconds": ("p99 s", "{:.2f}"),
        "p99_first_token_seconds": ("first token p99 s", "{:.2f}"),
        "refused_share": ("429", "{:.0%}"),
        "hit_share": ("cache hits", "{:.0%}"),
    }
    rows = [
        [
            says,
            *(
                f"{form.format(trial['real'][name])}; {form.format(trial['simulated'][name])}"
                for trial in figures["trial"]
            ),
        ]
        for name, (says, form) in measures.items()
    ]
    loads = (
        f"{trial['real']['requests_a_second']:.1f} ({trial['load']:.0%})"
        for trial in figures["trial"]
    )
    return table(["requests a second (load)", *loads], rows)


def _slowdown(figures: Figures) -> str:
    """Others' part of the machine while the trial ran."""
    means = [trial["slowdown"]["mean"] for trial in figures["trial"]]
    cores = [trial["torch_slowdown"] for trial in figures["trial"]]
    cpu = [
        trial["simulated_torch_cpu"] / trial["contention"]["torch_cpu"] - 1
        for trial in figures["trial"]
    ]
    return (
        f"Slowdown: {', '.join(f'{x:.2f}' for x in means)}; of it waiting for a core:"
        f" {', '.join(f'{x:.2f}' for x in cores)}. The torch thread's CPU seconds, simulated over"
        f" real: {', '.join(f'{x:+.0%}' for x in cpu)}."
    )


# ---- predicted


def _short(figures: Figures) -> str:
    """The page in a few lines."""
    limits = figures["forecast"]["limits"]
    poisson = {
        line["replicas"]: line["requests_a_second"]
        for line in figures["forecast"]["fleets"]
        if line["burst"] == 1 and not line["refused_share"]
    }
    rates = ", ".join(f"{count} about {rate:.0f}" for count, rate in poisson.items())
    return (
        "Predicted: one H100 with Qwen2-Audio-7B answers at most"
        f" {limits['bare_16']:.0f} questions a second about 30 s of sound in 16 rows,"
        f" {limits['bare_rows']:.0f} in {limits['rows']}, with 64 tokens each; steered"
        f" {limits['hit_16']:.0f} and {limits['hit_rows']:.0f} where the silence is cached,"
        f" {limits['cold_16']:.0f} and {limits['cold_rows']:.0f} where it never is. At 0.7 of their"
        f" limit, half steered, cards answer without a 429: {rates} a second."
    )


def _true_sizes(figures: Figures) -> str:
    """Predicted seconds of Qwen2-Audio's passes on the card, and what bounds them."""
    prompt, shares = figures["real"]["prompts"]["30"], AssumedShares()
    sizes, tokens = ModelSizes(**figures["real"]["sizes"]), prompt["tokens"]
    card = h100_machine(figures["forecast"]["layer_seconds"], shares)
    passes = {
        "encoder": costs.encoder(sizes, prompt["positions"]),
        "prefill": costs.prefill(sizes, tokens, prompt["positions"]),
        "twin: question": costs.question(sizes, tokens, prompt["prefix"]),
        "twin: silent prefix": costs.silent_prefix(sizes, prompt["prefix"]),
        **{f"step, {n} rows": costs.step(sizes, n, tokens + 32) for n in (1, 16, 64)},
    }
    rows = []
    for name, work in passes.items():
        graph = name.startswith("step")
        bounds = {
            "operations": work.operations / H100.operations_a_second / shares.operations,
            "bytes": work.bytes / H100.bytes_a_second / shares.bandwidth,
            "starting operators": 0.0 if graph else work.layers * card.layer_seconds,
        }
        seconds = card.seconds(work, graph=graph)
        rows.append([name, ms(seconds), max(bounds, key=lambda bound: bounds[bound])])
    return table(["pass", "ms", "bound by"], rows)


def _limits(figures: Figures) -> str:
    """Latency and limits of one card."""
    limits = figures["forecast"]["limits"]
    first = "; ".join(ms(limits[f"entering_{kind}_seconds"]) for kind in ("bare", "hit", "cold"))
    return (
        f"First token, nobody else there, bare; steered, hit; miss: {first} ms. There is memory for"
        f" {limits['rows_fit']} rows of 1,024 tokens. One CPU core preprocesses"
        f" {limits['preprocessing_one_core']:.0f} requests a second."
    )


def _one_card(figures: Figures) -> str:
    """One card with many rows: at most, and at 0.8 of that."""
    rows = [
        [
            line["mix"],
            f"{line['steered']:.0%}",
            f"{line['cache_bytes'] / 1e9:g}",
            f"{line['max_a_second']:.0f}",
            f"{line['hit_share']:.0%}" if line["steered"] else "",
            f"{line['p99_seconds']:.1f}",
        ]
        for line in figures["forecast"]["one_card"]
        if line["mix"] != "30 s" and line["rows"] != 16
    ]
    head = ["clips", "steered", "cache GB", "most a second", "hits", "p99 s"]
    return table(head, rows)


def _shares(figures: Figures) -> str:
    """Sensitivity to the assumed shares."""
    low, assumed, high = (
        f"{figures['forecast']['shares'][name]:.0f}" for name in ("low", "assumed", "high")
    )
    return (
        f"With 0.35 and 0.45 instead, 64 rows answer {low} bare questions about 30 s a second,"
        f" with 0.5 and 0.6 {assumed}, with 0.65 and 0.8 {high}."
    )


def _fleets(figures: Figures) -> str:
    """The largest number of cards, by arrivals and routing."""
    rows = [
        [
            "bursts" if line["burst"] > 1 else "Poisson",
            line["routing"].replace("_", " "),
            f"{line['answered_a_second']:.0f}",
            f"{line['p99_first_token_seconds']:.2f}",
            f"{line['refused_share']:.0%}",
        ]
        for line in figures["forecast"]["fleets"]
        if line["replicas"] == 64
    ]
    head = ["arrivals", "routing", "answers a second", "first token p99 s", "429"]
    return table(head, rows)


TABLES: Mapping[str, Callable[[Figures], str]] = {
    "short": _short,
    "conditions": _conditions,
    "measured": _measured,
    "steps": _steps,
    "bytes": _bytes,
    "gap": _gap,
    "trial": _trial,
    "slowdown": _slowdown,
    "true_sizes": _true_sizes,
    "limits": _limits,
    "shares": _shares,
    "one_card": _one_card,
    "fleets": _fleets,
}
