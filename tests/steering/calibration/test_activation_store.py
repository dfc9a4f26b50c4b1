from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steering.calibration.activation_store import open_store
from steering.calibration.activations import (
    ActivationRow,
    Activations,
    Columns,
    column_layout,
)
from steering.errors import EvidenceError
from steering.model.audio_model import AudioModel

COUNT = 6
KEY: dict[str, Any] = {"fingerprint": "00ff", "items": COUNT}


@pytest.fixture
def columns(untrained: AudioModel) -> Columns:
    return column_layout(untrained)


def row(columns: Columns, seed: int) -> ActivationRow:
    rng = np.random.default_rng(seed)
    return tuple(
        (100 * rng.random(shape)).astype(kind) if shape else kind(seed + 1)
        for shape, kind in columns.values()
    )


def test_columns_are_the_fields_of_evidence(columns: Columns) -> None:
    assert list(columns) == [field.name for field in fields(Activations)]


def test_what_was_put_is_there_next_time(tmp_path: Path, columns: Columns) -> None:
    folder = tmp_path / "new" / "one.evidence"
    with open_store(folder, KEY, columns, COUNT) as store:
        assert store.missing() == list(range(COUNT))
        for index in (4, 0, 2):
            store.put(index, row(columns, index))
        assert store.missing() == [1, 3, 5]
    with open_store(folder, KEY, columns, COUNT) as store:
        assert store.missing() == [1, 3, 5]
        with pytest.raises(AssertionError):
            store.activations()
        for index in store.missing():
            store.put(index, row(columns, index))
        activations = store.activations()
        for index in range(COUNT):
            for name, value in zip(columns, row(columns, index), strict=True):
                np.testing.assert_array_equal(getattr(activations, name)[index], value)
        store.remove()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["differences", "mass", "right", "right_tokens"])
def test_a_row_that_was_not_written_whole_is_missing(
    tmp_path: Path, columns: Columns, name: str
) -> None:
    with open_store(tmp_path / "e", KEY, columns, COUNT) as store:
        for index in range(COUNT):
            store.put(index, row(columns, index))
    file = tmp_path / "e" / f"{name}.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # the last byte belongs to the last item
    file.write_bytes(raw)
    with open_store(tmp_path / "e", KEY, columns, COUNT) as store:
        assert store.missing() == [COUNT - 1]


def test_another_models_evidence_is_refused_and_both_are_named(
    tmp_path: Path, columns: Columns
) -> None:
    with open_store(tmp_path / "e", KEY, columns, COUNT):
        pass
    with (
        pytest.raises(EvidenceError, match=r"fingerprint '00ff', now 'ee11'.*Delete the folder"),
        open_store(tmp_path / "e", {**KEY, "fingerprint": "ee11"}, columns, COUNT),
    ):
        pass
    with open_store(tmp_path / "e", KEY, columns, COUNT):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path: Path, columns: Columns) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(EvidenceError, match=r"not an evidence folder.*thesis\.txt"),
        open_store(tmp_path, KEY, columns, COUNT),
    ):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_start_that_was_cut_short_starts_anew(tmp_path: Path, columns: Columns) -> None:
    with open_store(tmp_path / "e", KEY, columns, COUNT):
        pass
    (tmp_path / "e" / "key.json").unlink()
    (tmp_path / "e" / "final.npy").write_bytes(b"half")
    with open_store(tmp_path / "e", KEY, columns, COUNT) as store:
        assert store.missing() == list(range(COUNT))


def test_a_damaged_file_is_named(tmp_path: Path, columns: Columns) -> None:
    with open_store(tmp_path / "e", KEY, columns, COUNT):
        pass
    (tmp_path / "e" / "final.npy").write_bytes(b"half")
    with (
        pytest.raises(EvidenceError, match=r"final\.npy is damaged"),
        open_store(tmp_path / "e", KEY, columns, COUNT),
    ):
        pass


def test_two_calibrations_do_not_share_a_folder(tmp_path: Path, columns: Columns) -> None:
    with (
        open_store(tmp_path / "e", KEY, columns, COUNT),
        pytest.raises(EvidenceError, match="in use"),
        open_store(tmp_path / "e", KEY, columns, COUNT),
    ):
        pass


def test_rows_of_another_store_are_copied_where_they_are_missing(
    tmp_path: Path, columns: Columns
) -> None:
    with (
        open_store(tmp_path / "few", KEY, columns, COUNT) as few,
        open_store(tmp_path / "more", {**KEY, "items": 9}, columns, 9) as more,
    ):
        for index in (0, 2, 5):
            few.put(index, row(columns, index))
        more.put(2, row(columns, 77))
        more.copy_rows(few)
        assert more.missing() == [1, 3, 4, 6, 7, 8]
        more.forget_damaged()
        assert more.missing() == [1, 3, 4, 6, 7, 8]
        for index, seed in ((0, 0), (2, 77), (5, 5)):
            for name, value in zip(columns, row(columns, seed), strict=True):
                np.testing.assert_array_equal(more.columns[name][index], value)
