"""Activations on disk, written as they are recorded, so that a stopped run can go on.

A folder holds one file for each field of Activations, or of other numbers of items, reserved for
all items at the start, and `checks.npy`, a checksum of each recorded item. The checksum is written
last, and an item counts only while it agrees with the files: after a kill or a power cut no
half-written item is used.
`key.json` names the model and the data.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from steering.calibration.activations import ActivationRow, Activations, Columns
from steering.errors import EvidenceError

_KEY, _LOCK, _CHECKS = "key.json", "lock", "checks"


@dataclass(frozen=True, slots=True, eq=False)
class ActivationStore:
    """The activations of I items, as far as they are recorded."""

    folder: Path
    columns: Mapping[str, NDArray[Any]]  # field -> (I, ...) in a file
    checks: NDArray[np.uint64]  # (I,) 1 + crc32 of a row's bytes; 0 while it is not recorded

    def missing(self) -> list[int]:
        """Indices of the items that are not recorded yet."""
        return [int(i) for i in np.flatnonzero(self.checks == 0)]

    def put(self, index: int, row: ActivationRow) -> None:
        """Write the row of an item; it counts once its checksum is written, last."""
        for column, value in zip(self.columns.values(), row, strict=True):
            assert column[index].shape == np.shape(value), (column[index].shape, np.shape(value))
            column[index] = value
        self.checks[index] = self._check(index)

    def copy_rows(self, other: ActivationStore) -> None:
        """Put the rows that another store of the same items, or the first of them, has more."""
        for index in set(np.flatnonzero(other.checks).tolist()) & set(self.missing()):
            self.put(index, tuple(column[index] for column in other.columns.values()))

    def activations(self) -> Activations:
        """The activations of all items, memory-mapped; every item must be recorded."""
        assert not self.missing(), self.missing()
        return Activations(**self.columns)

    def remove(self) -> None:
        """Delete the folder; arrays read from it must not be used afterwards."""
        shutil.rmtree(self.folder)

    def forget_damaged(self) -> None:
        """Mark the items whose bytes do not match their checksum as missing."""
        for index in np.flatnonzero(self.checks):
            if self.checks[index] != self._check(int(index)):
                self.checks[index] = 0

    def _check(self, index: int) -> int:
        """1 + crc32 of an item's bytes in all columns."""
        check = 0
        for column in self.columns.values():
            check = zlib.crc32(column[index : index + 1].tobytes(), check)
        return check + 1


@contextmanager
def open_store(
    folder: Path, key: Mapping[str, Any], columns: Columns, count: int
) -> Iterator[ActivationStore]:
    """The store of a key in a folder, locked for this process; recorded items are kept.

    Raises EvidenceError if the folder holds other activations or other files, if another process
    has it open, and if the disk has no room for all items.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise EvidenceError(
            f"{folder} is in use: another calibration writes there. Wait for it, or give"
            " another --out"
        ) from None
    try:
        layout: Columns = {**columns, _CHECKS: ((), np.uint64)}
        if (folder / _KEY).exists():
            _refuse_foreign(folder, key)
        else:
            _lay_out(folder, layout, count)
            partial = folder / f".{_KEY}.partial"
            partial.write_text(json.dumps(key, indent=2) + "\n")
            partial.replace(folder / _KEY)
        store = _open(folder, layout, count)
        store.forget_damaged()
        yield store
    finally:
        lock.release()


def read_key(folder: Path) -> dict[str, Any]:
    """The key of a folder's activations; empty if there is none, or a damaged one."""
    try:
        stored = json.loads((folder / _KEY).read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _refuse_foreign(folder: Path, key: Mapping[str, Any]) -> None:
    """Raise EvidenceError if the folder belongs to another model, data set or version."""
    stored = read_key(folder)
    if stored != key:
        names = sorted(n for n in {*stored, *key} if stored.get(n) != key.get(n))
        listed = "; ".join(f"{n} {stored.get(n)!r}, now {key.get(n)!r}" for n in names)
        raise EvidenceError(
            f"{folder} holds the evidence of another calibration ({listed}). Delete the folder to"
            " start anew, or give another --out"
        )


def _lay_out(folder: Path, layout: Columns, count: int) -> None:
    """Reserve every file in full, so that a lack of disk space is found at the start."""
    ours = {_LOCK, f".{_KEY}.partial", *(f"{name}.npy" for name in layout)}
    others = sorted({file.name for file in folder.iterdir()} - ours)
    if others:
        raise EvidenceError(f"{folder} is not an evidence folder: it holds {others[:5]}")
    try:
        for name, (shape, dtype) in layout.items():
            file = folder / f"{name}.npy"
            open_memmap(file, "w+", dtype=dtype, shape=(count, *shape))
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with file.open("r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    except OSError as error:
        needed = sum(np.dtype(k).itemsize * count * int(np.prod(s)) for s, k in layout.values())
        raise EvidenceError(
            f"{folder}: the evidence of {count} items takes {needed / 1e9:.1f} GB and can't be"
            f" stored there ({error.strerror}): make room, or give an --out on a larger disk"
        ) from error


def _open(folder: Path, layout: Columns, count: int) -> ActivationStore:
    """The store in a folder; EvidenceError if a file is damaged."""
    files: dict[str, NDArray[Any]] = {}
    for name, (shape, dtype) in layout.items():
        try:
            files[name] = open_memmap(folder / f"{name}.npy", "r+")
            intact = files[name].shape == (count, *shape) and files[name].dtype == dtype
        except (OSError, ValueError):
            intact = False
        if not intact:
            raise EvidenceError(f"{folder}/{name}.npy is damaged: delete the folder to start anew")
    checks = files.pop(_CHECKS)
    return ActivationStore(folder, files, checks)
