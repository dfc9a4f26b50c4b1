"""`allears demo`: a server of the embedded model as a process, and questions to it over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allears_client import AllEars, Answer
from server.settings import NO_LOG
from steering.errors import AllEarsError

DEMO_CLIPS = Path(__file__).parents[1] / "steering" / "demo" / "clips"
SERVE = ["-m", "server.cli", "serve"]  # arguments of Python
_ITEM_KEYS = {"file", "question", "answer"}
_START_SECONDS = 120.0
_END_SECONDS = 30.0
_LOG_CHARACTERS = 8000


def demo(
    clips: Annotated[
        Path, typer.Option(help="Folder with a clips.json and its audio files.")
    ] = DEMO_CLIPS,
) -> None:
    """Ask the embedded model about bundled clips, bare and steered, over HTTP.

    Example: allears demo
    """
    items = _read_items(clips)
    with server_process() as url, AllEars(url) as ears:
        console = Console()
        table = Table(title=f"POST {url}/v1/audio-chat", show_lines=True)
        for column in ("question", "bare", "steered", "listening", "strength"):
            table.add_column(column, no_wrap=column in ("bare", "steered"))
        for item in items:
            table.add_row(*_row(ears, clips, item))
        console.print(table)
        for note in dict.fromkeys(item["note"] for item in items if item.get("note")):
            console.print(note, markup=False, highlight=False)


def _read_items(folder: Path) -> list[dict[str, Any]]:
    """The items of a folder's clips.json: file, question, choices, answer, note."""
    try:
        items = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AllEarsError(f"{folder}: no usable clips.json ({error})") from None
    items = items if isinstance(items, list) else [items]
    if lacking := [item for item in items if not isinstance(item, dict) or _ITEM_KEYS - set(item)]:
        raise AllEarsError(
            f"{folder}/clips.json: {lacking[0]} needs {', '.join(sorted(_ITEM_KEYS))}"
        )
    return items


def _row(ears: AllEars, folder: Path, item: Mapping[str, Any]) -> list[str]:
    """The table's row of one item, asked bare and steered."""
    clip, question, choices = folder / item["file"], item["question"], item.get("choices")
    bare = ears.ask(clip, question, choices=choices)
    steered = ears.ask(clip, question, choices=choices, steer=True)
    return [
        escape(question),
        _colored(bare, item["answer"]),
        _colored(steered, item["answer"]),
        f"{_score(steered)}\n{steered.listening.verdict.replace('_', ' ')}",
        f"{steered.steering.strength:.2f}",
    ]


def _colored(answer: Answer, truth: str) -> str:
    """The answer with its probability, green and ticked if it is the truth."""
    probability = answer.probabilities.get(answer.text)
    text = escape(answer.text if probability is None else f"{answer.text} {probability:.0%}")
    return f"[green]{text} ✓[/green]" if answer.text == truth else f"[red]{text} ✗[/red]"


def _score(answer: Answer) -> str:
    score = answer.listening.score
    return "unknown" if score is None else f"{score:.2f}"


@contextmanager
def server_process() -> Iterator[str]:
    """Run a server of the embedded model; the context's value is its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = {k: v for k, v in os.environ.items() if not k.upper().startswith("ALLEARS_")}
    command = [sys.executable, *SERVE, "--port", str(port), "--listening-log-url", NO_LOG]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            _wait_for_end(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Console(stderr=True).status("starting a server"), AllEars(url) as ears:
        while time.monotonic() < deadline and process.poll() is None:
            if ears.ready():
                return
            time.sleep(0.1)
    log.seek(0)
    text = log.read()[-_LOG_CHARACTERS:].decode(errors="replace")
    raise AllEarsError(f"the server did not come up; its log:\n{text}")


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
