"""`python -m tests.stress`: real servers under load, faults and hostile input, and the table.

Exit code 1 if any check failed; the table is written all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from tests.stress import database, hostile_audio, process_signals, schema, soak
from tests.stress.outcome import Outcome
from tests.stress.server_process import ROOT

_PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- torture: begin -->", "<!-- torture: end -->"


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts named, write their outcomes; 1 if a check failed."""
    options = _parser().parse_args(words)
    parts: dict[str, Callable[[], Outcome]] = {
        "audio": lambda: hostile_audio.run(options.files, options.seed),
        "schema": lambda: schema.run(options.cases, options.seed),
        "soak": lambda: soak.run(options.requests, options.seed, concurrent=options.concurrent),
        "signals": lambda: process_signals.run(options.clients, options.kills, options.seed),
        "database": lambda: database.run(options.records, options.outages, options.seed),
    }
    outcomes = []
    for name in options.part or parts:
        print(f"{name}: begun {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)
        outcomes.append(parts[name]())
        print(outcome_text(outcomes[-1]), flush=True)
        stored = _stored_outcomes(options.out) | {name: {**asdict(outcomes[-1]), **_conditions()}}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(stored, indent=2) + "\n")
        if options.write:
            _write(_page([stored[name] for name in parts if name in stored]))
    return 0 if all(outcome.held for outcome in outcomes) else 1


def outcome_text(outcome: Outcome) -> str:
    """An outcome for the terminal."""
    lines = [f"{outcome.part}: {outcome.seconds:,.0f} s, seed {outcome.seed}"]
    for check in outcome.checks:
        mark = "ok    " if check.held else "FAILED"
        bound = f"  ({check.bound})" if check.bound else ""
        lines.append(f"  {mark} {check.says}: {check.seen}{bound}")
    return "\n".join([*lines, *(f"  - {failure}" for failure in outcome.failures)])


def _stored_outcomes(path: Path) -> dict[str, dict[str, object]]:
    """Outcomes of earlier runs, by part."""
    stored: dict[str, dict[str, object]] = json.loads(path.read_text()) if path.exists() else {}
    return stored


def _conditions() -> dict[str, str]:
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{platform.machine()}, {cores} cores, {memory:.0f} GiB"
    return {"date": time.strftime("%Y-%m-%d"), "machine": f"{machine}, torch {torch.__version__}"}


def _page(parts: Sequence[dict[str, object]]) -> str:
    """The lists of docs/reliability.md: a line for each part, with the machine if it is
    another one than the part before's, and, below it, for each check.
    """
    lines: list[str] = []
    machine: object = None
    for part in parts:
        where = "" if part["machine"] == machine else f" {part['machine']},"
        machine = part["machine"]
        lines += [
            f"**{part['part']}**: {part['date']},{where} {part['seconds']:,.0f} s,"
            f" seed {part['seed']}",
            "",
        ]
        for check in part["checks"]:  # type: ignore[attr-defined]
            bound = f" ({check['bound']})" if check["bound"] else ""
            mark = "" if check["held"] else " **missed**"
            lines.append(f"- {check['says']}: {check['seen']}{bound}{mark}")
        lines.append("")
    return "\n".join(lines[:-1])


def _write(text: str) -> None:
    """Put the table between its markers."""
    page = _PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    _PAGE.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress",
        description="Hold real servers under load, faults and hostile input.",
        epilog="Example: python -m tests.stress --part soak --requests 2000 --seed 7",
    )
    parser.add_argument(
        "--part", nargs="+", choices=("audio", "schema", "soak", "signals", "database")
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", type=int, default=10_000, help="of hostile audio")
    parser.add_argument("--cases", type=int, default=2000, help="of schemathesis, at least")
    parser.add_argument("--requests", type=int, default=20_000, help="of the soak")
    parser.add_argument("--concurrent", type=int, default=32, help="clients of the soak")
    parser.add_argument("--clients", type=int, default=24, help="at SIGTERM and SIGKILL")
    parser.add_argument("--kills", type=int, default=5, help="times a server is killed")
    parser.add_argument("--records", type=int, default=2000, help="answers about outages")
    parser.add_argument("--outages", type=int, default=4, help="of PostgreSQL")
    parser.add_argument("--out", type=Path, default=Path("build/torture.json"))
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
