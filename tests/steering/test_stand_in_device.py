"""The stand-in card refuses what a card refuses, and else computes what the CPU does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.steering.stand_in_device import CARD, CardTensor, StandInCard, plugged_in


@pytest.fixture
def card() -> Iterator[StandInCard]:
    with plugged_in() as plugged:
        yield plugged


HOST = torch.ones(2)  # (2,)


def on_card(*values: float) -> Tensor:
    return torch.tensor(values, device=CARD)  # (N,)


def test_its_tensors_say_where_they_are_and_compute_as_the_cpu(card: StandInCard) -> None:
    made = torch.arange(6, device=CARD).float().view(2, 3)
    moved = torch.ones(3).to(CARD)
    both = made @ moved + made.new_zeros(2)
    assert made.device == moved.device == both.device == both[0].device == CARD
    assert both.is_cuda and not both.is_cpu and isinstance(made.T, CardTensor)
    assert both.tolist() == both.cpu().numpy().tolist() == [3.0, 12.0]
    assert both.to("cpu").device.type == both.to(HOST).device.type == "cpu"
    assert HOST.to(both).device == CARD
    made[0] += 1
    assert made.cpu().sum() == 18
    assert [float(made.max()), int(made.argmax())] == [5.0, 5]


MIXES: dict[str, Callable[[], object]] = {
    "a sum": lambda: on_card(1, 2) + HOST,
    "a product": lambda: torch.ones(2, 2, device=CARD) @ HOST,
    "a change in place": lambda: on_card(1, 2).add_(HOST),
    "a row of another": lambda: torch.stack([on_card(1, 2), HOST]),
    "values put in places": lambda: on_card(1, 2).index_put_((torch.tensor([0, 1]),), HOST),
    "the host's tensor with the card's indices": lambda: HOST[on_card(0, 1).long()],
    "a mask": lambda: on_card(1, 2).masked_fill(HOST > 0, 0.0),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_mix_of_devices_is_refused(card: StandInCard, mix: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        mix()


def test_what_a_card_allows_is_allowed(card: StandInCard) -> None:
    values = on_card(1, 2, 3)
    values[:2] = HOST  # a copy
    assert values[torch.tensor([True, False, True])].tolist() == [1.0, 3.0]
    assert (values * torch.tensor(2.0)).tolist() == [2.0, 2.0, 6.0]  # one number
    with pytest.raises(TypeError, match="numpy"):
        values.numpy()


def test_it_is_there_in_every_thread(card: StandInCard) -> None:
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(torch.zeros(2, device=CARD)))
    thread.start()
    thread.join()
    assert made[0].device == CARD


def test_a_graph_reads_and_writes_where_it_did(card: StandInCard) -> None:
    given, counted = on_card(1, 2), on_card(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counted += 1
        out = given * 2 + counted
    assert counted.tolist() == [0.0]  # recorded, not run
    given.copy_(HOST * 10)
    graph.replay()
    assert out.tolist() == [21.0, 21.0]
    given = HOST.to(CARD)  # another tensor of the same name: the graph knows nothing of it
    graph.replay()
    assert out.tolist() == [22.0, 22.0]
    assert [graph.replays for graph in card.graphs] == [2]


FORBIDDEN: dict[str, Callable[[Tensor], object]] = {
    "a number read": lambda given: int(given.argmax()),
    "a list read": lambda given: given.tolist(),
    "a copy to the host": lambda given: given.cpu(),
    "new data": lambda given: torch.tensor([1.0], device=CARD),
    "a copy from the host": lambda given: HOST.to(CARD),
    "a copy into the card's": lambda given: given.copy_(HOST),
    "places counted": lambda given: given[given > 1],
    "indices of the host": lambda given: given[torch.tensor([0])],
}


@pytest.mark.parametrize("forbidden", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_graph_takes_nothing_that_waits_or_is_new(
    card: StandInCard, forbidden: Callable[[Tensor], object]
) -> None:
    given = on_card(1, 2)
    with (
        pytest.raises(RuntimeError, match="capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        forbidden(given)
    forbidden(given)
