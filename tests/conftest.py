from __future__ import annotations

import functools
import gc
import inspect
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import torch

from steering import profile
from steering.heads import Verdicts
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.readout import Intervention
from steering.strength import Gate

ROOT = Path(__file__).parents[1]
PROGRAM = ("-m", "server.cli")

gc.disable()  # until all is imported and collected: a million objects, of which none is garbage


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave what was imported out of every collection to come: a twelfth of the tests' time."""
    gc.freeze()
    gc.enable()


# ---- skips: where everything a test may use is installed, a skip hides a failure


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure where ALLEARS_REQUIRE_SYSTEM is 1."""
    if os.environ.get("ALLEARS_REQUIRE_SYSTEM") == "1" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, though ALLEARS_REQUIRE_SYSTEM is 1: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.get_closest_marker("gpu") is None and not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


# ---- the server that tests ask


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--url", help="of a running server, asked in place of the tests' own")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --url only the tests stay that ask a server over HTTP and look at nothing inside.

    Files with slow tests come first: the quick ones fill up the time that is left to each process.
    """
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)
    if config.getoption("--url") is None:
        return
    inside = {"start", "gate", "monkeypatch", "caplog", "serve_process"}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        assert isinstance(item, pytest.Function)
        asks = {"server", "running_url"} & set(item.fixturenames)
        looks = inside & set(inspect.signature(item.function).parameters)
        (kept if asks and not looks else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="session")
def given_url(pytestconfig: pytest.Config) -> str | None:
    """The URL of a server that was started outside."""
    url: str | None = pytestconfig.getoption("--url")
    return url


# ---- a tiny model of random weights, its profile, and clips to send


@pytest.fixture(scope="session", autouse=True)
def _any_cpu() -> Generator[None, None, None]:
    """What the tests compute is the same on every CPU: `dtype auto` is float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "bfloat16_instructions", lambda: "")
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the developer's own shell play no part in a test."""
    for name in [name for name in os.environ if name.upper().startswith("ALLEARS_")]:
        if name != "ALLEARS_REQUIRE_SYSTEM":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _no_state_outside(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """The listening log of the developer's own servers plays no part either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like the embedded model's, untrained."""
    from steering.demo import architecture

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    processor = architecture.build_processor()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = architecture.build_model(processor.tokenizer)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of few layers, to calibrate: it hardly ever ends an answer."""
    from tests.steering import tiny

    return tiny.save(tiny.qwen2_audio, tmp_path_factory.mktemp("untrained") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(checkpoint_folder: Path) -> AudioModel:
    return loading.load(str(checkpoint_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_profile(tiny_model: AudioModel) -> Profile:
    """A profile that fits the tiny model; it steers fully below a score of about 0.3."""
    return Profile(
        name="tiny-profile",
        model=tiny_model.name,
        revision=None,
        fingerprint=tiny_model.fingerprint,
        family=tiny_model.family.name,
        heads=((3, 0), (5, 4), (6, 7)),
        correlations=(0.5, 0.4, 0.3),
        intervention=Intervention(layers=(7,)),
        gate=Gate(1.0, 0.3, 0.1),
        fixed_strength=0.5,
        verdicts=Verdicts(partly=0.2, listening=0.6),
        calibration={"items": 2},
        held_out={},
        versions={},
        direction=torch.randn(tiny_model.hidden_size, generator=torch.Generator().manual_seed(1)),
        quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        head_mean=np.full(3, 0.4, np.float32),
        head_std=np.full(3, 0.1, np.float32),
    )


@pytest.fixture(scope="session")
def profile_folder(tiny_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile") / "tiny-profile"
    profile.save(tiny_profile, folder)
    return folder


def record(
    seconds: float = 1.0,
    *,
    rate_hz: int = 16_000,
    channels: int = 1,
    container: str = "WAV",
    amplitude: float = 0.2,
) -> bytes:
    """A file of noise; the same arguments make the same bytes."""
    noise = np.random.default_rng(0).standard_normal((round(seconds * rate_hz), channels))
    file = io.BytesIO()
    soundfile.write(file, (amplitude * noise).clip(-1, 1), rate_hz, format=container)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_sound() -> Callable[..., bytes]:
    """The function that makes audio files."""
    return record


@pytest.fixture(scope="session")
def sound() -> bytes:
    """A WAV file: one second of noise."""
    return record()


@pytest.fixture(scope="session")
def running_url(
    given_url: str | None,
    checkpoint_folder: Path,
    profile_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[str, None, None]:
    """The URL of a real `allears serve` of the tiny model."""
    if given_url is not None:
        yield given_url
        return
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving(checkpoint_folder, profile_folder, log) as (_, url):
        yield url


@contextmanager
def serving(
    checkpoint: Path, folder: Path, log: Path, *options: str, program: Sequence[str] = PROGRAM
) -> Generator[tuple[subprocess.Popen[bytes], str], None, None]:
    """A ready server in a process of its own, and its URL."""
    command = [sys.executable, *program, "serve", "--port", "0", "--model"]
    command += [str(checkpoint), "--profile", str(folder), "--dtype", "float32", *options]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ALLEARS_")}
    clean["XDG_STATE_HOME"] = str(log.parent)  # a listening log of its own
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=clean, stderr=stderr)
    try:
        yield process, _ready_url(process, log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def serve_process() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[bytes], str]]]:
    """The context manager that runs a server."""
    return serving


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint laid out as on the hub, by its name there."""
    from tests.steering import hub_folders, hub_vocabulary

    if not hub_vocabulary.ARCHIVE.is_file():
        pytest.skip("the vocabulary of the hub's checkpoints is missing; .ci/run fetches it")
    parent = tmp_path_factory.mktemp("hub")
    return functools.cache(lambda name: hub_folders.build(name, parent))


# ---- a PostgreSQL of our own


class Postgres:
    """A cluster in a folder of its own, on a free port; its superuser is allears."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        password = folder / "password"
        password.write_text("s3cret")
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(password, user)
        data = ["-D", str(folder / "data")]
        self._run("initdb", *data, "-U", "allears", "-A", "scram-sha-256", "--pwfile", password)
        self._data = data

    def start(self) -> None:
        intervention = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c fsync=off"
        intervention += f" -c unix_socket_directories={self._folder}"
        log = self._folder / "log"
        self._run("pg_ctl", *self._data, "-w", "-o", intervention, "-l", str(log), "start")

    def stop(self, intervention: str = "fast") -> None:
        self._run("pg_ctl", *self._data, "-m", intervention, "-w", "stop")

    @contextmanager
    def frozen(self) -> Generator[None, None, None]:
        """While it lasts every process stands still: nothing answers, nothing is refused."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        main = psutil.Process(pid)
        processes = [main, *main.children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def url(self, database: str) -> str:
        return f"postgresql://allears:s3cret@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        import psycopg

        name = f"log_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def _run(self, program: str, *words: str | Path) -> None:
        become = ["runuser", "-u", self._user, "--"] if self._user else []
        command = [*become, str(self._programs / program), *map(str, words)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def postgres() -> Generator[Postgres, None, None]:
    """A running cluster; a test that stops it starts it again. Tests that use it are `system`."""
    bin_folders = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if os.name == "posix" else []
    if not bin_folders:
        pytest.skip("PostgreSQL is missing; .ci/run installs it")
    folder = Path(tempfile.mkdtemp(prefix="allears-postgres-"))
    cluster = Postgres(bin_folders[-1], folder, "postgres" if os.getuid() == 0 else None)
    try:
        cluster.start()
        yield cluster
        cluster.stop("immediate")
    finally:
        shutil.rmtree(folder)


def _ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 180  # of a machine that is busy with other things
    while time.monotonic() < deadline and process.poll() is None:
        url_match = re.search(r"http://\S+:\d+", log.read_text())
        with suppress(httpx.TransportError):
            if url_match and httpx.get(f"{url_match[0]}/readyz").status_code == 200:
                return url_match[0]
        time.sleep(0.05)
    raise AssertionError(log.read_text())
