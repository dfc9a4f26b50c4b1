"""Self-calibration: a profile from synthetic items, for a model without one.

The items are those of `allears demo-data`, whose answers are known. Profiles are kept in a cache
folder, one entry for each checkpoint, dtype, prompt style, profile schema and number of items:

    profiles/<fingerprint>-<dtype>-<style>-schema<N>-<items>items/
        profile/        the profile
        refusal.json    or the reason why there is none
        items/          the sounds, while they are needed
        lock            held by the process that calibrates; others wait for its result
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from steering.calibration.calibrate import SYNTHETIC, calibrate
from steering.errors import DataError, ProfileError
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO
from steering.profile import AUTO, SCHEMA_VERSION, Profile, check_fits, load
from steering.synthetic.data import write_items

_SEED = 20260727  # of the items: a stream of its own, which no test set has
_POLL_SECONDS = 0.5

OnProgress = Callable[[str], None]  # an exception from it cancels the work


@dataclass(frozen=True, slots=True)
class NoProfile:
    """The reason, in plain words, why synthetic items give no profile for a model."""

    reason: str


def is_wanted(profile: str | None, model: AudioModel) -> bool:
    """Whether a profile is made by self-calibration: `auto`, or none named and none shipped."""
    return profile == AUTO or (profile is None and model.name != DEMO)


def profile_folder(cache: Path, model: AudioModel, items: int) -> Path:
    """The cache folder of a model's profile from a number of items."""
    dtype = str(model.dtype).removeprefix("torch.")
    kind = f"{dtype}-{model.prompt_style.name}"
    name = f"{model.fingerprint}-{kind}-schema{SCHEMA_VERSION}-{items}items"
    return cache / "profiles" / name


def load_cached(folder: Path, model: AudioModel) -> Profile | NoProfile | None:
    """The contents of a cache entry; None if it is empty. ProfileError if it is damaged."""
    refusal = folder / "refusal.json"
    if refusal.is_file():
        try:
            return NoProfile(str(json.loads(refusal.read_text())["reason"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProfileError(f"{refusal} is damaged: {error!r}") from error
    if not (folder / "profile").is_dir():
        return None
    profile = load(folder / "profile")
    check_fits(profile, model)
    return profile


def find_or_make(
    model: AudioModel, cache: Path, *, items: int, on_progress: OnProgress
) -> Profile | NoProfile:
    """The cached profile of a model, or a new one, which takes minutes and is cached.

    `on_progress` gets a line for every step; an exception from it cancels the work, and the next
    call goes on from there. Raises ProfileError if the cache folder can't be written.
    """
    folder = profile_folder(cache, model, items)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, on_progress):
            cached = _load_undamaged(folder, model, on_progress)
            if cached is not None:
                return cached
            return _make_profile(model, folder, items, on_progress)
    except OSError as error:
        raise ProfileError(
            f"a profile can't be made and kept in {folder}: {error}. Name another folder with"
            " --cache, or a profile with --profile"
        ) from error


@contextmanager
def _lock(folder: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the lock of an entry, so that one process at a time works in it."""
    lock = FileLock(folder / "lock")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_POLL_SECONDS)
        except Timeout:
            on_progress("calibrating: another server is making this model's profile")
    try:
        yield
    finally:
        lock.release()


def _load_undamaged(
    folder: Path, model: AudioModel, on_progress: OnProgress
) -> Profile | NoProfile | None:
    """The contents of the entry; damaged parts are deleted, so that they are made again."""
    try:
        return load_cached(folder, model)
    except ProfileError as error:
        on_progress(f"calibrating again: {error}")
        shutil.rmtree(folder / "profile", ignore_errors=True)
        (folder / "refusal.json").unlink(missing_ok=True)
        return None


def _make_profile(
    model: AudioModel, folder: Path, items: int, on_progress: OnProgress
) -> Profile | NoProfile:
    """A new profile, or the reason why there is none; either is saved in the entry."""

    def report_clips(done: int, count: int) -> None:
        on_progress(f"calibrating: {done} of {count} clips made")

    def report_items(done: int, count: int) -> None:
        rest = "" if done < count else ", now choosing heads and strengths"
        on_progress(f"calibrating: {done} of {count} items{rest}")

    data = folder / "items" / "items.json"
    if not data.is_file():  # it is written last
        write_items(
            data.parent, split="calibration", count=items, seed=_SEED, progress=report_clips
        )
    out = folder / "profile"
    try:
        calibrate(model, data, data.parent, out, calibrated_on=SYNTHETIC, progress=report_items)
        profile: Profile | NoProfile = load(out)  # as every later start reads it
    except DataError as error:
        profile = _refuse(folder, items, error)
    shutil.rmtree(data.parent)
    return profile


def _refuse(folder: Path, items: int, error: DataError) -> NoProfile:
    """The reason why there is no profile, written whole or not at all."""
    reason = (
        f"no gain: strength 0. Calibration on {items} synthetic items chose no heads: {error}."
        " Calibrate on your own data with `allears calibrate` and serve with --profile"
    )
    partial = folder / ".refusal.json.partial"
    partial.write_text(json.dumps({"calibrated_on": SYNTHETIC, "reason": reason}, indent=2) + "\n")
    os.replace(partial, folder / "refusal.json")
    return NoProfile(reason)
