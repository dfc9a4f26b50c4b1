"""The events of one answer, in their order: Started, then Pieces, then Finished.

Wherever the answer needs its next token stands a NeedsToken: it goes on after a decode step. Before
a pass of its own, over a part of its prompt or of an answer that is complete, stands a NeedsTurn.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from server.engine.messages import Answer
from steering.decision import Listening, Steering
from steering.kv_slots import Row
from steering.model.passes import Passes, Result


@dataclass(frozen=True, slots=True, eq=False)
class Started:
    """The first event: measurements and steering, known before the first piece."""

    listening: Listening
    steering: Steering


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of the answer's text; never empty."""

    text: str
    scores: tuple[float, ...] = ()  # of the tokens since the last piece; none without audio


@dataclass(frozen=True, slots=True, eq=False)
class NeedsToken:
    """The answer waits for its row's next token. Stays inside the engine."""

    row: Row


@dataclass(frozen=True, slots=True)
class NeedsTurn:
    """The answer waits for its turn with a pass of its own. Stays inside the engine."""

    tokens: int  # that the pass takes
    lets_pass: bool = False  # nothing is begun: new questions may go first


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The last event: the whole answer."""

    answer: Answer


AnswerEvent = Started | Piece | Finished
Event = AnswerEvent | NeedsToken | NeedsTurn


def in_turns(passes: Passes[Result]) -> Generator[NeedsTurn, None, Result]:
    """The result of passes, each of them in its turn."""
    while True:
        try:
            tokens = next(passes)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield NeedsTurn(tokens)
