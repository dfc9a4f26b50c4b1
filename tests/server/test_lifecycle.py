"""Failures of a running server: each for real, in a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

FAULTY = ("-m", "tests.server.faulty_server")
LONG_TOKENS = 1000  # some ten seconds, by faulty_server.STEP_SECONDS
STALL_SECONDS = 5  # of a connection at which nothing happens
LARGE = "What is it? " * 40  # over faulty_server.LARGE_TOKENS


class Process:
    """A real server, and what is sent to it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path, sound: bytes) -> None:
        self.process, self.url, self.sound = process, url, sound
        self._log = log
        self._pool = ThreadPoolExecutor(40)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def ask(
        self, tokens: int = 3, question: str = "What is it?", **fields: str
    ) -> Future[httpx.Response]:
        """The answer to come."""
        files = [("audio", ("x.wav", self.sound))]
        data = {"question": question, "max_tokens": str(tokens), **fields}
        url = f"{self.url}/v1/audio-chat"
        return self._pool.submit(httpx.post, url, files=files, data=data, timeout=300)

    def stream(self, tokens: int = LONG_TOKENS) -> Future[httpx.Response]:
        """A stream that has begun, read by itself to its end."""
        running = self.metric("allears_batch_rows")
        answer = self.ask(tokens, stream="true")
        self.wait_until(lambda: self.metric("allears_batch_rows") > running or answer.done())
        assert not answer.done(), answer.result().text
        return answer

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [s for family in families for s in family.samples]
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )

    def send(self, sig: signal.Signals) -> float:
        """The time at which the signal was sent."""
        self.process.send_signal(sig)
        return time.monotonic()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited too long\n{self.log[-2000:]}"
            time.sleep(0.02)


Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture
def run(
    serve_process: Callable[..., Any],
    checkpoint_folder: Path,
    profile_folder: Path,
    tmp_path: Path,
    sound: bytes,
) -> Start:
    """Runs a server with a fault of faulty_server.py in it."""

    @contextmanager
    def started(*options: str, fault: str = "no_fault") -> Generator[Process, None, None]:
        log = tmp_path / "log"
        given = (checkpoint_folder, profile_folder, log, *options)
        with serve_process(*given, program=(*FAULTY, fault)) as (process, url):
            yield Process(process, url, log, sound)

    return started


def last_event(response: httpx.Response) -> dict[str, Any]:
    """The last of a stream that did not end with [DONE]."""
    last = [line for line in response.text.splitlines() if line][-1]
    event: dict[str, Any] = json.loads(last.removeprefix("data: "))
    return event


def whole(response: httpx.Response) -> bool:
    return response.status_code == 200 and response.text.rstrip().endswith("data: [DONE]")


def code_of(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


def refused_as_not_ready(server: Process) -> float | None:
    """The time at which a probe got its 503, or None; a server that is gone is not ready either."""
    with suppress(httpx.TransportError):
        return time.monotonic() if server.get("/readyz").status_code == 503 else None
    return time.monotonic()


# ---- a model that does not run any more


@pytest.mark.parametrize("fault", ["kill_thread", "lose_device"])
def test_a_dead_model_is_unready_at_once_answers_all_and_exits_with_1(
    run: Start, fault: str
) -> None:
    with run("--max-batch-rows", "2", fault=fault) as server:
        streams = [server.stream(), server.stream()]
        waiting = [server.ask() for _ in range(3)]
        server.wait_until(lambda: server.metric("allears_queue_depth") == 3)
        died = server.send(signal.SIGUSR1)
        server.wait_until(lambda: refused_as_not_ready(server) is not None)
        assert time.monotonic() - died < 2, "a second, and one more on a machine that is busy"
        probed = server.get("/readyz")
        assert code_of(probed) == "stopped"
        assert int(probed.headers["retry-after"]) > 0
        assert server.get("/livez").status_code == 200
        assert server.ask().result(30).status_code == 503
        for stream in streams:
            assert last_event(stream.result(30))["error"]["code"] == "stopped"
        for late in (answer.result(30) for answer in waiting):
            assert late.status_code == 503
            assert code_of(late) == "stopped"
            assert int(late.headers["retry-after"]) > 0
        assert server.process.wait(60) == 1
    assert "the thread that runs the model has ended" in server.log


def test_memory_that_runs_out_costs_one_answer(run: Start) -> None:
    with run(fault="exhaust_memory") as server:
        expected = server.ask(60).result(60).json()["answer"]
        assert server.ask(question="What?", steer="true").result(60).status_code == 200
        assert server.metric("allears_silence_cache_bytes") > 0
        assert server.metric("allears_errors_total", code="out_of_memory") == 0
        server.send(signal.SIGUSR1)
        stream = server.stream(200)
        beside = server.ask(60)
        failed = [server.ask(question=LARGE), server.ask(question=LARGE, stream="true")]
        for response in (answer.result(60) for answer in failed):
            assert response.status_code == 503
            assert code_of(response) == "out_of_memory"
            assert int(response.headers["retry-after"]) > 0
        assert server.metric("allears_errors_total", code="out_of_memory") == 2
        assert server.metric("allears_silence_cache_bytes") == 0
        assert beside.result(60).json()["answer"] == expected
        assert whole(stream.result(60))
        assert server.get("/readyz").status_code == 200
        assert server.ask(60).result(60).json()["answer"] == expected
        server.send(signal.SIGTERM)
        assert server.process.wait(60) == 0


# ---- signals


def test_a_signal_under_load_lets_all_that_were_admitted_end(run: Start) -> None:
    patience = ["--drain-seconds", "300", "--queue-timeout-seconds", "300"]
    with run("--max-batch-rows", "8", *patience) as server:
        running = [server.stream(300) for _ in range(8)]
        queued = [server.ask(5) for _ in range(6)]
        server.wait_until(lambda: server.metric("allears_queue_depth") == 6)
        with httpx.Client(base_url=server.url) as kept:
            assert "connection" not in kept.get("/livez").headers
            decoding = psutil.Process(server.process.pid).children()
            server.send(signal.SIGTERM)
            server.wait_until(lambda: kept.get("/readyz").status_code == 503)
            for refused in (kept.get("/readyz"), server.ask().result(30)):
                assert refused.status_code == 503
                assert code_of(refused) == "draining"
                assert int(refused.headers["retry-after"]) > 0
                assert refused.headers["connection"] == "close"
        assert all(whole(response.result(300)) for response in running)
        assert [response.result(60).status_code for response in queued] == [200] * 6
        assert server.process.wait(60) == 0
    assert len(decoding) == 2
    assert not psutil.wait_procs(decoding, 60)[1], "no process outlives the server"
    assert "Traceback" not in server.log


def test_what_outlasts_the_drain_gets_an_error_and_the_exit_is_1(run: Start) -> None:
    with run("--max-batch-rows", "1", "--drain-seconds", "0.5") as server:
        stream, queued = server.stream(), server.ask()
        with half_a_request(server.url) as sending:
            server.wait_until(lambda: server.metric("allears_queue_depth") == 1)
            time.sleep(1.0)  # it is admitted
            sent = server.send(signal.SIGTERM)
            assert last_event(stream.result(30))["error"]["code"] == "stopped"
            assert code_of(queued.result(30)) == "stopped"
            assert b"503" in sending.recv(200), "it was admitted, so it is told as well"
            assert server.process.wait(60) == 1
            assert time.monotonic() - sent < 20
    assert "Traceback" not in server.log


def test_a_second_signal_ends_the_server_at_once(run: Start) -> None:
    with run("--drain-seconds", "600") as server:
        server.stream()
        server.send(signal.SIGTERM)
        server.wait_until(lambda: server.get("/readyz").status_code == 503)
        assert server.process.poll() is None
        again = server.send(signal.SIGTERM)
        assert server.process.wait(60) == 1
        assert time.monotonic() - again < 10, "of 600 s"


@pytest.mark.parametrize("said", ["/readyz", "INFO loaded"], ids=["importing", "calibrating"])
def test_a_signal_while_loading_ends_the_server_at_once(
    checkpoint_folder: Path, tmp_path: Path, said: str
) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--calibration-items"]
    command += ["100000", "--profile", "auto", "--model", str(checkpoint_folder)]
    command += ["--cache", str(tmp_path / "cache")]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 180
        while said not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


# ---- clients that are slow, or gone


@contextmanager
def half_a_request(url: str) -> Iterator[socket.socket]:
    """A connection that has sent the headers of a request and a part of its body."""
    with socket.create_connection(address(url), 20) as connection:
        head = "POST /v1/audio-chat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        yield connection


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def ended(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection; TimeoutError if it does not."""
    got = b""
    with suppress(ConnectionError):
        while more := connection.recv(1 << 16):
            got += more
    return got


@pytest.fixture(scope="module")
def strict(
    serve_process: Callable[..., Any],
    checkpoint_folder: Path,
    profile_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    sound: bytes,
) -> Generator[Process, None, None]:
    """A server of little patience."""
    log = tmp_path_factory.mktemp("strict") / "log"
    options = ["--body-timeout-seconds", "2", "--stall-timeout-seconds", f"{STALL_SECONDS}"]
    options += ["--max-connections", "8"]
    with serve_process(checkpoint_folder, profile_folder, log, *options) as (process, url):
        yield Process(process, url, log, sound)


def test_a_body_that_does_not_come_is_told_so_and_cut(strict: Process) -> None:
    begun = time.monotonic()
    with half_a_request(strict.url) as connection:
        got = ended(connection)
    assert got.startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in got and b"retry-after" in got.lower()
    assert 1.9 < time.monotonic() - begun < 15
    assert strict.metric("allears_errors_total", code="body_timeout") == 1


def test_headers_that_do_not_come_are_not_waited_for(strict: Process) -> None:
    """Of two connections one sends nothing, the other a byte now and then."""

    def seconds_until_cut(sent: bytes) -> float:
        begun = time.monotonic()
        with socket.create_connection(address(strict.url), 20) as connection:
            with suppress(ConnectionError):
                for byte in sent:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.1)
            assert not ended(connection)
        return time.monotonic() - begun

    sent = (b"", b"GET /livez HTTP/1.1\r\nHost: " + b"a" * 200)
    with ThreadPoolExecutor(2) as both:
        for seconds in both.map(seconds_until_cut, sent):
            assert STALL_SECONDS - 0.5 < seconds < STALL_SECONDS + 10


def test_answers_that_nobody_reads_are_not_kept(strict: Process) -> None:
    before = resident_bytes(strict)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(STALL_SECONDS + 15)
        deaf.connect(address(strict.url))
        with pytest.raises(ConnectionError):  # not TimeoutError: the server cut it
            while True:
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
        assert resident_bytes(strict) - before < 64 << 20
    assert strict.get("/readyz").status_code == 200


def test_connections_over_the_limit_are_refused_and_idle_ones_cut(strict: Process) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(half_a_request(strict.url))
            strict.get("/livez")  # it is in, before the next comes
        refused = strict.get("/v1/models")
        assert refused.status_code == 503
        assert code_of(refused) == "too_many_connections"
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"
        assert strict.get("/readyz").status_code == 200
    strict.wait_until(lambda: strict.get("/v1/models").status_code == 200)
    begun = time.monotonic()
    with ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection(address(strict.url))) for _ in "x" * 30
        ]
        strict.wait_until(lambda: strict.get("/v1/models").status_code == 200)
        assert time.monotonic() - begun < STALL_SECONDS, "before any of them stalled"
        for connection in idle:
            connection.settimeout(0.1)
        assert sum(is_cut(connection) for connection in idle) >= 22
    assert strict.ask().result(60).status_code == 200


def is_cut(connection: socket.socket) -> bool:
    with suppress(TimeoutError):
        return not ended(connection)
    return False


def resident_bytes(server: Process) -> int:
    text = Path(f"/proc/{server.process.pid}/statm").read_text()
    return int(text.split()[1]) * 4096
