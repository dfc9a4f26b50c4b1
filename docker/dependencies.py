"""Prints what the image needs of pyproject.toml but torch, a line each: a layer of its own."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: str) -> list[str]:
    """The requirements of a project, its extra `postgres` included, but torch, which has a layer
    and an index of its own.
    """
    project = tomllib.loads(pyproject)["project"]
    wanted: list[str] = project["dependencies"] + project["optional-dependencies"]["postgres"]
    return [one for one in wanted if not re.match(r"torch\b(?!-)", one)]


if __name__ == "__main__":
    print("\n".join(dependencies(Path(sys.argv[1]).read_text(encoding="utf-8"))))
