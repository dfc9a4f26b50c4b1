"""Every block of code in the README and the guide runs, against a server of the embedded model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from docs import make_api_page
from server.app import create_app
from server.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/guide.md", "docs/faq.md", "clients/README.md")
FEW = {"test": 8, "calibration": 48}  # items, instead of the thousands that a page asks for
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    number: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(page, i, *one) for i, one in enumerate(found)]


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.language in ("sh", "python")]


@pytest.fixture(scope="module")
def url(
    serve_process: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("guide") / "log"
    with serve_process(Path("demo"), ROOT / "steering" / "demo" / "profile", log) as (_, url):
        yield url


@pytest.fixture(scope="module")
def run(url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Block], str]:
    """Runs a block from the root of the project; what it prints."""
    build = tmp_path_factory.mktemp("build")

    def run(block: Block) -> str:
        text = block.text.replace("127.0.0.1:8000", url.removeprefix("http://"))
        text = text.replace(".venv/bin/", f"{BIN}/").replace("build/", f"{build}/")
        for split, count in FEW.items():
            text = re.sub(rf"--split {split} --items \d+", f"--split {split} --items {count}", text)
        text = re.sub(r"^make ", "make -n ", text, flags=re.MULTILINE)  # they serve, or run us
        shell = ["bash", "-euo", "pipefail", "-c", text]
        command = shell if block.language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=ROOT, env=dict(os.environ, ALLEARS_URL=url), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert '"error":' not in done.stdout
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=lambda b: f"{b.page}-{b.number}-{b.language}")
def test_a_block_runs(block: Block, run: Callable[[Block], str]) -> None:
    assert run(block).strip()


def shape(value: Any) -> Any:
    """Keys and kinds of a JSON value; all numbers are one kind."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_what_a_page_shows_is_what_comes(block: Block, run: Callable[[Block], str]) -> None:
    before = blocks(block.page)[block.number - 1]
    came, shown = json.loads(run(before)), json.loads(block.text)
    assert shape(came) == shape(shown)
    assert came["answer"] == shown["answer"]


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} == {"sh", "python", "json", "text"}
    shown = [block for block in BLOCKS if block.language == "text"]
    assert len(shown) <= 6, (
        "text is not run: keep it for output, layouts, and other people's models"
    )


def test_the_reference_is_the_one_of_this_version() -> None:
    made = make_api_page.page(create_app(Settings()).openapi())
    kept = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert made == kept, "write it again: python -m docs.make_api_page docs/api.md"
