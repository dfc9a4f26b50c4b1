"""The rules of the house that a program can check: who imports whom, names, what README says."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "steering", "clients")
CLIENT = "allears_client"  # the package in clients/
SOURCES = sorted(
    path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)

WEB = {"fastapi", "starlette"}
WEB_NAMES = ("routes", "schemas", "app", "errors", "middleware", "access", "stream")
WEB_FILES = {f"server/{name}.py" for name in WEB_NAMES}
SOUND = {"soundfile", "soxr"}
VAGUE = {"util", "helper", "common", "base", "manager", "factory", "registry", "handler", "service"}


def forbidden(file: str) -> set[str]:
    """The top-level modules that the source `file`, a path from the root, may not import."""
    package = file.split("/")[0]
    modules: set[str] = set()
    if package == "clients":
        modules |= {"server", "steering", "torch", "transformers"}
    if package == "steering":
        modules |= {"server", CLIENT, "uvicorn", "pydantic", "pydantic_settings"}
    if package == "server" and file != "server/cli.py":
        modules |= {CLIENT} if file == "server/serve.py" else {CLIENT, "uvicorn"}
    if file not in WEB_FILES:
        modules |= WEB
    if file != "server/telemetry/tracing.py":
        modules |= {"opentelemetry"}
    if file != "steering/audio/decode.py" and not file.startswith("steering/demo/"):
        modules |= SOUND
    return modules


def imported(source: str) -> dict[str, int]:
    """Top-level name of every module `source` imports, anywhere in it, and the line."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name.split(".")[0], node.lineno)
        elif isinstance(node, ast.ImportFrom):
            name = (node.module or "").split(".")[0] if node.level == 0 else "."
            found.setdefault(name, node.lineno)
    return found


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_imports_go_one_way(file: Path) -> None:
    found = imported((ROOT / file).read_text(encoding="utf-8"))
    wrong = forbidden(file.as_posix()) & found.keys()
    assert not wrong, [f"{file}:{found[name]} may not import {name}" for name in sorted(wrong)]
    assert "." not in found, f"{file}:{found['.']} imports relatively; name the package"


def test_the_rule_sees_every_kind_of_import() -> None:
    source = "import server.app as x\ndef f():\n    from steering.audio import clip\nimport a, b.c"
    assert imported(source) == {"server": 1, "steering": 3, "a": 4, "b": 4}
    assert {"server", "steering"} <= forbidden("clients/allears_client/client.py")
    assert {"server", CLIENT, "fastapi", "pydantic"} <= forbidden("steering/model/audio_model.py")
    assert {"fastapi", "starlette", "soxr"} <= forbidden("server/engine/engine.py")
    assert "opentelemetry" in forbidden("server/engine/engine.py")
    assert not {CLIENT, "uvicorn", "steering"} & forbidden("server/cli.py")


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_a_file_is_named_for_a_thing(file: Path) -> None:
    words = {word.removesuffix("s") for word in re.split(r"[/_]", file.with_suffix("").as_posix())}
    assert not words & VAGUE


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.MULTILINE))


def make_commands(markdown: str) -> list[str]:
    """Every `make ...` command in the code of `markdown`, inline or fenced."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    code = [
        *re.findall(r"`([^`\n]+)`", prose),
        *(line for block in fenced for line in block.split("\n")),
    ]
    steps = (step.strip(" $") for line in code for step in re.split(r"&&|[;|]", line.split("#")[0]))
    return [step for step in steps if re.match(r"(\w+=\S+ )*make\b", step)]


def named_targets(command: str) -> list[str]:
    words = shlex.split(command)
    return [
        word for word in words[words.index("make") + 1 :] if re.fullmatch(r"[a-z][a-z-]*", word)
    ]


def test_make_commands_are_found() -> None:
    markdown = (
        "Please make sure to run `make demo`, or `make`.\n"
        "```sh\ngit clone x && make serve VENV=y  # make tea\n$ A=1 make -j2 test check\n```\n"
    )
    found = [target for one in make_commands(markdown) for target in named_targets(one)]
    assert sorted(found) == ["check", "demo", "serve", "test"]


def test_every_make_target_of_the_readme_exists() -> None:
    commands = make_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    named = {target for command in commands for target in named_targets(command)}
    assert "demo" in named, "the README starts with `make demo`"
    assert named <= make_targets()


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## \S", makefile, re.MULTILINE))
    assert explained == make_targets()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == make_targets()
