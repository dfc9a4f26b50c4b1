"""The command line: every command of `allears`, those of the client and steering/ put in.

Exit codes: 0 fine, 1 failed, 2 used wrongly. What a user can act on is one line on stderr.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
import uvicorn
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allears_client import AllEarsClientError
from allears_client import commands as client_commands
from server import demo_command
from server.errors import SettingsError
from server.settings import NO_LOG, Settings, option, read_settings, variable
from server.telemetry import logs
from steering import cli as steering_commands
from steering.errors import AllEarsError

log = logging.getLogger("allears")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

app = typer.Typer(
    name="allears",
    help="Serve audio-language models that say how much they listened.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
profile_app = typer.Typer(help="Look at listening profiles, and share them.", no_args_is_help=True)
app.add_typer(profile_app, name="profile")


def one_line_errors(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Turn errors that a user can act on into a line on stderr and exit code 1 or 2."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except SettingsError as error:
            _print_line(f"allears: {error}", logging.ERROR)
            raise typer.Exit(2) from None
        except (AllEarsError, AllEarsClientError) as error:
            _print_line(f"allears: {error}", logging.ERROR)
            raise typer.Exit(1) from None
        except BrokenPipeError:  # whoever read the output has enough: click knows
            raise
        except OSError as error:  # a path that can't be read or written, a full disk
            where = f"{error.filename}: " if error.filename else ""
            _print_line(f"allears: {where}{error.strerror or error}", logging.ERROR)
            raise typer.Exit(1) from None

    return run


def _print_line(text: str, level: int = logging.INFO) -> None:
    """Print a line on stderr; as a line of the log if all are to be JSON."""
    if logs.is_json():
        log.log(level, text.strip())
    else:
        typer.echo(text, err=True)


def with_settings(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these fields of Settings and, as `settings`, their values."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            options = {field: arguments.pop(field) for field in fields}
            command(settings=read_settings(os.environ, options), **arguments)

        parameters = [parameter for parameter in own if parameter.name != "settings"]
        parameters += [_parameter(field) for field in fields]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(field: str) -> inspect.Parameter:
    """The option of a field of Settings. Its value is checked where all settings are."""
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
    with _exit_on_signals(), _listening_socket(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        _print_line(f"allears: loading {settings.model}; {url}")
        _print_line(f"  playground {url}/   docs {url}/docs")
        _print_line(f"  metrics {url}/metrics   ready {url}/readyz")
        if settings.host not in _LOOPBACK and not settings.known_keys:
            _print_line(
                f"  open to everyone who reaches {host}: set ALLEARS_API_KEYS", logging.WARNING
            )
        gc.disable()  # torch and transformers make a million objects, and none is garbage
        from server.serve import run_server  # torch is slow to import, and --help needs none

        gc.freeze()
        gc.enable()
        code = asyncio.run(run_server(settings, listening))
    if code:
        raise typer.Exit(code)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """End the process with 0 at a signal, until the server has its own handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: os._exit(0))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


# ---- demo, and questions to a server that runs, or to one of this process


app.command("demo")(one_line_errors(demo_command.demo))


@app.callback()
def begin(context: typer.Context) -> None:
    """Tell the client's commands how to run a server in this process."""
    context.obj = run_local_server


@contextmanager
def run_local_server() -> Iterator[str]:
    """Serve what ALLEARS_* name in this process; the context's value is the URL."""
    from server.app import create_app  # torch is slow to import, and --help needs none

    options = {"host": _LOOPBACK[0], "port": 0, "api_keys": (), "listening_log_url": NO_LOG}
    local_app = create_app(read_settings({}, options))
    deployment = local_app.state.deployment
    level = log.level
    log.setLevel(logging.CRITICAL)  # a failure is raised below
    server = uvicorn.Server(
        uvicorn.Config(local_app, http="h11", log_config=None, access_log=False)
    )
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
            log.setLevel(level)


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


for _name, _command in steering_commands.PROFILE_COMMANDS.items():
    profile_app.command(_name)(one_line_errors(_command))


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
    from steering import profile as profiles
    from steering.model import loading

    profile = profiles.load(folder)
    profiles.check_fits(profile, loading.load(settings.model, revision=settings.revision))
    typer.echo(f"{folder}: profile {profile.name!r} fits {settings.model}")


@app.command()
@one_line_errors
@with_settings(
    *("model", "revision", "profile", "adapter", "quantize", "prompt_style", "device", "dtype"),
    *("max_batch_rows", "max_context_tokens", "silence_cache_bytes"),
)
def doctor(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Fetch and load the weights of a hub id, too.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold the model against plain transformers.")
    ] = False,
) -> None:
    """Check what is installed, what memory the model takes, that it loads and its profile fits.

    A folder that holds only a config.json gets its memory plan, and so does a hub id: of it only
    small files are fetched. With --verify prompt, logits, taps, silent twin, decoding and steering
    are compared with transformers' own on the same weights.
    Example: allears doctor --model demo --verify
    """
    from server.doctor import run_checks  # torch is slow to import, and --help needs none

    with Console(stderr=True).status("checking"):
        checks = list(run_checks(settings, load=load, verified=verify))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        table = Table("check", "", "found", *("measured", "allowed") * verify)
        for check in checks:
            distances = (check.measured, check.allowed) * verify
            figures = ("" if figure is None else f"{figure:.2g}" for figure in distances)
            table.add_row(check.name, "ok" if check.ok else "FAILED", escape(check.found), *figures)
        Console().print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
