"""A stand-in for a graphics card, on a machine that has none.

Its tensors say that they are on cuda:0 and hold real numbers, computed by the CPU, so results can
be compared. As on a card, no operation mixes them with the CPU's own, and nothing on the host reads
them but through a copy. A graph keeps the operations of a step with the tensors they ran on and
runs the same again; while it records, nothing may wait for the card or bring data from the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CARD = torch.device("cuda", 0)
CPU = torch.device("cpu")
TOTAL_BYTES = 80_000_000_000

_COPIES = {"aten::copy_", "aten::_to_copy", "aten::to"}  # go from one device to the other
_WAITS = {
    "aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::item",
    "aten::masked_select", "aten::multinomial", "aten::nonzero",
}  # fmt: skip
_INDEXING = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
}  # fmt: skip


class CardTensor(torch.Tensor):
    """A tensor of the card. For torch's own code it stands on the CPU, for all other code not."""

    data_on_host: Tensor  # of the same shape: the numbers
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, data: Tensor) -> CardTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=CPU,
        )
        made.data_on_host = data
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """cuda:0."""
        return CARD

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As a card's."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """As a card's."""
        return False

    def to(self, *args: Any, **options: Any) -> Tensor:
        """A copy on the host, or this on the card in another dtype."""
        device, dtype = options.get("device"), options.get("dtype")
        for value in args:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.device | str):
                device = torch.device(value)
        if device is not None and torch.device(device).type == "cpu":
            _refuse_while_recording("a copy to the host")
            return self.data_on_host.to(dtype or self.dtype, copy=True)
        if dtype is None or dtype == self.dtype:
            return self
        return torch.ops.aten._to_copy.default(self, dtype=dtype)  # type: ignore[no-any-return]

    def cpu(self, *_: Any) -> Tensor:
        """A copy on the host."""
        return self.to(CPU)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        """This tensor."""
        return self

    def tolist(self) -> Any:
        """The numbers; waits for the card."""
        _refuse_while_recording("tolist")
        return self.data_on_host.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as for every tensor of a card."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"card {self.data_on_host!r}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, _: Any, args: Any = (), options: Any = None
    ) -> Any:
        return _run(operation, args, options or {})


@dataclass(slots=True, eq=False)
class Recorded:
    """One operation of a graph: it reads and writes where it did when it was recorded."""

    run: Callable[[], Any]
    made: list[Tensor]  # its results, each of any shape
    given: set[int]  # addresses of what it reads; a view is made of one of them
    before: list[tuple[Tensor, Tensor]]  # what it writes to, and the numbers there before

    def undo(self) -> None:
        """Leave no trace: what is recorded does not run until it is replayed."""
        for tensor, numbers in self.before:
            tensor.copy_(numbers)
        for tensor in self.made:
            if tensor.untyped_storage().data_ptr() not in self.given:
                tensor.zero_()

    def replay(self) -> None:
        """Run it again; new results go where the old ones are."""
        results = [value for value in _leaves(self.run()) if isinstance(value, Tensor)]
        for old, new in zip(self.made, results, strict=True):
            if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                old.copy_(new)


@dataclass(slots=True, eq=False)
class Graph:
    """A recorded step, as `torch.cuda.CUDAGraph`."""

    operations: list[Recorded] = field(default_factory=list)
    replays: int = 0

    def pool(self) -> tuple[int, int]:
        """A handle of the memory that graphs share."""
        return (0, 1)

    def replay(self) -> None:
        """Run the step again."""
        self.replays += 1
        for operation in self.operations:
            operation.replay()


_recording = threading.local()  # .graph: the one that this thread records


@contextmanager
def _record(graph: Graph, **_: Any) -> Iterator[None]:
    """Record what this thread does on the card, as `torch.cuda.graph`."""
    _recording.graph = graph
    try:
        yield
    finally:
        _recording.graph = None
        for operation in reversed(graph.operations):
            operation.undo()


def _graph() -> Graph | None:
    """The graph that this thread records."""
    return getattr(_recording, "graph", None)


def _refuse_while_recording(what: str) -> None:
    if _graph() is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what}")


def _run(operation: Any, args: Any, options: Any) -> Any:
    """One operation, at least one tensor of which, or its result, is the card's."""
    name = operation._schema.name
    leaves = list(_leaves((args, options)))
    tensors = [value for value in leaves if isinstance(value, Tensor)]
    on_card = [value for value in tensors if isinstance(value, CardTensor)]
    devices = [value for value in leaves if isinstance(value, torch.device)]
    to_card = any(device.type == "cuda" for device in devices) or bool(on_card)
    if on_card and name not in _COPIES:
        _check_one_device(name, args, tensors)
    if _graph() is not None:
        _check_recording(name, args, tensors, to_card=to_card)
    inner = _mapped(_host, (args, options))
    result = _recorded(operation, inner) if to_card else operation(*inner[0], **inner[1])
    if name == "aten::copy_":
        to_card = isinstance(args[0], CardTensor)
    elif name in _COPIES and result is inner[0][0] and not on_card:
        result = result.clone()  # the host's own stays the host's
    known = {id(value.data_on_host): value for value in on_card}
    return _mapped(lambda value: _placed(value, known), result) if to_card else result


def _leaves(value: Any) -> Iterator[Any]:
    """Everything in an operation's arguments or results."""
    if isinstance(value, tuple | list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(tuple(value.values()))
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with everything in it changed."""
    if isinstance(value, list):
        return [_mapped(change, each) for each in value]
    if isinstance(value, tuple):
        return tuple(_mapped(change, each) for each in value)
    if isinstance(value, dict):
        return {name: _mapped(change, each) for name, each in value.items()}
    return change(value)


def _host(value: Any) -> Any:
    """What the CPU computes with in the place of a value."""
    if isinstance(value, torch.device):
        return CPU
    return value.data_on_host if isinstance(value, CardTensor) else value


def _placed(value: Any, known: dict[int, CardTensor]) -> Any:
    """A result on the card; a tensor that was changed in place stays the object it was."""
    if not isinstance(value, Tensor):
        return value
    before = known.get(id(value))
    return CardTensor(value) if before is None else before


def _check_one_device(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Refuse a tensor of the host beside those of the card, but for one number, and indices."""
    foreign = [t for t in tensors if not isinstance(t, CardTensor) and t.dim()]
    if name in _INDEXING and isinstance(args[0], CardTensor):
        indices = {id(t) for t in _leaves(args[1])}
        foreign = [t for t in foreign if id(t) not in indices]
    if foreign:
        shapes = [(*t.shape, t.device.type) for t in tensors]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0"
            f" and cpu! ({name} of {shapes})"
        )


def _check_recording(name: str, args: Any, tensors: list[Tensor], *, to_card: bool) -> None:
    """Refuse what a graph can't record: waiting for the card, and new data of the host."""
    waits = name in _WAITS or (
        name in _INDEXING and any(getattr(t, "dtype", None) == torch.bool for t in tensors[1:])
    )
    foreign = [t for t in tensors if not isinstance(t, CardTensor)]
    if to_card and (waits or any(t.dim() or name in _COPIES for t in foreign)):
        _refuse_while_recording(name)


def _recorded(operation: Any, inner: Any) -> Any:
    """The result of an operation, which joins the graph that is recorded, if one is."""
    graph, (args, options) = _graph(), inner
    if graph is None:
        return _computed(operation, args, options)
    given = zip(operation._schema.arguments, args, strict=False)
    written = [
        value for argument, value in given if getattr(argument.alias_info, "is_write", False)
    ]
    before = [(value, value.clone()) for value in written if isinstance(value, Tensor)]
    result = _computed(operation, args, options)
    made = [value for value in _leaves(result) if isinstance(value, Tensor)]
    read = [value for value in _leaves(inner) if isinstance(value, Tensor)]
    addresses = {value.untyped_storage().data_ptr() for value in read}
    graph.operations.append(
        Recorded(partial(_computed, operation, args, options), made, addresses, before)
    )
    return result


def _computed(operation: Any, args: Any, options: Any) -> Any:
    """The CPU's result; it counts no whole numbers, which a card does."""
    if operation._schema.name == "aten::histc" and not args[0].is_floating_point():
        return operation(args[0].double(), *args[1:], **options).to(args[0].dtype)
    return operation(*args, **options)


class _Operations(TorchDispatchMode):
    """Sends operations that make something on the card to it; entered once in every thread."""

    def __torch_dispatch__(
        self, operation: Any, _: Any, args: Any = (), options: Any = None
    ) -> Any:
        leaves = _leaves((args, options or {}))
        if any(isinstance(v, CardTensor) or getattr(v, "type", None) == "cuda" for v in leaves):
            return _run(operation, args, options or {})
        return operation(*args, **(options or {}))


class _Functions(TorchFunctionMode):
    """Makes the functions right that torch carries out below its operations."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        if function is torch.tensor:
            on_card = torch.device(options.get("device") or "cpu").type == "cuda"
            if on_card:
                _refuse_while_recording("torch.tensor")
                options["device"] = CPU
            made = function(_mapped(_number, args[0]), *args[1:], **options)
            return CardTensor(made) if on_card else made
        if function is torch.Tensor.to and isinstance(args[-1], CardTensor):
            return args[0].to(CARD, args[-1].dtype)
        if function is torch.bmm and "out_dtype" in options:  # a card's alone
            wider = options.pop("out_dtype")
            return function(*(factor.to(wider) for factor in args), **options)
        if function is torch.nn.utils.rnn.pad_sequence or function is torch._C._nn.pad_sequence:
            made = function(*_mapped(_host, args), **options)
            return CardTensor(made) if isinstance(args[0][0], CardTensor) else made
        return function(*args, **options)


def _number(value: Any) -> Any:
    """The number in a tensor of the card among the data of a new one."""
    return value.tolist() if isinstance(value, CardTensor) else value


@dataclass(slots=True, eq=False)
class StandInCard:
    """The card while it is plugged in, and the graphs that were made on it."""

    graphs: list[Graph] = field(default_factory=list)

    def new_graph(self) -> Graph:
        """An empty graph."""
        self.graphs.append(Graph())
        return self.graphs[-1]


@contextmanager
def plugged_in() -> Iterator[StandInCard]:
    """While it lasts torch has one card, in this thread and in all that are started."""
    card = StandInCard()
    run_thread, to_device = threading.Thread.run, torch.nn.Module.to

    def run(self: threading.Thread) -> None:
        with _Operations(), _Functions():  # type: ignore[no-untyped-call]
            run_thread(self)

    def to(self: Any, *args: Any, **options: Any) -> Any:
        if not any(str(value).startswith("cuda") for value in (*args, *options.values())):
            return to_device(self, *args, **options)
        for module in self.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    moved = torch.nn.Parameter(CardTensor(weight.data), requires_grad=False)
                    module._parameters[name] = moved
            for name, values in module._buffers.items():
                module._buffers[name] = None if values is None else CardTensor(values)
        return self

    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    modes = _Operations(), _Functions()  # type: ignore[no-untyped-call]
    with pytest.MonkeyPatch.context() as patch, modes[0], modes[1]:
        patch.setattr(threading.Thread, "run", run)
        patch.setattr(torch.nn.Module, "to", to)
        # in inference mode torch can't wrap a view of a weight
        patch.setattr(torch._C, "_InferenceMode", lambda mode: torch.set_grad_enabled(not mode))
        for name, value in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "mem_get_info": lambda device=None: (TOTAL_BYTES, TOTAL_BYTES),
            "is_bf16_supported": lambda **_: True,
            "get_device_name": lambda device=None: "stand-in",
            "get_device_capability": lambda device=None: (9, 0),
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "Stream": lambda *args, **options: stream,
            "current_stream": lambda device=None: stream,
            "stream": lambda other: nullcontext(),
            "CUDAGraph": card.new_graph,
            "graph": _record,
        }.items():
            patch.setattr(torch.cuda, name, value)
        yield card
