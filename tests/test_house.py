"""The rules of the house that a program can check: imports, names, sizes, shapes, the README."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENT = "allears_client"  # the package in clients/
SOURCES = sorted(
    path.relative_to(ROOT)
    for package in ("server", "steering", "clients")
    for path in (ROOT / package).rglob("*.py")
)
TREES = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in SOURCES}

# Each place may import only from places further down; places of one line not from each other.
ORDER = {
    "server": (
        ("cli",),
        ("serve", "doctor", "bench", "demo_command"),
        ("stalled_connections", "replicas"),
        ("app",),
        ("api",),
        ("deployment",),
        ("loading", "telemetry"),
        ("memory_check",),
        ("settings",),
        ("engine", "audio", "listening_log", "access"),
        ("errors", "threads"),
    ),
    "steering": (
        ("cli",),
        ("evaluation", "demo"),
        ("calibration",),
        ("transformers_hooks", "synthetic", "verification"),
        ("",),  # the method's own files, at the top
        ("model",),
        ("attention", "audio"),
        ("errors",),
    ),
}
# Which places may import a library, itself or lazily; all others may not.
LIBRARIES = {
    "fastapi": ("server/api/", "server/app.py", "server/replicas/front.py"),
    "starlette": ("server/api/", "server/app.py"),
    "uvicorn": ("server/serve.py", "server/cli.py", "server/stalled_connections.py"),
    "sqlalchemy": ("server/listening_log/",),
    "opentelemetry": ("server/telemetry/tracing.py",),
    "ray": ("server/replicas/ray_serve.py", "steering/calibration/workers.py"),
    "av": ("steering/audio/pyav_reader.py",),
    "soundfile": ("steering/audio/", "steering/synthetic/", "steering/demo/"),
    "soxr": ("steering/audio/", "steering/synthetic/", "steering/demo/"),
    "matplotlib": ("steering/evaluation/",),
    "jinja2": ("steering/evaluation/",),
    "pydantic": ("server/",),
    "pydantic_settings": ("server/settings.py",),
    "torch": ("server/", "steering/"),
    "transformers": ("server/", "steering/"),
    CLIENT: ("clients/", "server/cli.py", "server/demo_command.py"),
    "server": ("server/",),
    "steering": ("server/", "steering/"),
    "deploy": (),
    "tests": (),
}
VAGUE = {"util", "helper", "common", "base", "manager", "factory", "registry", "handler", "service"}
MOST_MODULES, MOST_EQUAL_LINES = 18, 8
RESPONSES = {Path("server/api/responses.py"), Path("server/api/openai_responses.py")}


def type_checking_only(tree: ast.AST) -> set[ast.AST]:
    """The imports that no program runs."""
    blocks = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {inner for block in blocks for inner in ast.walk(block)}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted name and line of every import, lazy ones too; of `from a import b` it is a.b."""
    skipped = type_checking_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)


def place_of(name: str) -> tuple[str, int] | None:
    """The place and its floor of a dotted module name; None outside the ordered packages."""
    package, _, rest = name.partition(".")
    top = rest.partition(".")[0]
    if package not in ORDER or not rest:
        return None
    floors = {place: i for i, places in enumerate(ORDER[package]) for place in places}
    if top not in floors and "" in floors:
        top = ""
    return (top, floors[top]) if top in floors else None


def upward(file: Path, tree: ast.AST) -> list[str]:
    """The imports of a file that go up, or sideways to another place of its floor."""
    package = file.parts[0]
    own = place_of(".".join(file.with_suffix("").parts))
    wrong = []
    for name, line in imported(tree):
        other = place_of(name)
        if own is None or other is None or name.partition(".")[0] != package:
            continue
        if other[0] != own[0] and other[1] <= own[1]:
            wrong.append(f"{file}:{line} imports {name}")
    return wrong


def forbidden(file: Path, tree: ast.AST) -> list[str]:
    """The libraries and packages that a file imports and may not."""
    return [
        f"{file}:{line} imports {name}"
        for name, line in imported(tree)
        for places in [LIBRARIES.get(name.partition(".")[0])]
        if name.startswith(".")
        or (places is not None and not file.as_posix().startswith(places or ("nowhere",)))
    ]


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_imports_go_one_way(file: Path) -> None:
    assert not upward(file, TREES[file])
    assert not forbidden(file, TREES[file])


def test_every_module_has_its_place() -> None:
    modules = [file for file in SOURCES if file.name != "__init__.py" and file.parts[0] in ORDER]
    names = (".".join(file.with_suffix("").parts) for file in modules)
    assert not [name for name in names if place_of(name) is None]


def test_the_rules_see_every_kind_of_import() -> None:
    source = "import server.app as x\ndef f():\n    from server.api import sse\nfrom . import y"
    tree = ast.parse(source)
    assert list(imported(tree)) == [("server.app", 1), ("..y", 4), ("server.api.sse", 3)]
    assert len(upward(Path("server/engine/engine.py"), tree)) == 2
    assert not upward(Path("server/cli.py"), tree)
    assert upward(Path("server/audio/policy.py"), ast.parse("import server.engine.engine"))
    assert upward(Path("steering/model/omni.py"), ast.parse("from steering.prompt import Prompt"))
    assert forbidden(Path("server/engine/engine.py"), ast.parse("def f(): import starlette.types"))
    assert forbidden(Path("clients/allears_client/client.py"), ast.parse("import torch"))
    hidden = ast.parse("if TYPE_CHECKING:\n    import starlette")
    assert not forbidden(Path("server/engine/engine.py"), hidden)


# ---- files, folders and names


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_a_file_is_named_for_a_thing(file: Path) -> None:
    words = {word.removesuffix("s") for word in re.split(r"[/_]", file.with_suffix("").as_posix())}
    assert not words & VAGUE


def test_no_folder_is_crowded() -> None:
    sizes = Counter(file.parent for file in SOURCES if file.name != "__init__.py")
    assert not [folder for folder, size in sizes.items() if size > MOST_MODULES]


def test_a_module_name_stands_once_in_a_package() -> None:
    names = Counter(
        (file.parts[0], file.name) for file in SOURCES if not file.name.startswith("__")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_a_class_name_stands_once() -> None:
    files = defaultdict(set)
    for file, tree in TREES.items():
        if file.parts[0] != "clients" and file not in RESPONSES:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    files[node.name].add(file.as_posix())
    assert not {name: places for name, places in files.items() if len(places) > 1}


def test_a_package_file_holds_its_docstring_only() -> None:
    for file, tree in TREES.items():
        if file.name == "__init__.py" and file.parts[0] != "clients" and len(file.parts) > 2:
            assert len(tree.body) == 1, file
            assert ast.get_docstring(tree), file


def test_no_file_is_long() -> None:
    lines = {file: (ROOT / file).read_text().count("\n") for file in SOURCES}
    assert not {file: count for file, count in lines.items() if count > 400}


def equal_runs() -> Iterator[tuple[str, str]]:
    """Places of runs of lines that stand twice in the source, imports left out."""
    seen: dict[tuple[str, ...], str] = {}
    for file, tree in TREES.items():
        imports = {
            number
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        numbered = [
            (i, line.strip())
            for i, line in enumerate((ROOT / file).read_text().splitlines(), 1)
            if len(line.strip()) > 3 and i not in imports and not line.strip().startswith("#")
        ]
        for start in range(len(numbered) - MOST_EQUAL_LINES):
            run = tuple(text for _, text in numbered[start : start + MOST_EQUAL_LINES + 1])
            place = f"{file}:{numbered[start][0]}"
            if run in seen:
                yield seen[run], place
            seen.setdefault(run, place)


def test_no_run_of_lines_stands_twice() -> None:
    assert not list(equal_runs())


# ---- exceptions, state, shapes


def exceptions_of(tree: ast.AST) -> list[str]:
    """Names of the exception classes that a file defines, by what they derive from."""
    bases = re.compile(r"(Error|Exception|Busy|Signal|Warning)$")
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(bases.search(ast.unparse(base)) for base in node.bases)
    ]


def test_the_server_s_exceptions_stand_in_one_file() -> None:
    files = [f for f in SOURCES if f.parts[0] == "server" and exceptions_of(TREES[f])]
    assert files == [Path("server/errors.py")]


def assigned_attributes(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """Owner's last name, attribute and line of every attribute that is assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield ast.unparse(node.value).rpartition(".")[2], node.attr, node.lineno


def test_a_deployment_is_written_by_itself_only() -> None:
    own = TREES[Path("server/deployment.py")]
    (deployment,) = (
        node for node in own.body if isinstance(node, ast.ClassDef) and node.name == "Deployment"
    )
    fields = {n.target.id for n in ast.walk(deployment)
              if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}  # fmt: skip
    fields |= {name for owner, name, _ in assigned_attributes(deployment) if owner == "self"}
    assert {"state", "engine"} <= fields
    wrong = [
        f"{file}:{line} {owner}.{name}"
        for file, tree in TREES.items()
        if file.parts[0] == "server" and file.name != "deployment.py"
        for owner, name, line in assigned_attributes(tree)
        if owner.lstrip("_") == "deployment" and name in fields
    ]
    assert not wrong


def string_keyed_state(tree: ast.AST) -> list[int]:
    """Lines that use `scope["state"]["key"]`, `state["key"]` or `request.state.name`."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner = ast.unparse(node.value)
            if re.fullmatch(r"""(.*scope\[.state.\]|state)""", owner):
                lines.append(node.lineno)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "request.state":
            lines.append(node.lineno)
    return lines


def test_the_record_of_a_request_is_one_dataclass() -> None:
    record = Path("server/telemetry/request_record.py")
    assert record in TREES
    files = [f for f in SOURCES if f.parts[0] == "server" and f != record]
    assert not {f: lines for f in files if (lines := string_keyed_state(TREES[f]))}
    assert string_keyed_state(ast.parse('scope["state"]["key"] = 1')) == [1]
    assert string_keyed_state(ast.parse("request.state.answer = 1")) == [1]


def shapeless(source: str) -> list[int]:
    """Lines on which an attribute of a class becomes a tensor or array without its shape."""
    lines = source.splitlines()
    wrong = []
    for cls in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)):
        for node in ast.walk(cls):
            if isinstance(node, ast.AnnAssign) and node in cls.body:
                born = re.search(r"\b(Tensor|NDArray)\b", ast.unparse(node.annotation))
                many = re.search(r"Callable", ast.unparse(node.annotation))
                born = None if many else born
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("self."):
                makers = r"(torch|np)\.(zeros|ones|empty|full|arange|tensor|stack|asarray|array)\b"
                born = re.match(makers, ast.unparse(node.value))
            else:
                continue
            last = node.end_lineno or node.lineno
            text = "\n".join(lines[max(node.lineno - 2, 0) : last + 1])
            if born and not re.search(r"""(#|\"\"\").*\([^)]*\)""", text):
                wrong.append(node.lineno)
    return wrong


@pytest.mark.parametrize("file", [f for f in SOURCES if f.parts[0] != "clients"], ids=str)
def test_a_tensor_s_shape_stands_where_it_is_born(file: Path) -> None:
    assert not shapeless((ROOT / file).read_text())


def test_a_tensor_without_its_shape_is_seen() -> None:
    field = "class A:\n    x: int\n\n    kept: Tensor{}\n\n    y: int\n"
    assert shapeless(field.format("")) == [4]
    assert not shapeless(field.format("  # (B, D)"))
    born = "class A:\n    def __init__(self):\n        pass\n        self.x = torch.zeros(3){}\n"
    assert shapeless(born.format("")) == [4]
    assert not shapeless(born.format("  # (R,) tokens"))


# ---- README and docs/structure.md


def test_the_readme_is_two_pages() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_the_structure_page_names_every_folder() -> None:
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    folders = {file.parent.as_posix() for file in SOURCES if file.name != "__init__.py"}
    missing = [folder for folder in folders if not re.search(rf"`{folder}/?[`\w]", page)]
    assert not sorted(missing)


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


def test_make_commands_are_seen() -> None:
    markdown = (
        "Please make sure to run `make demo`, or `make`.\n"
        "```sh\ngit clone x && make serve VENV=y  # make tea\n$ A=1 make -j2 test check\n```\n"
    )
    targets = [target for command in make_commands(markdown) for target in named_targets(command)]
    assert sorted(targets) == ["check", "demo", "serve", "test"]


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
