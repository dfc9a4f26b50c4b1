"""A real `allears serve` in a process of its own, on loopback, observed from outside."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import torch

ROOT = Path(__file__).parents[2]
KEY = "stress-key"
_START_SECONDS = 180.0  # of a machine that is busy with other things


@dataclass(slots=True, eq=False)
class Served:
    """One server; `start` may be called again after its process ended."""

    folder: Path  # its log, state and caches
    options: tuple[str, ...]
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Return when it is ready."""
        command = [sys.executable, "-m", "server.cli", "serve", "--port", str(self.port)]
        command += ["--api-keys", KEY, *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment(), stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the server did not become ready:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def rss_bytes(self) -> int:
        """Resident memory of the server and of its own workers."""
        return sum(process.memory_info().rss for process in self._processes())

    def open_files(self) -> int:
        """File descriptors, sockets included, of the server itself."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).num_fds())

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        page = httpx.get(f"{self.url}/metrics", headers=bearer(), timeout=30).text
        return dict(parse_metrics(page))

    def faults(self) -> list[str]:
        """Lines of its log that no user's mistake may cause, with the lines under them."""
        lines = self.log.read_text(errors="replace").splitlines()
        faulty = [i for i, line in enumerate(lines) if "Traceback" in line or " ERROR " in line]
        return ["\n".join(lines[i : i + 12]) for i in faulty[:5]]

    def _processes(self) -> list[psutil.Process]:
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def _environment(self) -> dict[str, str]:
        others = {k: v for k, v in os.environ.items() if not k.startswith("ALLEARS_")}
        homes = {name: str(self.folder / name) for name in ("cache", "state")}
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        return {
            **others,
            **threads,
            "XDG_CACHE_HOME": homes["cache"],
            "XDG_STATE_HOME": homes["state"],
        }


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """A ready server that is stopped in the end, if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    served = Served(folder, options, free_port())
    try:
        served.start()
        yield served
    finally:
        if served.process is not None and served.process.poll() is None:
            served.stop()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def bearer(key: str = KEY) -> dict[str, str]:
    """The header with a key."""
    return {"authorization": f"Bearer {key}"}


def parse_metrics(page: str) -> Iterator[tuple[str, float]]:
    """Name with labels, and value, of each sample in Prometheus' text format."""
    for line in page.splitlines():
        if sample := re.fullmatch(r"([a-z_]+(?:\{.*\})?) (\S+)", line):
            yield sample[1], float(sample[2])


def untrained(folder: Path) -> Sequence[str]:
    """Options that serve a model of random weights, which rarely ends an answer by itself."""
    from steering.demo import architecture

    if not (folder / "config.json").exists():
        processor = architecture.build_processor()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = architecture.build_model(processor.tokenizer)
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
    return ("--model", str(folder), "--profile", "none")
