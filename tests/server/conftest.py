from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from server.app import create_app
from server.deployment import Deployment
from server.engine import engine
from server.engine.answering import answer_question
from server.engine.events import Event, Piece, Started
from server.engine.messages import Question
from server.engine.runtime import Runtime
from server.settings import NO_LOG, Settings
from steering.model.audio_model import AudioModel
from steering.profile import Profile
from steering.prompt import Prompt

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0  # for what happens at once on a machine that is not busy


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


class Server:
    """An app in an event loop of its own; requests go through ASGI, from any thread."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.deployment: Deployment = app.state.deployment
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        transport = httpx.ASGITransport(app)
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://test", timeout=PATIENCE_SECONDS
        )

    def begin(self, method: str, path: str, **content: Any) -> Future[httpx.Response]:
        """A request that runs by itself."""
        return self.run(self._http.request(method, path, **content))

    def run(self, work: Any) -> Future[Any]:
        """A coroutine in the app's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def get(self, path: str, **content: Any) -> httpx.Response:
        return self.begin("GET", path, **content).result(PATIENCE_SECONDS)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.begin("POST", path, **content).result(PATIENCE_SECONDS)

    def chat(self, **body: Any) -> httpx.Response:
        return self.post("/v1/audio-chat", json=body)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric now; 0 for one that was never touched."""
        collected = self.deployment.metrics.collected
        return collected.get_sample_value(name, labels) or 0.0

    def wait_until(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    @contextmanager
    def started(self, *, ready: bool = True) -> Iterator[Server]:
        self._thread.start()
        life = self.app.router.lifespan_context(self.app)
        self.run(life.__aenter__()).result(PATIENCE_SECONDS)
        try:
            if ready:
                self.wait_until(lambda: self.deployment.state == "ready")
            yield self
        finally:
            self.run(life.__aexit__(None, None, None)).result(PATIENCE_SECONDS)
            self.run(self._http.aclose()).result(PATIENCE_SECONDS)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    @contextmanager
    def on_a_port(self) -> Iterator[str]:
        """The URL of this app on a real socket."""
        config = uvicorn.Config(
            self.app,
            http="h11",  # as `allears serve`, also where httptools is installed
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
        )
        listening = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as port:
            serving = self.run(listening.serve(sockets=[port]))
            try:
                yield f"http://127.0.0.1:{port.getsockname()[1]}"
            finally:
                listening.should_exit = True
                serving.result(PATIENCE_SECONDS)


class Remote:
    """A server elsewhere, asked over HTTP as `Server` is."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS)
        self._threads = ThreadPoolExecutor(32)

    def begin(self, method: str, path: str, **content: Any) -> Future[httpx.Response]:
        return self._threads.submit(self._http.request, method, path, **content)

    def get(self, path: str, **content: Any) -> httpx.Response:
        return self._http.get(path, **content)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self._http.post(path, **content)

    def chat(self, **body: Any) -> httpx.Response:
        return self.post("/v1/audio-chat", json=body)

    def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        values = [s.value for s in samples if (s.name, s.labels) == (name, labels)]
        return sum(values)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    def close(self) -> None:
        self._threads.shutdown()
        self._http.close()


@pytest.fixture(scope="session")
def runtime(tiny_model: AudioModel, tiny_profile: Profile) -> Runtime:
    return Runtime.of(tiny_model, tiny_profile)


@pytest.fixture(scope="session")
def server(given_url: str | None, runtime: Runtime) -> Generator[Server | Remote, None, None]:
    """A server that all tests share which leave it as it was."""
    if given_url is not None:
        with closing(Remote(given_url)) as remote:
            yield remote
        return
    with Server(
        create_app(Settings(listening_log_url=SecretStr(NO_LOG)), runtime)
    ).started() as started:
        yield started


@pytest.fixture(scope="session")
def demo_url(
    serve_process: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a real `allears serve` of the embedded model."""
    log = tmp_path_factory.mktemp("demo") / "log"
    with serve_process(Path("demo"), ROOT / "steering" / "demo" / "profile", log) as (_, url):
        yield url


@pytest.fixture(scope="session")
def start(runtime: Runtime) -> Callable[..., Any]:
    """Starts a server of one's own, with settings as arguments."""

    def own(*, heard_by: Runtime | None = None, ready: bool = True, **settings: Any) -> Any:
        app = create_app(Settings(**{"listening_log_url": NO_LOG, **settings}), heard_by or runtime)
        return Server(app).started(ready=ready)

    return own


@pytest.fixture(scope="session")
def audio(sound: bytes) -> dict[str, str]:
    """One second of noise, as a request carries it."""
    return {"data": base64.b64encode(sound).decode(), "format": "wav"}


class Gate:
    """Holds every question of an engine before its first piece of text, until opened."""

    def __init__(self) -> None:
        self.held = 0  # questions that reached the gate
        self.pieces = 0  # pieces of text that were made
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.clear()
        self.held = self.pieces = 0

    def listen(self, runtime: Runtime, question: Question, prompt: Prompt) -> Iterator[Event]:
        for event in answer_question(runtime, question, prompt):
            self.held += isinstance(event, Started)
            self.pieces += isinstance(event, Piece)
            yield event
            if isinstance(event, Started):
                assert self._open.wait(PATIENCE_SECONDS), "nobody opened the gate"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Generator[Gate, None, None]:
    """A gate before the engines of all servers; started servers are past it."""
    held = Gate()
    held.open()  # for the first question of a server that starts
    monkeypatch.setattr(engine, "answer_question", held.listen)
    yield held
    held.open()
