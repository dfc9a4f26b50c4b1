"""Every block of code of the README and of pages that show commands runs, against a real server."""

from __future__ import annotations

import functools
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
PAGES = (
    "README.md",
    "docs/configuration.md",
    "docs/faq.md",
    "docs/guide.md",
    "docs/results.md",
    "docs/structure.md",
    "clients/README.md",
)
FEW = {"test": 4, "calibration": 40}  # items, instead of the thousands that a page asks for
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
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [Block(page, i, *fence) for i, fence in enumerate(fences)]


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
    """Runs a block from the root of the project, once; what it prints."""
    build = tmp_path_factory.mktemp("build")

    @functools.cache
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
    """A JSON value, but for its numbers, which differ from machine to machine."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return "number" if is_number(value) else value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(value: Any) -> list[float]:
    """The numbers of a JSON value, in their order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float(value)] if is_number(value) else []


SHOWN = [block for block in BLOCKS if block.language == "json"]


@pytest.mark.slow
@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_what_a_page_shows_is_what_the_block_before_prints(
    block: Block, run: Callable[[Block], str]
) -> None:
    before = blocks(block.page)[block.number - 1]
    printed, shown = json.loads(run(before)), json.loads(block.text)
    assert shape(printed) == shape(shown)
    assert numbers(printed) == pytest.approx(numbers(shown), rel=0.02)


def test_the_readme_shows_an_answer() -> None:
    assert [block.page for block in SHOWN] == ["README.md"]


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
