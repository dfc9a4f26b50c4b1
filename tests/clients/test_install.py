"""What is installed: the client alone in an environment of its own, and all of allears' files."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from allears_client import AllEars
with AllEars(sys.argv[1]) as ears:
    answer = ears.ask(sys.argv[2], "What animal is this?", choices=["dog", "cat"], steer=True)
print(json.dumps([answer.text, answer.listening.score, sorted(sys.modules)]))
"""


def test_it_brings_no_torch_and_asks_a_server(
    running_url: str, sound: bytes, tmp_path: Path
) -> None:
    environment = tmp_path / "env"
    venv.create(environment)  # without pip, which takes longer than all the rest
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    installed = subprocess.run(
        [*pip, "install", "--quiet", str(ROOT / "clients")], capture_output=True, text=True
    )
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip("no package index can be reached")
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, check=True)
    names = {each["name"].lower().replace("_", "-") for each in json.loads(listed.stdout)}
    assert {"allears-client", "httpx", "httpx-retries"} <= names
    assert not names & {"torch", "numpy", "transformers", "fastapi", "pydantic", "rich"}
    path = tmp_path / "x.wav"
    path.write_bytes(sound)
    asked = subprocess.run(
        [python, "-c", SCRIPT, running_url, str(path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr
    text, score, modules = json.loads(asked.stdout)
    assert text in ("dog", "cat")
    assert 0 < score < 1
    assert "torch" not in modules


def test_the_wheel_holds_what_the_server_shows_and_no_study(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    pip += ["--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*pip, "--quiet", "-w", str(tmp_path), str(ROOT)], capture_output=True, text=True
    )
    if built.returncode and "No matching distribution" in built.stderr:
        pytest.skip("no package index can be reached")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "server" / "playground").iterdir()}
    clips = {str(path.relative_to(ROOT)) for path in (ROOT / "steering/demo/clips").iterdir()}
    assert pages | clips | {"allears_client/client.py", "allears_client/commands.py"} <= names
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"allears_client", "server", "steering"}
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        needed = archive.read(metadata).decode().splitlines()
    simpy = [line for line in needed if line.startswith("Requires-Dist: simpy")]
    assert simpy and all("extra == 'dev'" in line for line in simpy)
