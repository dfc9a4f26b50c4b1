"""`allears ask` and `allears listen`: a question about a file, to a server that runs or to none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from allears_client import terminal
from allears_client.audio_input import Sound
from allears_client.client import DEFAULT_URL, AllEars
from allears_client.errors import AllEarsClientError, NoServer
from allears_client.request_body import ListeningOptions, Options

AudioPath = Annotated[
    str, typer.Argument(help="A WAV, FLAC, OGG or MP3 file; `-` reads it from standard input.")
]
QuestionText = Annotated[str, typer.Argument(help="What to ask about it.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", help="One possible answer; repeat it.")
]
Url = Annotated[str, typer.Option(help="The server.", envvar="ALLEARS_URL")]
ApiKey = Annotated[str | None, typer.Option(help="The server's key.", envvar="ALLEARS_API_KEY")]
Local = Annotated[
    bool,
    typer.Option("--local", help="Run the model here, without a server: ALLEARS_MODEL, or demo."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]


def ask(
    context: typer.Context,
    audio: AudioPath,
    question: QuestionText,
    choice: Choices = None,
    steer: Annotated[bool, typer.Option(help="Steer towards the audio.")] = False,
    strength: Annotated[
        str, typer.Option(help="`adaptive`, or a number from 0 to the profile's max_strength.")
    ] = "adaptive",
    direction: Annotated[str, typer.Option(help="`request` or `calibrated`.")] = "request",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """Ask about an audio file, and see how far it decided the answer.

    Example: allears ask dog.wav "What animal is this?" --choice dog --choice cat --steer
    """
    options: Options = {
        "steer": steer,
        "strength": _strength(strength),
        "direction": _direction(direction),
        "include": ["timeline", "unsteered"] if steer else ["timeline"],
    }
    if choice:
        options["choices"] = choice
    sound = _sound(audio)
    with _ears(context, url, api_key, local) as ears, _waiting(as_json):
        answer = ears.ask(sound, question, **options)
    if as_json:
        return _print_json(answer.raw)
    Console().print(terminal.answer(answer))


def listen(
    context: typer.Context,
    audio: AudioPath,
    question: QuestionText,
    choice: Choices = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """See how far an audio file would decide the answer, without one.

    Example: allears listen dog.wav "What animal is this?"
    """
    options: ListeningOptions = {"include": ["timeline", "silence"]}
    if choice:
        options["choices"] = choice
    sound = _sound(audio)
    with _ears(context, url, api_key, local) as ears, _waiting(as_json):
        heard = ears.listen(sound, question, **options)
    if as_json:
        return _print_json(heard.raw)
    Console().print(terminal.heard(heard))


def _sound(audio: str) -> Sound:
    if audio != "-":
        return audio
    if sys.stdin.isatty():
        raise typer.BadParameter("- reads an audio file from a pipe, and there is none")
    return sys.stdin.buffer.read()


def _strength(text: str) -> float | Literal["adaptive"]:
    if text == "adaptive":
        return "adaptive"
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}; allowed: adaptive, or a number from 0", param_hint="--strength"
        ) from None


def _direction(text: str) -> Literal["request", "calibrated"]:
    if text == "request":
        return "request"
    if text == "calibrated":
        return "calibrated"
    raise typer.BadParameter(f"{text!r}; allowed: request, calibrated", param_hint="--direction")


@contextmanager
def _ears(context: typer.Context, url: str, api_key: str | None, local: bool) -> Iterator[AllEars]:
    """A connection to the server of `url`, or to one of this process while the context lasts.

    What the user can act on becomes a line on stderr and exit code 1. The command line that holds
    these commands says in `context.obj` how a server is run here.
    """
    run_here: Callable[[], AbstractContextManager[str]] | None = context.obj
    try:
        if local and run_here is None:
            raise AllEarsClientError("--local needs the whole of allears, not its client alone")
        with (
            run_here() if local and run_here else nullcontext(url) as place,
            AllEars(place, api_key=api_key) as ears,
        ):
            yield ears
    except NoServer as error:
        hint = " with --url, or run the model here with --local" if "give its" in str(error) else ""
        typer.echo(f"allears: {error}{hint}", err=True)
        raise typer.Exit(1) from None
    except AllEarsClientError as error:
        typer.echo(f"allears: {error}", err=True)
        raise typer.Exit(1) from None


def _waiting(as_json: bool) -> AbstractContextManager[Any]:
    """A spinner on a terminal's stderr while the server thinks."""
    console = Console(stderr=True)
    quiet = as_json or not console.is_terminal
    return nullcontext() if quiet else console.status("listening")


def _print_json(raw: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(raw, indent=2, ensure_ascii=False))
