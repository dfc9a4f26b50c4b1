"""A model on a card that was never at hand: seconds of its stages, from sizes and a data sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.capacity import costs
from deploy.capacity.costs import Machine, Shape
from deploy.capacity.seconds import Seconds, Stages

_MEL_FRAMES_A_SECOND = 100


@dataclass(frozen=True, slots=True)
class Card:
    """A data sheet."""

    name: str
    operations_a_second: float
    bytes_a_second: float
    memory_bytes: float


H100 = Card("H100 SXM", 989e12, 3.35e12, 80e9)  # dense bfloat16


@dataclass(frozen=True, slots=True)
class Shares:
    """What is reached of a data sheet; no such share was measured here."""

    operations: float = 0.5
    bandwidth: float = 0.6
    memory: float = 0.9  # the rest is for activations, graphs and fragments


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """What a CPU does whatever the card: measured here, taken to be the same there."""

    open: Mapping[float, Sequence[float]]
    decode: Mapping[float, Sequence[float]]
    prepare: Mapping[float, Sequence[float]]
    layer_seconds: float  # to start the operators of one layer
    row_seconds: float  # between two steps, for every answer that is written


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """A model on a card, as the simulation takes it."""

    shape: Shape
    machine: Machine
    host: Host
    tokens_a_second: float  # of audio
    text_tokens: tuple[int, int]  # before the audio, after it
    memory_bytes: float  # for keys, values and silence

    def prefix(self, seconds: float) -> int:
        """Tokens up to the end of a clip."""
        return self.text_tokens[0] + round(self.tokens_a_second * seconds)

    def length(self, seconds: float) -> int:
        """Tokens of a prompt."""
        return self.prefix(seconds) + self.text_tokens[1]

    def entering(self, seconds: float, twin: str) -> float:
        """Seconds from the queue to the first token."""
        shape, prefix, length = self.shape, self.prefix(seconds), self.length(seconds)
        positions = shape.positions_of(round(_MEL_FRAMES_A_SECOND * seconds))
        passes = [costs.prefill(shape, length, positions)]
        if twin:
            passes.append(costs.question(shape, length, prefix))
        if twin in ("words", "cold"):
            passes.append(costs.silent_prefix(shape, prefix))
        if twin == "cold":
            passes.append(costs.encoder(shape, positions))
        return sum(self.machine.seconds(one) for one in passes)

    def round(self, rows: int, reach: int) -> float:
        """Seconds of a step of a recorded graph, and of what is done for each of its rows."""
        step = self.machine.seconds(costs.step(self.shape, rows, reach), recorded=True)
        return step + rows * self.host.row_seconds

    def rows(self, tokens: int) -> int:
        """Rows of so many tokens that there is memory for."""
        return int(self.memory_bytes / self.shape.row_bytes(tokens))

    def stages(self, reach: int, most_rows: int) -> Stages:
        """For the simulation; every step reads as far as `reach`."""
        sizes = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0)

        def entering(twin: str) -> Seconds:
            return Seconds({size: [self.entering(size, twin)] for size in sizes})

        return Stages(
            open=Seconds(self.host.open),
            decode=Seconds(self.host.decode),
            prepare=Seconds(self.host.prepare),
            bare=entering(""),
            hit=entering("hit"),
            words=entering("words"),
            cold=entering("cold"),
            round=Seconds({n: [self.round(n, reach)] for n in range(1, most_rows + 1)}),
            entry_bytes=lambda seconds: self.shape.entry_bytes(self.prefix(seconds)),
            feature_bytes=lambda seconds: self.shape.feature_bytes(
                round(self.tokens_a_second * seconds)
            ),
        )


def replica(shape: Shape, host: Host, text: tuple[int, int], shares: Shares) -> Replica:
    """The model on an H100; what weights leave of its memory is for keys, values and silence."""
    machine = Machine(
        H100.operations_a_second * shares.operations,
        H100.bytes_a_second * shares.bandwidth,
        host.layer_seconds,
        overlapped=True,
    )
    memory = H100.memory_bytes * shares.memory - shape.weight_bytes
    return Replica(shape, machine, host, 25.0, text, memory)
