"""What the README and the docs say is so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from server.cli import app
from server.settings import Settings, variable

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_readme_lists_every_setting_with_what_is_allowed(name: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `{variable(name)}` |"))
    _, default, allowed = row.strip("| ").split(" | ") if row.count(" | ") == 2 else (0, "", row)
    field = Settings.model_fields[name]
    assert str(field.description) in allowed
    assert not isinstance(field.default, int | float) or f"`{field.default}`" in default


def test_the_readme_lists_no_setting_that_is_not_there() -> None:
    named = set(re.findall(r"ALLEARS_[A-Z_]+", README))
    assert named <= {variable(name) for name in Settings.model_fields}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_files_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:server|steering|clients|docs|tests)/[\w/.-]+)`", text)
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [p for p in named if not (ROOT / p).exists()]
    missing += [p for p in linked if not (page.parent / p).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_commands_of_a_page_exist(page: Path) -> None:
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    known |= {str(group.name) for group in app.registered_groups}
    named = set(
        re.findall(r"(?:^|[`/ ])allears ([a-z][a-z-]+) (?:--|[A-Z./])", page.read_text(), re.M)
    )
    assert named <= known


def functions(path: Path) -> set[str]:
    """The names of a file's functions."""
    tree = ast.parse(path.read_text())
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_a_page_names_exists() -> None:
    named = {
        one for page in PAGES for one in re.findall(r"`(tests/\S+\.py)::(\w+)`", page.read_text())
    }
    assert len(named) > 15
    assert not [f"{path}::{test}" for path, test in named if test not in functions(ROOT / path)]


def test_every_advisory_has_a_test_that_tries_it() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    (advisories,) = (one for one in section if one.startswith("Advisories\n"))
    rows = re.findall(r"^\| (?!what happened)(.*) \|$", advisories, re.MULTILINE)
    assert len(rows) == 11
    assert all("`tests/" in row.split(" | ")[3] for row in rows)
    assert len(set(re.findall(r"CVE-\d{4}-\d+", advisories))) == 9
