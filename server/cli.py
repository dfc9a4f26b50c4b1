"""The command line: every command of `allears`, those of the client and steering/ put in.

Exit codes: 0 fine, 1 failed, 2 used wrongly. What a user can act on is one line on stderr.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any, ParamSpec, TypeVar

import typer
import uvicorn
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allears_client import AllEars, AllEarsClientError, Answer
from allears_client import commands as client_commands
from server.errors import SettingsError
from server.settings import NO_LOG, Settings, option, read_settings, variable
from server.telemetry import logs
from steering import cli as steering_commands
from steering.errors import AllEarsError
from steering.model import loading

log = logging.getLogger("allears")
Given = ParamSpec("Given")
Result = TypeVar("Result")

DEMO_CLIPS = Path(__file__).parents[1] / "steering" / "demo" / "clips"
SERVE = ["-m", "server.cli", "serve"]  # what `demo` has Python run
_START_SECONDS = 120.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

app = typer.Typer(
    name="allears",
    help="Serve audio-language models that say how much they listened.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profile_app = typer.Typer(help="Look at listening profiles.", no_args_is_help=True)
app.add_typer(profile_app, name="profile")


def one_line_errors(command: Callable[Given, Result]) -> Callable[Given, Result]:
    """The command, with errors that a user can act on as a line on stderr and exit code 1 or 2."""

    @functools.wraps(command)
    def careful(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except SettingsError as error:
            _say(f"allears: {error}", logging.ERROR)
            raise typer.Exit(2) from None
        except (AllEarsError, AllEarsClientError) as error:
            _say(f"allears: {error}", logging.ERROR)
            raise typer.Exit(1) from None

    return careful


def _say(text: str, level: int = logging.INFO) -> None:
    """A line on stderr; one of the log, where all of them are to be JSON."""
    if logs.is_json():
        log.log(level, text.strip())
    else:
        typer.echo(text, err=True)


def with_settings(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of these fields of Settings and, as `settings`, their values."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())

        @functools.wraps(command)
        def read(**given: Any) -> None:
            options = {field: given.pop(field) for field in fields}
            command(settings=read_settings(os.environ, options), **given)

        parameters = [one for one in own if one.name != "settings"]
        parameters += [_parameter(field) for field in fields]
        read.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        read.__annotations__ = {one.name: one.annotation for one in parameters}
        return read

    return decorate


def _parameter(field: str) -> inspect.Parameter:
    """The option of one field of Settings. Its value is checked where all settings are."""
    info = Settings.model_fields[field]
    default = "" if info.default in (None, ()) else f" [default: {info.default}]"
    text = f"{info.description}.{default} [env: {variable(field)}]"
    annotation = Annotated[
        str | None, typer.Option(option(field), help=escape(text), show_default=False)
    ]
    return inspect.Parameter(
        field, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


# ---- serve


@app.command()
@one_line_errors
@with_settings(*Settings.model_fields)
def serve(settings: Settings) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Example: allears serve --model demo --port 8000
    """
    logs.set_up(settings.log_format)
    with _signals_end_it(), _listening_socket(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        _say(f"allears: loading {settings.model}; {url}")
        _say(f"  playground {url}/   docs {url}/docs")
        _say(f"  metrics {url}/metrics   ready {url}/readyz")
        if settings.host not in _LOOPBACK and not settings.known_keys:
            _say(f"  open to everyone who reaches {host}: set ALLEARS_API_KEYS", logging.WARNING)
        from server.serve import run_server as run  # torch is slow to import, and --help needs none

        code = asyncio.run(run(settings, listening))
    if code:
        raise typer.Exit(code)


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Until the server has its own: a signal ends the process, which has begun nothing, with 0."""
    kept = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}
    for sig in kept:
        signal.signal(sig, lambda *_: os._exit(0))
    try:
        yield
    finally:
        for sig, handler in kept.items():
            signal.signal(sig, handler)


@contextmanager
def _listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound before the model loads, so that a port in use is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"can't listen on {host}:{port} ({error.strerror or error}); choose another with"
            " --host and --port"
        ) from None
    # asyncio does this only for sockets that name their protocol; without, answers wait 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listening:
        yield listening


# ---- demo


@app.command()
@one_line_errors
def demo(
    clips: Annotated[
        Path, typer.Option(help="Folder with a clips.json and its audio files.")
    ] = DEMO_CLIPS,
) -> None:
    """Ask the embedded model about bundled clips, bare and steered, over HTTP.

    Example: allears demo
    """
    items = _read_clips(clips)
    with _server_process() as url, AllEars(url) as ears:
        console = Console()
        table = Table(title=f"POST {url}/v1/audio-chat", show_lines=True)
        for column in ("question", "bare", "steered", "listening", "strength"):
            table.add_column(column, no_wrap=column in ("bare", "steered"))
        for item in items:
            table.add_row(*_demo_row(ears, clips, item))
        console.print(table)
        for note in dict.fromkeys(item["note"] for item in items if item.get("note")):
            console.print(note, markup=False, highlight=False)


def _read_clips(folder: Path) -> list[dict[str, Any]]:
    """The items of a folder's clips.json: file, question, choices, answer, note."""
    try:
        items = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AllEarsError(f"{folder}: no usable clips.json ({error})") from None
    found: list[dict[str, Any]] = items if isinstance(items, list) else [items]
    return found


def _demo_row(ears: AllEars, folder: Path, item: Mapping[str, Any]) -> list[str]:
    """One clip, asked twice."""
    sound, question, choices = folder / item["file"], item["question"], item.get("choices")
    bare = ears.ask(sound, question, choices=choices)
    steered = ears.ask(sound, question, choices=choices, steer=True)
    return [
        escape(question),
        _shown(bare, item["answer"]),
        _shown(steered, item["answer"]),
        f"{_score(steered)}\n{steered.listening.verdict.replace('_', ' ')}",
        f"{steered.steering.strength:.2f}",
    ]


def _shown(answer: Answer, truth: str) -> str:
    """The answer with its probability, green and ticked where it is the truth."""
    share = answer.probabilities.get(answer.text)
    text = escape(answer.text if share is None else f"{answer.text} {share:.0%}")
    return f"[green]{text} ✓[/green]" if answer.text == truth else f"[red]{text} ✗[/red]"


def _score(answer: Answer) -> str:
    score = answer.listening.score
    return "unknown" if score is None else f"{score:.2f}"


@contextmanager
def _server_process() -> Iterator[str]:
    """The URL of a server of the embedded model, which runs as long as the context."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    clean = {k: v for k, v in os.environ.items() if not k.upper().startswith("ALLEARS_")}
    command = [sys.executable, *SERVE, "--port", str(port), "--listening-log-url", NO_LOG]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=clean, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            _end(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with Console(stderr=True).status("starting a server"), AllEars(url) as ears:
        while time.monotonic() < deadline and process.poll() is None:
            if ears.ready():
                return
            time.sleep(0.1)
    log.seek(0)
    text = log.read()[-8000:].decode(errors="replace")
    raise AllEarsError(f"the server did not come up; its log:\n{text}")


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- questions to a server that runs, or to one of this process


@app.callback()
def begin(context: typer.Context) -> None:
    """Tell the commands of the client how a server is run here."""
    context.obj = server_here


@contextmanager
def server_here() -> Iterator[str]:
    """The URL of a server in this process, of what ALLEARS_* name, while the context lasts."""
    from server.app import create_app  # torch is slow to import, and --help needs none

    options = {"host": _LOOPBACK[0], "port": 0, "api_keys": (), "listening_log_url": NO_LOG}
    served = create_app(read_settings({}, options))
    deployment = served.state.deployment
    logging.getLogger("allears").setLevel(logging.CRITICAL)  # what fails is raised below
    server = uvicorn.Server(uvicorn.Config(served, http="h11", log_config=None, access_log=False))
    with _listening_socket(_LOOPBACK[0], 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with Console(stderr=True).status(f"loading {deployment.settings.model}"):
                while deployment.state == "loading" and deployment.failure is None:
                    time.sleep(0.02)
            if deployment.failure is not None:
                raise AllEarsError(str(deployment.failure))
            yield f"http://{_LOOPBACK[0]}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


app.command("ask")(one_line_errors(client_commands.ask))
app.command("listen")(one_line_errors(client_commands.listen))


# ---- demo-data, calibrate, evaluate

for _name, _command in steering_commands.COMMANDS.items():
    app.command(_name)(one_line_errors(_command))


# ---- bench


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Measure what steering and batching cost, beside transformers.

    Example: allears bench --model demo --out build/bench-demo.json
    """
    from server.bench.__main__ import main  # torch is slow to import, and --help needs none

    main(context.args)


# ---- profile and doctor


@profile_app.command("show")
@one_line_errors
def profile_show(
    folder: Annotated[Path, typer.Argument(help="Folder of a listening profile.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print profile.json.")] = False,
) -> None:
    """Show what a listening profile holds.

    Example: allears profile show ./profile
    """
    from steering import profile  # torch is slow to import, and --help needs none

    found = profile.load(folder)
    if as_json:
        typer.echo((folder / "profile.json").read_text(encoding="utf-8"))
        return
    table = Table(show_header=False, title=found.name)
    heads = ", ".join(f"{layer}.{head}" for layer, head in found.heads)
    rows = {
        "model": f"{found.model} ({found.family}), revision {found.revision or 'none'}",
        "fingerprint": found.fingerprint,
        "heads (layer.head)": heads,
        "layers": ", ".join(map(str, found.layers)),
        "gate": f"{asdict(found.gate)}",
        "fixed strength": f"{found.fixed_strength:g}",
        "max strength": f"{found.max_strength:g}",
        "calibrated on": found.calibrated_on,
        "verdicts": f"{asdict(found.verdicts)}",
        "calibration": json.dumps(dict(found.calibration)),
        "held out": json.dumps(dict(found.held_out)),
        "versions": json.dumps(dict(found.versions)),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    Console().print(table)


@profile_app.command("verify")
@one_line_errors
@with_settings("model", "revision")
def profile_verify(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="Folder of a listening profile.")],
) -> None:
    """Check that a listening profile is whole and fits a model.

    Example: allears profile verify ./profile --model demo
    """
    from steering import profile

    found = profile.load(folder)
    profile.check_fits(found, loading.load(settings.model, revision=settings.revision))
    typer.echo(f"{folder}: profile {found.name!r} fits {settings.model}")


@app.command()
@one_line_errors
@with_settings(
    *("model", "revision", "profile", "adapter", "quantize", "prompt_style", "device", "dtype"),
    *("max_batch_rows", "max_context_tokens", "silence_cache_bytes"),
)
def doctor(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check what is installed, what memory the model takes, that it loads and its profile fits.

    A folder that holds only a config.json gets its memory plan. Example: allears doctor
    """
    from server.doctor import examine  # torch is slow to import, and --help needs none

    checks = list(examine(settings))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table("check", "", "found")
        for check in checks:
            table.add_row(check.name, "ok" if check.ok else "FAILED", escape(check.found))
        Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
