"""`allears ask` and `allears listen`: a question about a file, to a server that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.client import DEFAULT_URL, AllEars, AllEarsClientError, Answer, Listening

AudioPath = Annotated[Path, typer.Argument(help="A WAV, FLAC, OGG or MP3 file.")]
QuestionText = Annotated[str, typer.Argument(help="What to ask about it.")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", help="One possible answer; repeat it.")
]
Url = Annotated[str, typer.Option(help="The server.", envvar="ALLEARS_URL")]
ApiKey = Annotated[str | None, typer.Option(help="The server's key.", envvar="ALLEARS_API_KEY")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]


def ask(
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
    as_json: AsJson = False,
) -> None:
    """Ask a running server about an audio file.

    Example: allears ask dog.wav "What animal is this?" --choice dog --choice cat --steer
    """
    if direction not in ("request", "calibrated"):
        raise typer.BadParameter(
            f"{direction!r}; allowed: request, calibrated", param_hint="--direction"
        )
    with _one_line_errors(), AllEars(url, api_key=api_key) as ears:
        answer = ears.ask(
            audio,
            question,
            choices=choice,
            steer=steer,
            strength=_strength(strength),
            direction=direction,  # type: ignore[arg-type]  # checked above
        )
    _print_json(answer.raw) if as_json else _print_answer(answer)


def listen(
    audio: AudioPath,
    question: QuestionText,
    choice: Choices = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running server how far an audio file would decide the answer.

    Example: allears listen dog.wav "What animal is this?"
    """
    with _one_line_errors(), AllEars(url, api_key=api_key) as ears:
        heard = ears.listen(audio, question, choices=choice)
    if as_json:
        return _print_json(heard.raw)
    _print_rows([("listening", describe(heard.listening)), *_warnings(heard.warnings)])


def describe(listening: Listening) -> str:
    """Score, verdict and percentile in words."""
    if listening.score is None:
        return "unknown: the server has no listening profile"
    share = "" if listening.percentile is None else f", percentile {listening.percentile:.0%}"
    return f"{listening.score:.3f} ({listening.verdict.replace('_', ' ')}{share})"


def _strength(text: str) -> Any:
    if text == "adaptive":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}; allowed: adaptive, or a number from 0", param_hint="--strength"
        ) from None


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can act on becomes a line on stderr and exit code 1."""
    try:
        yield
    except AllEarsClientError as error:
        typer.echo(f"allears: {error}", err=True)
        raise typer.Exit(1) from None


def _print_json(raw: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(raw, indent=2, ensure_ascii=False))


def _print_answer(answer: Answer) -> None:
    rows = [("answer", answer.text)]
    rows += [("", f"{text}: {p:.1%}") for text, p in answer.probabilities.items()]
    rows.append(("listening", describe(answer.listening)))
    steering = answer.steering
    done = f"{steering.direction}, strength {steering.strength:.3g}"
    rows.append(("steering", done if steering.applied else f"none: {steering.reason}"))
    _print_rows([*rows, *_warnings(answer.warnings)])


def _warnings(found: tuple[str, ...]) -> list[tuple[str, str]]:
    return [("warning", one) for one in found]


def _print_rows(rows: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, escape(value))
    Console().print(table)
