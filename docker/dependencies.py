"""Prints what pyproject.toml depends on, torch left out, a line each: a layer of its own."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: str) -> list[str]:
    """The requirements of a project but torch, which has a layer and an index of its own."""
    wanted: list[str] = tomllib.loads(pyproject)["project"]["dependencies"]
    return [one for one in wanted if not re.match(r"torch\b(?!-)", one)]


if __name__ == "__main__":
    print("\n".join(dependencies(Path(sys.argv[1]).read_text(encoding="utf-8"))))
