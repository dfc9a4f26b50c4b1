"""Asks whether pinned packages have known vulnerabilities; ends with 1 if one has.

    build/tools/bin/python lock/audit.py torch==2.13.0 lock/*.txt

pip-audit asks PyPI, or an OSV server that OSV_URL names. What the service did not say anything
about is printed and is no failure: it may be out of reach. Every version in the files is asked
about, for whichever platform and Python it is. A vulnerability that was looked into and does not
touch us goes into `NOT_OURS` with the reason.
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

NOT_OURS: dict[str, str] = {}  # id of a vulnerability: why it can't happen here
_PIN = re.compile(r"^([A-Za-z0-9._-]+(?:\[[^\]]*\])?==[^\s;]+)", re.MULTILINE)


def rounds(pins: Sequence[str]) -> list[list[str]]:
    """The pins in lists that hold no package twice: pip-audit refuses a file that does."""
    found: list[list[str]] = []
    for pin in sorted(set(pins)):
        name = pin.partition("==")[0]
        free = (some for some in found if not any(one.startswith(f"{name}==") for one in some))
        some = next(free, None)
        if some is None:
            found.append([pin])
        else:
            some.append(pin)
    return found


def report(pins: Sequence[str]) -> list[dict[str, Any]]:
    """What pip-audit says of each pin; nothing if its service can't be asked."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, said = Path(folder, "pins.txt"), Path(folder, "said.json")
        wanted.write_text("\n".join(pins))
        service = ["--vulnerability-service", "pypi"]
        if "OSV_URL" in os.environ:
            service = ["--vulnerability-service", "osv", "--osv-url", os.environ["OSV_URL"]]
        ask = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--timeout", "15"]
        ask += ["--progress-spinner", "off", "--format", "json", "--output", str(said), *service]
        done = subprocess.run(
            [*ask, "--requirement", str(wanted)], capture_output=True, text=True, check=False
        )
        if said.exists():
            found: list[dict[str, Any]] = json.loads(said.read_text())["dependencies"]
            return found
        print((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1], file=sys.stderr)
        return []


def judge(pins: Sequence[str], packages: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit status and the lines to print for what pip-audit said of some pins."""
    asked = {f"{one['name']}=={one['version']}" for one in packages if "vulns" in one}
    lines = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, fixed in"
        f" {', '.join(vulnerability['fix_versions']) or 'no release'}"
        for one in packages
        for vulnerability in one.get("vulns", [])
        if not NOT_OURS.keys() & {vulnerability["id"], *vulnerability.get("aliases", [])}
    ]
    status = int(bool(lines))
    lines.append(f"audited {len(asked)} of {len(pins)} pinned versions")
    if len(asked) < len(pins):
        lines.append("the vulnerability service did not answer for the others: NOT AUDITED")
    return status, lines


def main() -> None:
    """Audits the pins and the files of pins named on the command line."""
    words = sys.argv[1:]
    texts = [Path(word).read_text() if word.endswith(".txt") else word for word in words]
    pins = sorted({pin for text in texts for pin in _PIN.findall(text)})
    if not pins:
        raise SystemExit(f"nothing is pinned in {' '.join(words) or 'no files'}")
    status, lines = judge(pins, [one for some in rounds(pins) for one in report(some)])
    print("\n".join(lines))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
