"""`allears ask` and `allears listen`: a question about a file, to a server or to none."""

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
from allears_client.request_body import ListeningOptions, LongAudio, Options

AudioPath = Annotated[
    str,
    typer.Argument(
        help="A sound file: WAV, FLAC, OGG, MP3 and others; `-` reads it from standard input."
    ),
]
QuestionText = Annotated[str, typer.Argument(help="What to ask about it.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", help="One possible answer; repeat it.")
]
Temperature = Annotated[float, typer.Option(help="0: the likeliest token each time.")]
TopP = Annotated[float | None, typer.Option(help="Draw among tokens that reach this sum.")]
TopK = Annotated[int | None, typer.Option(help="Draw among so many tokens; 0: among all.")]
MinP = Annotated[float | None, typer.Option(help="Draw among tokens this near the likeliest.")]
Penalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="Above 1: what was said comes less easily again."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the draws.")]
LongClip = Annotated[
    LongAudio | None,
    typer.Option(help="For a file longer than is heard as one; as deployed if not given."),
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
    long_audio: LongClip = None,
    silence: Annotated[
        bool, typer.Option("--silence", help="Answer as much silence as well.")
    ] = False,
    effect: Annotated[
        bool, typer.Option("--effect", help="Measure what the sound does, without --steer too.")
    ] = False,
    words: Annotated[
        bool, typer.Option("--words", help="Measure what the sound does to each word.")
    ] = False,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    penalty: Penalty = None,
    seed: Seed = None,
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
        "choices": choice or None,
        "long_audio": long_audio,
        "include": ["timeline"],
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": penalty,
        "seed": seed,
    }
    if steer:
        options["include"] = [*options["include"], "unsteered"]
    if silence:
        options["include"] = [*options["include"], "silence"]
    if effect:
        options["include"] = [*options["include"], "effect"]
    if words:
        options["include"] = [*options["include"], "words"]
    sound = _sound(audio)
    with _connect(context, url, api_key, local) as ears, _waiting(as_json):
        answer = ears.ask(sound, question, **options)
    if as_json:
        return _print_json(answer.raw)
    Console().print(terminal.answer_table(answer))


def listen(
    context: typer.Context,
    audio: AudioPath,
    question: QuestionText,
    choice: Choices = None,
    long_audio: LongClip = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    as_json: AsJson = False,
) -> None:
    """See how far an audio file would decide the answer, without one.

    Example: allears listen dog.wav "What animal is this?"
    """
    options: ListeningOptions = {
        "choices": choice or None,
        "long_audio": long_audio,
        "include": ["timeline", "silence", "effect"],
    }
    sound = _sound(audio)
    with _connect(context, url, api_key, local) as ears, _waiting(as_json):
        heard = ears.listen(sound, question, **options)
    if as_json:
        return _print_json(heard.raw)
    Console().print(terminal.heard_table(heard))


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
def _connect(
    context: typer.Context, url: str, api_key: str | None, local: bool
) -> Iterator[AllEars]:
    """A connection to the server of `url`, or to one of this process while the context lasts.

    An error that the user can act on becomes a line on stderr and exit code 1. The command line
    that holds these commands gives in `context.obj` the way to run a server here.
    """
    serve_locally: Callable[[], AbstractContextManager[str]] | None = context.obj
    try:
        if local and serve_locally is None:
            raise AllEarsClientError("--local needs the whole of allears, not its client alone")
        with (
            serve_locally() if local and serve_locally else nullcontext(url) as server_url,
            AllEars(server_url, api_key=api_key) as ears,
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
