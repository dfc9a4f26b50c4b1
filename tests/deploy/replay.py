"""Run the Dockerfile's own steps in folders, where there is no container engine; needs root.

    debootstrap --variant=minbase bookworm build/debian
    python tests/deploy/replay.py --base build/debian --work build/replay

Each stage is a folder, a copy of the base or of another stage; RUN is a chroot into it. At the end
the last stage is served as its user, its root mounted read-only, is asked a question, steered, and
stopped. It can't show the engine's own isolation, layers, and the pinned base image.
`--bind` mounts paths of the host for the steps, such as pip's configuration; they are not in the
image. An unknown instruction stops it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CLIP = REPOSITORY / "steering" / "demo" / "clips" / "dog.wav"
QUESTION = "The record states hammer. What is making this sound?"
CHOICES = ["dog", "hammer", "rooster", "wolf"]
_OPTION = re.compile(r"--([\w-]+)=(\S+)\s+")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IGNORED = {"EXPOSE", "LABEL", "STOPSIGNAL"}  # for the engine: nothing to replay
_WRITABLE = ("/var/cache/allears", "/var/lib/allears", "/tmp")  # volumes, a tmpfs in compose.yaml

Bind = tuple[Path, str]  # of the host, and where the steps see it


@dataclass(slots=True)
class Stage:
    """A stage as the instructions so far made it."""

    root: Path
    name: str
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": PATH, "HOME": "/root"})
    arguments: dict[str, str] = field(default_factory=dict)  # ARG: gone in stages made from this
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a command."""
        return self.arguments | self.variables


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Each instruction and its arguments on one line; comments are dropped."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word.upper(), rest.strip()


def options(arguments: str) -> tuple[dict[str, str], str]:
    """The leading --name=value options, and the rest."""
    named: dict[str, str] = {}
    while match := _OPTION.match(arguments):
        named[match[1]] = match[2]
        arguments = arguments[match.end() :]
    return named, arguments


class Replay:
    """The stages made so far; `last` is the one that instructions act on."""

    def __init__(
        self, base: Path, work: Path, binds: Sequence[Bind], build_arguments: dict[str, str]
    ) -> None:
        self.base, self.work, self.binds = base, work, binds
        self.build_arguments = build_arguments
        self.stages: dict[str, Stage] = {}
        self.arguments: dict[str, str] = {}  # ARG before the first FROM
        self.last: Stage | None = None

    def run(self, dockerfile: str) -> Stage:
        """The last stage, after all instructions."""
        for word, arguments in instructions(dockerfile):
            print(f"{self.last.name if self.last else '-':7} {word} {arguments[:100]}", flush=True)
            step = getattr(self, f"_{word.lower()}_instruction", None)
            if step is not None:
                step(arguments)
            elif word not in _IGNORED:
                raise SystemExit(f"{word} is not among the instructions that can be replayed")
        return self._stage()

    def _stage(self) -> Stage:
        assert self.last is not None, "an instruction stands before the first FROM"
        return self.last

    def _from_instruction(self, arguments: str) -> None:
        source, _, name = arguments.partition(" AS ")
        parent = self.stages.get(source)
        root = self.work / name
        shutil.rmtree(root, ignore_errors=True)
        source_root = parent.root if parent else self.base
        subprocess.run(["cp", "-a", "--reflink=auto", source_root, root], check=True)
        self.last = self.stages[name] = Stage(root, name)
        if parent:
            self.last.variables = dict(parent.variables)

    def _arg_instruction(self, arguments: str) -> None:
        name, _, default = arguments.partition("=")
        value = self.build_arguments.get(name, default or self.arguments.get(name, ""))
        (self.last or self).arguments[name] = value

    def _env_instruction(self, arguments: str) -> None:
        stage = self._stage()
        for pair in shlex.split(arguments):
            name, _, value = pair.partition("=")
            stage.variables[name] = Template(value).safe_substitute(stage.environment)

    def _workdir_instruction(self, arguments: str) -> None:
        stage = self._stage()
        stage.folder = arguments
        (stage.root / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _run_instruction(self, arguments: str) -> None:
        _, command = options(arguments)  # a cache mount is only there for speed
        stage = self._stage()
        with mounted(stage.root, self.binds):
            inside(stage, ["/bin/sh", "-c", command]).check_returncode()

    def _copy_instruction(self, arguments: str) -> None:
        flags, paths = options(arguments)
        *sources, target = paths.split()
        stage = self._stage()
        origin = self.stages[flags["from"]].root if "from" in flags else REPOSITORY
        place = stage.root / os.path.join(stage.folder, target).lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if "from" not in flags else None
                shutil.copytree(path, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy2(path, place / path.name if place.is_dir() else place)

    def _user_instruction(self, arguments: str) -> None:
        self._stage().user = arguments

    def _healthcheck_instruction(self, arguments: str) -> None:
        _, command = options(arguments)
        self._stage().health = json.loads(command.removeprefix("CMD "))

    def _entrypoint_instruction(self, arguments: str) -> None:
        self._stage().entrypoint = json.loads(arguments)

    def _cmd_instruction(self, arguments: str) -> None:
        self._stage().command = json.loads(arguments)


def inside(stage: Stage, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """A command run to its end in a stage."""
    return subprocess.run(chrooted(stage, command), env=stage.environment)


def chrooted(stage: Stage, command: Sequence[str]) -> list[str]:
    """A command as it is run in a stage: its root, user and working folder."""
    line = f"cd {shlex.quote(stage.folder)} && exec {shlex.join(command)}"
    return ["/usr/sbin/chroot", f"--userspec={stage.user}", str(stage.root), "/bin/sh", "-c", line]


@contextmanager
def mounted(root: Path, binds: Sequence[Bind], *, read_only: bool = False) -> Iterator[None]:
    """Paths of the host mounted into a root for a while; read_only: all else can't change."""
    with ExitStack() as stack:
        if read_only:
            _mount(stack, root, "--bind", root)
        own = [(Path(path), path) for path in ("/proc", "/dev", "/etc/resolv.conf")]
        for path, target in (*own, *binds):
            _bind(stack, path, root / target.lstrip("/"))
        if read_only:
            for writable in _WRITABLE:
                place = root / writable.lstrip("/")
                _mount(stack, place, "-t", "tmpfs", "tmpfs")
                place.chmod(0o1777)
            subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        yield


def _bind(stack: ExitStack, path: Path, place: Path) -> None:
    """Mount a path of the host; a place made for it is removed afterwards."""
    if not place.exists():
        if path.is_dir():
            place.mkdir(parents=True)
            stack.callback(place.rmdir)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
            stack.callback(place.unlink)
    _mount(stack, place, "--bind", path)


def _mount(stack: ExitStack, place: Path, *options: str | Path) -> None:
    subprocess.run(["mount", *options, place], check=True)
    stack.callback(lambda: subprocess.run(["umount", "--lazy", place], check=True))


def serve_and_ask(stage: Stage) -> dict[str, Any]:
    """A steered answer from the image, whose root can't be written to."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    stage.variables |= {"ALLEARS_PORT": str(port), "ALLEARS_HOST": "127.0.0.1"}
    command = chrooted(stage, [*stage.entrypoint, *stage.command])
    with mounted(stage.root, (), read_only=True):
        touched = inside(stage, ["/bin/sh", "-c", "touch /opt/x /var/lib/allears/x 2>/dev/null"])
        assert touched.returncode != 0, "the root could be written to"
        process = subprocess.Popen(command, env=stage.environment)
        try:
            _wait_until_healthy(stage, process)
            return _ask(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            print("server ended with", process.wait(40))


def _wait_until_healthy(stage: Stage, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        check = subprocess.run(
            chrooted(stage, stage.health), env=stage.environment, stderr=subprocess.DEVNULL
        )
        if check.returncode == 0:
            return
        time.sleep(1)
    raise SystemExit("the server did not become healthy")


def _ask(url: str) -> dict[str, Any]:
    sound = {"data": base64.b64encode(CLIP.read_bytes()).decode(), "format": "wav"}
    body = {"audio": sound, "question": QUESTION, "choices": CHOICES, "steer": True}
    request = urllib.request.Request(
        f"{url}/v1/audio-chat",
        json.dumps({**body, "include": ["unsteered"]}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def main() -> None:
    """Replay, serve, ask; print the answer and the size of the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="a bare Debian, by debootstrap")
    parser.add_argument("--work", type=Path, required=True, help="where the stages are made")
    parser.add_argument("--bind", action="append", default=[], metavar="HOST:TARGET")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    build_arguments = dict(pair.split("=", 1) for pair in arguments.build_arg)
    pairs = [pair.split(":") for pair in arguments.bind]
    binds = [(Path(host), target) for host, target in pairs]
    replay = Replay(arguments.base, arguments.work, binds, build_arguments)
    final = replay.run((REPOSITORY / "docker" / "Dockerfile").read_text(encoding="utf-8"))
    used = subprocess.run(["du", "-smx", final.root], capture_output=True, text=True, check=True)
    answer = serve_and_ask(final)
    print(f"size of the image: {used.stdout.split()[0]} MB")
    shown = {key: answer[key] for key in ("answer", "choices", "listening", "steering")}
    print(json.dumps(shown, indent=1))
    if answer["answer"] != "dog" or not answer["steering"]["applied"]:
        raise SystemExit("the answer is not the steered one that was expected")


if __name__ == "__main__":
    main()
