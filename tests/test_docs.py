"""The README and the docs hold what they say: settings, errors, files, anchors, folders, tests."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from server.api.error_responses import TABLE, UNEXPECTED
from server.cli import app
from server.settings import Settings, variable
from steering.evaluation.arms import ARMS

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
CONFIGURATION = (DOCS / "configuration.md").read_text()
STRUCTURE = (DOCS / "structure.md").read_text()
# Read by the client's commands, or by the test suite.
OTHER_VARIABLES = {"ALLEARS_URL", "ALLEARS_API_KEY", "ALLEARS_REQUIRE_SYSTEM"}


def words(*pages: Path) -> int:
    """The words of pages, as `wc -w` counts them."""
    return sum(len(page.read_text().split()) for page in pages)


def test_the_readme_and_the_docs_are_short() -> None:
    assert words(README) <= 1300
    assert words(*(page for page in PAGES if page not in (README, DOCS / "api.md"))) <= 16_000


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_configuration_page_lists_every_setting_with_what_is_allowed(name: str) -> None:
    lines = CONFIGURATION.splitlines()
    row = next(line for line in lines if line.startswith(f"| `{variable(name)}` |"))
    _, default, allowed = row.strip("| ").split(" | ") if row.count(" | ") == 2 else (0, "", row)
    field = Settings.model_fields[name]
    assert str(field.description) in allowed
    assert not isinstance(field.default, int | float) or f"`{field.default}`" in default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_a_page_names_no_setting_that_is_not_there(page: Path) -> None:
    named = set(re.findall(r"ALLEARS_[A-Z_]+[A-Z]", page.read_text()))
    assert named <= {variable(name) for name in Settings.model_fields} | OTHER_VARIABLES


def test_the_configuration_page_lists_every_error_a_client_can_get() -> None:
    specs = {(spec.status, spec.code) for spec in (*TABLE.values(), UNEXPECTED)}
    listed = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", CONFIGURATION, re.MULTILINE)
    gone = {(499, "client_gone")}  # nobody is left to get it
    assert {(int(status), code) for status, code in listed} >= specs - gone
    assert len(listed) == len(set(listed))


def test_the_results_are_of_arms_that_exist() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "results.md").read_text(), re.MULTILINE)
    assert len(set(rows)) == 17
    assert set(rows) <= set(ARMS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_files_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(
        r"`((?:server|steering|clients|deploy|docker|docs|lock|tests)/[\w/.-]+)`", text
    )
    linked = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [p for p in named if not (ROOT / p).exists()]
    missing += [p for p in linked if not (page.parent / p).exists()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_anchors_of_a_page_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text())
    targets = [(page.parent / file if file else page, anchor) for file, anchor in links]
    assert not [anchor for target, anchor in targets if anchor not in anchors(target)]


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


def defined(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Names of functions, classes and values of a module; of methods as `Class.method`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined(node.body, f"{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        yield from (prefix + target.id for target in targets if isinstance(target, ast.Name))


def places() -> list[tuple[str, str, str]]:
    """The lines of "Where is ...?" of docs/structure.md: question, file, name."""
    (section,) = (s for s in STRUCTURE.split("\n## ") if s.startswith("Where is"))
    return re.findall(r"^- (.+): `(\S+)`, `(\S+)`$", section, re.MULTILINE)


@pytest.mark.parametrize(("question", "file", "name"), places(), ids=lambda cell: str(cell))
def test_what_the_structure_page_places_is_there(question: str, file: str, name: str) -> None:
    assert (ROOT / file).is_file(), f"{question}: {file} is not there"
    assert name in defined(ast.parse((ROOT / file).read_text()).body), f"{question}: {file} {name}"


def test_the_structure_page_answers_the_questions_of_a_newcomer() -> None:
    questions = " ".join(question for question, *_ in places())
    assert len(places()) >= 14
    for topic in ("refused as too long", "strength", "metric", "model family"):
        assert topic in questions


def package_folders() -> list[str]:
    """Every folder of the source that holds files of git, but data inside packages and tests."""
    done = subprocess.run(
        ["git", "ls-files", "server", "steering", "clients", "deploy", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted({str(Path(file).parent) for file in done.stdout.splitlines()})


def test_the_structure_page_names_every_folder() -> None:
    named = re.findall(r"`((?:server|steering|clients|deploy|tests)/(?:[\w/]+/)?)`", STRUCTURE)
    assert not [folder for folder in named if not (ROOT / folder).is_dir()]
    missing = []
    for folder in package_folders():
        python = any((ROOT / folder).glob("*.py"))
        is_data = not python and folder.count("/") > 1  # such as deploy/kubernetes/base
        mirrored = folder.removeprefix("tests/") if folder.startswith("tests/") else folder
        if folder in ("clients", "tests", "steering/demo") or is_data:
            continue
        if f"{folder}/" not in named and f"{mirrored}/" not in named:
            missing.append(folder)
    assert not missing


def test_every_test_that_a_page_names_exists() -> None:
    texts = (page.read_text() for page in PAGES)
    named = {test for text in texts for test in re.findall(r"`(tests/\S+\.py)::(\w+)`", text)}
    assert len(named) > 15
    assert not [f"{path}::{test}" for path, test in named if test not in functions(ROOT / path)]


def test_every_advisory_has_a_test_that_tries_it() -> None:
    sections = re.split(r"^## ", (DOCS / "reliability.md").read_text(), flags=re.MULTILINE)
    (advisories,) = (section for section in sections if section.startswith("Advisories\n"))
    rows = re.findall(r"^\| (?!what happened)(.*) \|$", advisories, re.MULTILINE)
    assert len(rows) == 11
    assert all("`tests/" in row.split(" | ")[3] for row in rows)
    assert len(set(re.findall(r"CVE-\d{4}-\d+", advisories))) == 9
