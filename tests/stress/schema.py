"""schemathesis on the OpenAPI document: all its checks, against a server with keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.stress.outcome import Outcome, at_least, none_of
from tests.stress.server_process import KEY, ROOT, Served, serving

_HOOKS = "tests.stress.schema_cases"
_SHOWN_LINES, _SHOWN_CHARACTERS = 60, 300


def run(
    cases: int,
    seed: int,
    *,
    examples: int = 60,
    phases: str = "examples,coverage,fuzzing,stateful",
    max_seconds: float = 1500,
) -> Outcome:
    """At least so many cases, with up to `examples` drawn at random for each operation."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as served:
        report, output = _run_schemathesis(served, examples, seed, phases, max_seconds)
        faults = served.faults()
    failures = report.get("failures", [])
    checks = [
        at_least("cases sent", report.get("test_cases", {}).get("generated", 0), cases),
        at_least("operations", report.get("operations", {}).get("tested", 0), 10),
        none_of("failures of any check", len(failures)),
        none_of("errors of the run itself", len(report.get("errors", []))),
        none_of("tracebacks and errors in the server's log", len(faults)),
    ]
    shown = [_failure_text(output)] if failures or not report else []
    return Outcome("schema", time.monotonic() - started, seed, tuple(checks), (*shown, *faults))


def _failure_text(output: str) -> str:
    """The output about failures, each with the case and the way to repeat it."""
    lines = output[max(output.find("= FAILURES ="), 0) :].splitlines()
    shown = [line[:_SHOWN_CHARACTERS] for line in lines if line.strip()]
    return "\n".join(shown[:_SHOWN_LINES])


def _run_schemathesis(
    served: Served, examples: int, seed: int, phases: str, max_seconds: float
) -> tuple[Mapping[str, Any], str]:
    """Its own report, and its output."""
    report = served.folder / "schemathesis.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {KEY}", "--checks", "all", "--no-color"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure"]
    command += [
        "--phases",
        phases,
        "--no-shrink",
        "--wait-for-schema",
        "60",
        "--request-timeout",
        "60",
    ]
    command += ["--report", "json", "--report-json-path", str(report)]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": _HOOKS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=served.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max_seconds,
    )
    output = done.stdout + done.stderr
    return (json.loads(report.read_text()) if report.exists() else {}), output
