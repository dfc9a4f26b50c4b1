"""lock/: whole, hashed, in step with pyproject.toml, and of this machine nothing."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {name: ROOT / "lock" / f"{name}.txt" for name in ("develop", "serve", "tools")}
PLACES = [
    {"python_full_version": f"3.{minor}.1", "python_version": f"3.{minor}"} | system
    for minor in (11, 12, 13)
    for system in (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    )
]
NOT_LOCKED = {"allears", "torch"}  # this project; and what the Makefile and Dockerfile pin


@dataclass(frozen=True, slots=True)
class Pin:
    """One entry of a lock."""

    name: str
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]


def pins(text: str) -> Iterator[Pin]:
    """Every entry of a lock; AssertionError for a line that is none."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        wanted, *hashes = re.split(r"\s+--hash=", entry.strip())
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ; (.+))?", wanted)
        assert match, f"not a pinned package: {wanted}"
        yield Pin(match[1], match[2], Marker(match[3]) if match[3] else None, tuple(hashes))


def asked_for(lock: str) -> list[Requirement]:
    """What a lock must cover, as pyproject.toml says it."""
    if lock == "tools":
        wanted = PROJECT["dependency-groups"]["tools"]
    else:
        wanted = list(PROJECT["project"]["dependencies"])
        extras = {"develop": ["dev"], "serve": ["av", "postgres"]}[lock]  # what the image has
        for extra in extras:
            wanted += PROJECT["project"]["optional-dependencies"][extra]
    requirements = [Requirement(dependency) for dependency in wanted]
    return [
        requirement
        for requirement in requirements
        if canonicalize_name(requirement.name) not in NOT_LOCKED
    ]


def missing(wanted: Requirement, locked: list[Pin], place: dict[str, str]) -> bool:
    """Whether no entry, or more than one, is what a requirement gets in a place."""
    if wanted.marker is not None and not wanted.marker.evaluate(place):
        return False
    got = [
        pin
        for pin in locked
        if pin.name == canonicalize_name(wanted.name)
        and (pin.marker is None or pin.marker.evaluate(place))
    ]
    return len(got) != 1 or not wanted.specifier.contains(got[0].version, prereleases=True)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_a_version_and_hashes(lock: str) -> None:
    locked = list(pins(LOCKS[lock].read_text()))
    assert len(locked) >= len(asked_for(lock))
    assert all(pin.hashes for pin in locked)
    assert all(
        re.fullmatch("sha256:[0-9a-f]{64}", digest) for pin in locked for digest in pin.hashes
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_what_the_project_asks_for_is_locked_for_every_platform(lock: str) -> None:
    locked = list(pins(LOCKS[lock].read_text()))
    asked = asked_for(lock)
    assert asked
    absent = {
        str(requirement)
        for requirement in asked
        for place in PLACES
        if missing(requirement, locked, place)
    }
    assert not absent, f"run `make lock`: {sorted(absent)} not in lock/{lock}.txt"


def test_an_old_lock_is_found_out() -> None:
    locked = list(pins("a-b==1.0 ; python_full_version < '3.12' \\\n  --hash=sha256:0\n"))
    assert not missing(Requirement("A_b>=1"), locked, PLACES[0])
    assert missing(Requirement("a-b>=2"), locked, PLACES[0])
    assert missing(Requirement("a-b>=1"), locked, PLACES[-1])
    assert missing(Requirement("c"), locked, PLACES[0])
    assert not missing(Requirement("c; sys_platform == 'win32'"), locked, PLACES[0])
    with pytest.raises(AssertionError, match="not a pinned package"):
        list(pins("a>=1"))


def test_what_is_served_is_what_was_developed_with() -> None:
    tested = {(pin.name, pin.version, pin.hashes) for pin in pins(LOCKS["develop"].read_text())}
    served = {(pin.name, pin.version, pin.hashes) for pin in pins(LOCKS["serve"].read_text())}
    assert served < tested


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_torch(lock: str) -> None:
    text = LOCKS[lock].read_text()
    assert not re.search(r"--(?!hash=)[a-z]|://|^\s*#.*(?:\s/|=/)", text, re.MULTILINE)
    names = {pin.name for pin in pins(text)}
    assert not {package for package in names if re.match(r"torch$|nvidia-|triton|cuda-", package)}


def test_torch_is_pinned_once() -> None:
    makefile, dockerfile = (ROOT / path for path in ("Makefile", "docker/Dockerfile"))
    (ours,) = re.findall(r"^TORCH\s+\?= (torch==[\d.]+)$", makefile.read_text(), re.MULTILINE)
    assert f"ARG TORCH={ours}\n" in dockerfile.read_text()
    wanted = next(
        dependency
        for dependency in PROJECT["project"]["dependencies"]
        if dependency.startswith("torch>")
    )
    assert Requirement(wanted).specifier.contains(ours.partition("==")[2])


# ---- lock/audit.py


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "lock"))
        return importlib.import_module("audit")


def said(name: str, *ids: str) -> dict[str, Any]:
    """A package as pip-audit reports it."""
    vulnerabilities = [
        {"id": advisory_id, "fix_versions": ["2.0"], "aliases": [f"CVE-{advisory_id}"]}
        for advisory_id in ids
    ]
    return {"name": name, "version": "1.0", "vulns": vulnerabilities}


def test_a_known_vulnerability_fails(audit: ModuleType) -> None:
    status, lines = audit.judge(["a==1.0", "b==1.0"], [said("a", "X-1"), said("b")])
    assert status == 1
    assert lines == ["a 1.0: X-1, fixed in 2.0", "audited 2 of 2 pinned versions"]


def test_a_service_out_of_reach_does_not_fail_and_is_said(audit: ModuleType) -> None:
    skipped = {"name": "a", "skip_reason": "not found"}
    for answer in ([], [skipped]):
        status, lines = audit.judge(["a==1.0"], answer)
        assert status == 0
        assert "NOT AUDITED" in lines[-1]
    assert audit.judge(["a==1.0", "b==1.0"], [skipped, said("b", "X-1")])[0] == 1


def test_what_does_not_touch_us_is_named_with_a_reason(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(audit.NOT_OURS, "CVE-X-1", "we do not call it")
    assert audit.judge(["a==1.0"], [said("a", "X-1")])[0] == 0
    assert audit.judge(["a==1.0"], [said("a", "X-1", "X-2")])[0] == 1


def test_every_version_is_asked_about(audit: ModuleType) -> None:
    groups = audit.without_repeats(["a==2", "a==1", "b==1", "a==1"])
    assert sorted(pin for group in groups for pin in group) == ["a==1", "a==2", "b==1"]
    assert all(len({pin.partition("==")[0] for pin in group}) == len(group) for group in groups)
