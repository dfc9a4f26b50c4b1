"""Checks of a data set: all its faults are found before the first pass of a model."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from steering.audio.decode import check_clip
from steering.audio.limits import AudioLimits
from steering.errors import AudioError
from steering.items import DataSet, Fault, Item, Parsed, duplicates, parse

FILE_LIMITS = AudioLimits(max_bytes=1_000_000_000, max_seconds=3600.0)
MIN_ITEMS = 40
_ADVICE = (
    "Mend the file, or leave these items out with --skip-faulty: how many were is then written"
    " into the profile"
)


def check_items(
    path: Path, audio_root: Path, *, skip_faulty: bool = False, labelled: bool = True
) -> DataSet:
    """The items of a file, checked for calibration.

    Every clip is decoded once, to its end. Raises DataError with all faults: those of `read`,
    unusable audio, repeated choices, fewer than MIN_ITEMS items, the same answer in all items.
    With `skip_faulty` items with faults of their own are left out instead, and counted. Without
    `labelled` items need no answer, and all may have the same.
    """
    parsed = parse(path, audio_root, labelled=labelled)
    digests, faults = _check_audio(parsed)
    parsed.faults += faults
    for index, item in parsed.items.items():
        parsed.faults += [
            Fault(index, f"{item.id}: the choice {choice!r} stands twice in {list(item.choices)}")
            for choice in duplicates(item)
        ]
    faulty = {fault.index for fault in parsed.faults} if skip_faulty else set()
    items = tuple(item for index, item in parsed.items.items() if index not in faulty)
    set_faults = list(_faults_of_the_set(items, labelled=labelled))
    item_faults = [] if skip_faulty else sorted(parsed.faults, key=_position)
    parsed.refuse([*set_faults, *item_faults], _ADVICE if item_faults else "")
    audio_digest = hashlib.sha256("".join(digests[item.audio] for item in items).encode())
    return DataSet(
        items, parsed.sha256, path.name, audio_digest.hexdigest(), parsed.count - len(items)
    )


def _position(fault: Fault) -> int:
    return -1 if fault.index is None else fault.index


def _check_audio(parsed: Parsed) -> tuple[dict[Path, str], list[Fault]]:
    """The hash of every usable clip, and a fault for every item of an unusable one."""
    users: dict[Path, list[int]] = {}
    for index, item in parsed.items.items():
        if os.path.isfile(item.audio):  # the others were found before
            users.setdefault(item.audio, []).append(index)
    digests: dict[Path, str] = {}
    faults: list[Fault] = []
    for audio, indices in tqdm(users.items(), "checking audio", disable=None):
        try:
            digests[audio] = check_clip(audio, FILE_LIMITS)
        except AudioError as error:
            faults += [Fault(i, f"{parsed.items[i].id}: {error}") for i in indices]
    return digests, faults


def _faults_of_the_set(items: Iterable[Item], *, labelled: bool) -> Iterable[Fault]:
    """Faults of the items as a set."""
    answers = Counter(item.answer for item in items)
    count = answers.total()
    if count < MIN_ITEMS:
        yield Fault(None, f"{count} items; calibration needs at least {MIN_ITEMS}")
    if labelled and count and len(answers) == 1:
        yield Fault(
            None,
            f"the answer is {next(iter(answers))!r} in every item: a model that always says so"
            " would seem to listen; mix the answers",
        )
