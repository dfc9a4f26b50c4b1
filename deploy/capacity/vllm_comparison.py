"""`python -m deploy.capacity.vllm_comparison`: vLLM and allears side by side on this machine's CPU.

One random Qwen2-Audio, the same bytes by the same clients over HTTP, greedy answers of 64 tokens,
one server at a time. Each round is appended to a file, so a run that was stopped goes on where it
was; what the file has of other versions, machines or sizes is left alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deploy.capacity.compared_servers import (
    MODEL_NAME,
    SYSTEMS,
    VLLM,
    ComparedFiles,
    running_server,
    versions,
    write_checkpoint,
)
from deploy.capacity.page import table
from deploy.capacity.streamed_load import (
    CLIPS,
    chat_body,
    clip_lengths,
    gaps_while_others_enter,
    load,
)
from steering.cpu_threads import available_cores

DTYPES = ("float32", "bfloat16")
GAPS = "gaps"  # among the clips: the row that streams while clips of 30 s enter
_FEWEST_REQUESTS = 3  # of a round
_GAP_TOKENS = 4  # times as many as of other answers: the row must outlast what enters
_ENTERING = 3
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16")

Record = Mapping[str, Any]
Serving = Callable[[str, str], AbstractContextManager[str]]  # system and dtype to a URL


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What is measured, in which sizes."""

    systems: Sequence[str]
    dtypes: Sequence[str]
    clips: Sequence[str]  # of CLIPS, or GAPS
    concurrency: Sequence[int]
    rounds: int
    requests: int  # of each client in a round
    tokens: int  # of each answer

    def points(self, system: str, dtype: str, turn: int) -> Iterator[dict[str, Any]]:
        """What a server is asked in a round: the fields that tell one record from another."""
        shared = {"system": system, "dtype": dtype, "round": turn, "tokens": self.tokens}
        for clips in self.clips:
            for at_once in [1] if clips == GAPS else self.concurrency:
                count = max(at_once * self.requests, _FEWEST_REQUESTS)
                count = _ENTERING if clips == GAPS else count
                yield {**shared, "clips": clips, "concurrency": at_once, "requests": count}


def main(words: Sequence[str] | None = None) -> None:
    """Measure what the file does not have yet, then print the tables."""
    options = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the server with it
    files = ComparedFiles(options.folder)
    files.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(files)
    plan = ComparisonPlan(
        options.systems,
        options.dtypes,
        [*options.clips, *([] if options.no_gaps else [GAPS])],
        options.concurrency,
        options.rounds,
        options.requests,
        options.tokens,
    )
    origins = {s: {"machine": machine(), "versions": versions(s, files)} for s in plan.systems}
    results = options.results or files.checkpoint.with_name("results.jsonl")
    compare(plan, origins, results, lambda system, dtype: running_server(system, dtype, files))
    print(report(plan, origins, read_records(results)))


def compare(
    plan: ComparisonPlan, origins: Mapping[str, Record], results: Path, serving: Serving
) -> None:
    """Append what the file lacks; systems take turns in every round."""
    for dtype in plan.dtypes:
        for turn in range(plan.rounds):
            for system in plan.systems:
                known = read_records(results)
                points = [
                    point
                    for point in plan.points(system, dtype, turn)
                    if not any(is_of(record, origins[system], point) for record in known)
                ]
                if points:
                    _report(f"{dtype}, round {turn + 1} of {plan.rounds}: {system} starts")
                    with serving(system, dtype) as url:
                        _warm_up(url, points)
                        for point in points:
                            append(results, {**origins[system], **point, **measured(url, point)})


def measured(url: str, point: Record) -> dict[str, Any]:
    """The figures of one point. RuntimeError if an answer is of another length."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    bodies = list(_bodies(point))
    if point["clips"] == GAPS:
        row, *entering = bodies
        gaps = gaps_while_others_enter(url, row, entering)
        _report(f"  longest gap {gaps.longest:.3f} s, usual {gaps.usual:.3f}")
        return {"date": date, "longest_gap": gaps.longest, "usual_gap": gaps.usual}
    done = load(url, bodies, point["concurrency"])
    lengths = {answer.tokens for answer in done.answers}
    if lengths != {point["tokens"]}:
        raise RuntimeError(f"answers of {sorted(lengths)} tokens, not of {point['tokens']}")
    rate = len(bodies) / done.seconds
    _report(f"  clips {point['clips']}, {point['concurrency']} at once: {rate:.3f} a second")
    return {
        "date": date,
        "requests_a_second": rate,
        "first_token_seconds": [round(a.first_token_seconds, 4) for a in done.answers],
        "prompt_tokens": sum(a.prompt_tokens for a in done.answers),
    }


def _bodies(point: Record) -> Iterator[bytes]:
    """The requests of a point: the same for all systems, none twice."""
    steer, tokens, count = point["system"] == "steered", point["tokens"], point["requests"]
    kinds = [*CLIPS, GAPS, ""]
    seed = int(f"{kinds.index(point['clips'])}{point['round'] + 1:03}{point['concurrency']:03}000")
    if point["clips"] == GAPS:
        yield chat_body(MODEL_NAME, CLIPS["3"][0], seed, _GAP_TOKENS * tokens, steer=steer)
        lengths, tokens = [CLIPS["30"][0]] * count, 1
    else:
        lengths = clip_lengths(point["clips"], count, seed)
    for i, length in enumerate(lengths, 1):
        yield chat_body(MODEL_NAME, length, seed + i, tokens, steer=steer)


def _warm_up(url: str, points: Sequence[Record]) -> None:
    """Some answers as those that will be measured, of other clips."""
    steer, most = points[0]["system"] == "steered", max(p["concurrency"] for p in points)
    for shortest, longest in CLIPS.values():
        load(url, [chat_body(MODEL_NAME, (shortest + longest) / 2, 0, 4, steer=steer)], 1)
    load(url, [chat_body(MODEL_NAME, 3.0, i, 8, steer=steer) for i in range(most)], most)


# ---- the file


def append(results: Path, record: Record) -> None:
    """Add a line to the file of results; one that a crash cut off is ended first."""
    torn = results.exists() and not results.read_bytes().endswith(b"\n")
    with results.open("a") as file:
        file.write("\n" * torn + json.dumps(record) + "\n")


def read_records(results: Path) -> list[Record]:
    """All that was measured; a line that a crash cut off is none."""
    lines = results.read_text().splitlines(keepends=True) if results.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def is_of(record: Record, *fields: Record) -> bool:
    """Whether a record has all these fields at these values."""
    return all(record.get(key) == value for part in fields for key, value in part.items())


def machine() -> str:
    """The processor, what it computes in, and the cores that are used."""
    info, name, flags = Path("/proc/cpuinfo"), platform.machine(), ""
    if info.exists():  # Linux
        lines = (line.partition(":") for line in info.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        name = fields.get("model name", name)
        flags = " ".join(flag for flag in _CPU_FLAGS if flag in fields.get("flags", "").split())
    return f"{name} ({flags}), {available_cores()} cores"


# ---- the tables


def report(plan: ComparisonPlan, origins: Mapping[str, Record], records: Sequence[Record]) -> str:
    """Versions, machine and date, and three tables in markdown: rates, first tokens, gaps."""
    mine = [
        record
        for system, dtype in product(plan.systems, plan.dtypes)
        for record in records
        if any(
            is_of(record, origins[system], point)
            for point in plan.points(system, dtype, record["round"])
        )
    ]
    if not mine:
        return "nothing was measured"
    dates = sorted(record["date"] for record in mine)
    head = [f"{system}: {origins[system]['versions']}" for system in plan.systems]
    head.append(f"{mine[0]['machine']}; {dates[0]} to {dates[-1]} UTC")
    rounds = len({record["round"] for record in mine})
    head.append(f"answers of {plan.tokens} tokens; medians of {rounds} rounds")
    tables = [_rates(plan, mine), _first_tokens(plan, mine), _gaps(plan, mine)]
    return "\n\n".join(["\n".join(head), *tables])


def _rates(plan: ComparisonPlan, records: Sequence[Record]) -> str:
    """Requests a second, and how many of vLLM's."""
    at_once = " / ".join(map(str, plan.concurrency))
    others = [system for system in plan.systems if system != VLLM and VLLM in plan.systems]
    rows = []
    for dtype in plan.dtypes:
        for clips in (clips for clips in plan.clips if clips != GAPS):
            rate = {
                system: [
                    _median(records, "requests_a_second", system, dtype, clips, n)
                    for n in plan.concurrency
                ]
                for system in plan.systems
            }
            cells = [_cell(rate[system], 3) for system in plan.systems]
            for system in others:
                pairs = zip(rate[system], rate[VLLM], strict=True)
                cells.append(_cell([a / b if a and b else None for a, b in pairs], 2))
            rows.append([dtype, _clips(clips), *cells])
    ratios = [f"{system} / {VLLM}" for system in others]
    return table(["requests a second", f"clips, {at_once} at once", *plan.systems, *ratios], rows)


def _first_tokens(plan: ComparisonPlan, records: Sequence[Record]) -> str:
    """Seconds until the first token, where most are at once."""
    most = max(plan.concurrency)
    rows = []
    for dtype in plan.dtypes:
        for clips in (clips for clips in plan.clips if clips != GAPS):
            cells = [
                _cell([_first_token(records, q, s, dtype, clips, most) for q in (0.5, 0.95)], 2)
                for s in plan.systems
            ]
            rows.append([dtype, _clips(clips), *cells])
    title = f"first token s, {most} at once, median / p95"
    return table([title, "clips", *plan.systems], rows)


def _gaps(plan: ComparisonPlan, records: Sequence[Record]) -> str:
    """Seconds between two tokens of a streaming row, usually and while clips of 30 s enter."""
    names = ("usual_gap", "longest_gap")
    rows = []
    for dtype in plan.dtypes:
        gaps = [[_median(records, n, s, dtype, GAPS, 1) for n in names] for s in plan.systems]
        rows.append([dtype, *(_cell(pair, 3) for pair in gaps)])
    title = "gap between two tokens s, usual / longest while 30 s clips enter"
    return table([title, *plan.systems], rows)


def _of_point(
    records: Sequence[Record], system: str, dtype: str, clips: str, concurrency: int
) -> list[Record]:
    point = {"system": system, "dtype": dtype, "clips": clips, "concurrency": concurrency}
    return [record for record in records if is_of(record, point)]


def _median(records: Sequence[Record], figure: str, *point: Any) -> float | None:
    """The median of the rounds; None for none."""
    rounds = [float(record[figure]) for record in _of_point(records, *point)]
    return median(rounds) if rounds else None


def _first_token(records: Sequence[Record], quantile: float, *point: Any) -> float | None:
    """The median over the rounds of a quantile over the requests."""
    rounds = [np.quantile(r["first_token_seconds"], quantile) for r in _of_point(records, *point)]
    return float(median(rounds)) if rounds else None


def _cell(values: Sequence[float | None], digits: int) -> str:
    return " / ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


def _clips(clips: str) -> str:
    return "1 to 30 s mixed" if clips == "mixed" else f"{clips} s"


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.capacity.vllm_comparison",
        description="Measure vLLM and allears side by side on this machine's CPU.",
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--clips", nargs="+", choices=CLIPS, default=list(CLIPS), help="seconds")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="0: only print what was measured")
    parser.add_argument("--requests", type=int, default=1, help="of each client in a round")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--no-gaps", action="store_true", help="leave out the streaming row")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="for all that is made")
    parser.add_argument("--results", type=Path, help="FOLDER/vllm_comparison/results.jsonl")
    return parser


if __name__ == "__main__":
    main()
