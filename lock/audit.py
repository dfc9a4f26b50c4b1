"""Audit pinned packages for known vulnerabilities; exit code 1 if one has any.

    build/tools/bin/python lock/audit.py torch==2.13.0 lock/*.txt

pip-audit asks PyPI, or an OSV server that OSV_URL names. Packages without an answer are printed and
are no failure: the service may be out of reach. Every version in the files is audited, whatever its
platform and Python. A vulnerability that was looked into and does not affect us goes into
`NOT_OURS` with the reason.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOT_OURS: dict[str, str] = {}  # id of a vulnerability: the reason why it does not affect us
_PIN = re.compile(r"^([A-Za-z0-9._-]+(?:\[[^\]]*\])?==[^\s;]+)", re.MULTILINE)


def without_repeats(pins: Sequence[str]) -> list[list[str]]:
    """The pins in lists that hold no package twice: pip-audit refuses a file that does."""
    groups: list[list[str]] = []
    for pin in sorted(set(pins)):
        name = pin.partition("==")[0]
        free = (group for group in groups if not any(p.startswith(f"{name}==") for p in group))
        group = next(free, None)
        if group is None:
            groups.append([pin])
        else:
            group.append(pin)
    return groups


def report(pins: Sequence[str]) -> list[dict[str, Any]]:
    """pip-audit's report on each pin; empty if its service is out of reach."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, output = Path(folder, "pins.txt"), Path(folder, "report.json")
        requirements.write_text("\n".join(pins))
        service = ["--vulnerability-service", "pypi"]
        if "OSV_URL" in os.environ:
            service = ["--vulnerability-service", "osv", "--osv-url", os.environ["OSV_URL"]]
        audit = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--timeout", "15"]
        audit += [
            "--progress-spinner",
            "off",
            "--format",
            "json",
            "--output",
            str(output),
            *service,
        ]
        done = subprocess.run(
            [*audit, "--requirement", str(requirements)],
            capture_output=True,
            text=True,
            check=False,
        )
        if output.exists():
            packages: list[dict[str, Any]] = json.loads(output.read_text())["dependencies"]
            return packages
        print((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1], file=sys.stderr)
        return []


def judge(pins: Sequence[str], packages: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit status and the lines to print for pip-audit's report on some pins."""
    audited = {f"{each['name']}=={each['version']}" for each in packages if "vulns" in each}
    lines = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in"
        f" {', '.join(vulnerability['fix_versions']) or 'no release'}"
        for package in packages
        for vulnerability in package.get("vulns", [])
        if not NOT_OURS.keys() & {vulnerability["id"], *vulnerability.get("aliases", [])}
    ]
    status = int(bool(lines))
    lines.append(f"audited {len(audited)} of {len(pins)} pinned versions")
    if len(audited) < len(pins):
        lines.append("the vulnerability service did not answer for the others: NOT AUDITED")
    return status, lines


def main() -> None:
    """Audit the pins and the files of pins named on the command line."""
    words = sys.argv[1:]
    texts = [Path(word).read_text() if word.endswith(".txt") else word for word in words]
    pins = sorted({pin for text in texts for pin in _PIN.findall(text)})
    if not pins:
        raise SystemExit(f"nothing is pinned in {' '.join(words) or 'no files'}")
    status, lines = judge(pins, [each for group in without_repeats(pins) for each in report(group)])
    print("\n".join(lines))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
