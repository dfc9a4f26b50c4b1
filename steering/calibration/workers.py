"""Workers: processes, here or on other machines, that each load the model and record items.

Ray starts them and moves the rows. A row does not depend on the worker, so their number changes
only the time. The items of a lost worker go to others, and a new worker replaces it.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steering.calibration.activations import ActivationRow, RecordItem
from steering.errors import AllEarsError, ModelError
from steering.items import Item
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO
from steering.model.memory_plan import DTYPES
from steering.silence_cache import SILENCE_BYTES, SilenceCache

_ITEMS_IN_HAND = 2  # of a worker: one in work and one waiting, so that it is never idle
_MAX_ATTEMPTS = 3  # at one item: it may be what ends the workers


class CalibrationWorker:
    """A worker's process: the model, and the rows of the items it is given."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        adapter: str | None,
        device: str,
        dtype: str,
        style: str,
    ) -> None:
        self.model = loading.load(
            name, revision=revision, adapter=adapter, device=device, dtype=dtype, style=style
        )
        self._silence_cache = SilenceCache(SILENCE_BYTES)

    def fingerprint(self) -> str:
        """Fingerprint of the loaded checkpoint."""
        return self.model.fingerprint

    def row(self, item: Item, record_one: RecordItem) -> ActivationRow:
        """The row of one item."""
        return record_one(self.model, item, self._silence_cache)


@dataclass(slots=True, eq=False)
class _WorkerPool:
    """The workers, the items in hand of each, and the items still to do."""

    model: AudioModel
    items: Sequence[Item]
    record_one: RecordItem
    waiting: deque[int]
    actors: list[Any] = field(default_factory=list)
    running: dict[Any, tuple[Any, int]] = field(default_factory=dict)  # result -> worker, item
    attempts: Counter[int] = field(default_factory=Counter)


def rows_by_workers(
    model: AudioModel,
    items: Sequence[Item],
    wanted: Iterable[int],
    workers: int,
    record_one: RecordItem,
) -> Iterator[tuple[int, ActivationRow]]:
    """Index and row of each wanted item, in the order of completion.

    Uses the Ray cluster that RAY_ADDRESS names, or starts one on this machine and stops it again.
    Each worker takes one CPU, or one GPU if the model is on one. Raises ModelError if Ray is
    missing, has too few of them, or an item ends worker after worker; AudioError as `record`.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        os.environ.setdefault("RAY_worker_niceness", "0")  # as nice as this process, not 15
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        _refuse_too_many(ray, model, workers)
        pool = _WorkerPool(model, items, record_one, deque(wanted))
        pool.actors = [_start(ray, model) for _ in range(min(workers, len(pool.waiting)))]
        _check_same_model(ray, pool)
        yield from _rows(ray, pool)
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ModelError(
            "more than one worker needs Ray, which is not installed: `pip install 'allears[ray]'`"
            " (or `pip install ray`), or leave --workers out"
        ) from None
    return ray


def _kind(model: AudioModel) -> str:
    return "GPU" if model.device.type == "cuda" else "CPU"


def _refuse_too_many(ray: Any, model: AudioModel, workers: int) -> None:
    kind = _kind(model)
    available = int(ray.cluster_resources().get(kind, 0))
    if workers > available:
        raise ModelError(
            f"{workers} workers need {workers} {kind}s, and Ray has {available}: ask for at most"
            f" {available}, or connect to a larger cluster with RAY_ADDRESS"
        )


def _start(ray: Any, model: AudioModel) -> Any:
    """A new worker."""
    needs = {"num_gpus": 1} if _kind(model) == "GPU" else {"num_cpus": 1}
    actor = ray.remote(CalibrationWorker).options(scheduling_strategy="SPREAD", **needs)
    return actor.remote(*arguments_of(model))


def arguments_of(model: AudioModel) -> tuple[str, str | None, str | None, str, str, str]:
    """What a worker is made with; it loads by name, so a hub model needs no shared disk."""
    name = model.name if model.name == DEMO else _resolved(model.name)
    adapter = model.adapter and _resolved(model.adapter)
    device = "cuda" if _kind(model) == "GPU" else "cpu"
    dtype = next(n for n, kind in DTYPES.items() if kind == model.dtype)
    return name, model.revision, adapter, device, dtype, model.prompt_style.name


def _resolved(name: str) -> str:
    """A folder's whole path, for a worker runs elsewhere; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_same_model(ray: Any, pool: _WorkerPool) -> None:
    """Raise ModelError if a worker's machine has another checkpoint under the same name."""
    fingerprints = {_result_of(ray, actor.fingerprint.remote()) for actor in pool.actors}
    if fingerprints - {pool.model.fingerprint}:
        raise ModelError(
            f"a worker loaded another {pool.model.name}: fingerprints {sorted(fingerprints)}, here"
            f" {pool.model.fingerprint}. Give every machine the same checkpoint"
        )


def _rows(ray: Any, pool: _WorkerPool) -> Iterator[tuple[int, ActivationRow]]:
    while pool.waiting or pool.running:
        _hand_out(pool)
        done, _ = ray.wait(list(pool.running), num_returns=1)
        for result in done:
            actor, index = pool.running.pop(result)
            try:
                row = _result_of(ray, result)
            except ray.exceptions.RayActorError:
                _replace(ray, pool, actor, index)
            else:
                yield index, row


def _hand_out(pool: _WorkerPool) -> None:
    """Give the next items to the workers with fewer than _ITEMS_IN_HAND."""
    busy = Counter(id(actor) for actor, _ in pool.running.values())
    for _ in range(_ITEMS_IN_HAND):
        for actor in pool.actors:
            if pool.waiting and busy[id(actor)] < _ITEMS_IN_HAND:
                index = pool.waiting.popleft()
                result = actor.row.remote(pool.items[index], pool.record_one)
                pool.running[result] = actor, index
                busy[id(actor)] += 1


def _replace(ray: Any, pool: _WorkerPool, lost: Any, index: int) -> None:
    """Queue a lost worker's item again, first, and start one new worker for each lost one."""
    pool.attempts[index] += 1
    if pool.attempts[index] == _MAX_ATTEMPTS:
        raise ModelError(
            f"{_MAX_ATTEMPTS} workers ended at item {pool.items[index].id!r}: look for what ended"
            " them (memory, most often), or leave the item out. What was gathered is kept"
        )
    pool.waiting.appendleft(index)
    if any(actor is lost for actor in pool.actors):
        pool.actors = [actor for actor in pool.actors if actor is not lost]
        pool.actors.append(_start(ray, pool.model))


def _result_of(ray: Any, result: Any) -> Any:
    """A result; an AllEarsError of a worker is raised as itself."""
    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, AllEarsError):
            raise error.cause from None
        raise
