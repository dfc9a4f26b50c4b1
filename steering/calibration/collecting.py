"""Collecting: the activations of a data set, into its store, by this process or by workers."""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from steering.calibration.activation_store import ActivationStore, open_store, read_key
from steering.calibration.activations import (
    ACTIVATIONS_VERSION,
    ANSWER,
    Columns,
    RecordItem,
    column_layout,
    record_item,
    record_items,
)
from steering.calibration.workers import rows_by_workers
from steering.errors import EvidenceError
from steering.items import DataSet, Item
from steering.model.audio_model import AudioModel

_OF_ALL_ITEMS = ("data_sha256", "audio_sha256")  # parts of a key that no part of the items has

Progress = Callable[[int, int], None]  # items done, all items


@dataclass(frozen=True, slots=True)
class EvidenceKind:
    """A kind of numbers that are recorded of items."""

    suffix: str  # of the folder
    version: int  # goes up when the numbers of the same item change
    layout: Callable[[AudioModel], Columns]
    record_one: RecordItem


EVIDENCE = EvidenceKind("evidence", ACTIVATIONS_VERSION, column_layout, record_item)


def store_folder(out: Path, kind: EvidenceKind = EVIDENCE) -> Path:
    """The folder of what is recorded for a profile in `out`, beside it."""
    return out.with_name(f"{out.name}.{kind.suffix}")


def open_store_for(
    model: AudioModel, dataset: DataSet, out: Path, kind: EvidenceKind = EVIDENCE
) -> AbstractContextManager[ActivationStore]:
    """The store of a model and a data set, with the items recorded so far."""
    key = _key(model, dataset) | {"evidence_version": kind.version}
    return open_store(store_folder(out, kind), key, kind.layout(model), len(dataset.items))


def _key(model: AudioModel, dataset: DataSet) -> dict[str, Any]:
    """Everything that activations depend on: a store with other values is not reused."""
    ids = "\n".join(item.id for item in dataset.items)
    return {
        "evidence_version": ACTIVATIONS_VERSION,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "data_sha256": dataset.sha256,
        "audio_sha256": dataset.audio_sha256,
        "items": len(dataset.items),
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "max_answer_tokens": ANSWER.max_tokens,
        "prompt_style": model.prompt_style.name,
        **versions(),
    }


def take_over(store: ActivationStore, model: AudioModel, dataset: DataSet, earlier: Path) -> None:
    """Move into a store what an evidence folder holds of its first items, and delete the folder.

    What another model, version or data set left there is only deleted.
    """
    stored = read_key(earlier)
    count = int(stored.get("items", 0))
    first = replace(dataset, items=dataset.items[:count])
    own = {**_key(model, first), **{name: stored.get(name) for name in _OF_ALL_ITEMS}}
    with suppress(EvidenceError):  # damaged: its items are recorded anew
        if stored == own:
            with open_store(earlier, stored, column_layout(model), count) as before:
                store.copy_rows(before)
    shutil.rmtree(earlier, ignore_errors=True)


def fill(
    store: ActivationStore,
    model: AudioModel,
    items: Sequence[Item],
    workers: int,
    progress: Progress | None,
    kind: EvidenceKind = EVIDENCE,
) -> None:
    """Record the items that the store lacks."""
    missing, count = store.missing(), len(items)
    if workers > 1 and missing:
        rows = rows_by_workers(model, items, missing, workers, kind.record_one)
    else:
        rows = record_items(model, items, missing, kind.record_one)
    done = count - len(missing)
    with tqdm(total=count, initial=done, desc="listening", unit="item", disable=None) as bar:
        if progress:
            progress(done, count)
        for index, row in rows:
            store.put(index, row)
            done += 1
            bar.update()
            if progress:
                progress(done, count)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages behind the figures; allears is 0 if not installed."""
    installed = {"allears": "0", "python": platform.python_version()}
    for package in ("allears", "torch", "transformers", "numpy"):
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
