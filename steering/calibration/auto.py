"""Self-calibration: a profile from synthetic items, for a model without one.

The items are those of `allears demo-data`, whose answers are known. Profiles are kept in a cache
folder, one entry for each checkpoint, dtype, prompt style, profile schema, way of judging and
number of items allowed:

    profiles/<fingerprint>-<dtype>-<style>-schema<N>.<N>-<items>items/
        profile/            the profile
        refusal.json        or the reason why there is none
        items/              the sounds, while they are needed
        profile.evidence/   what was recorded of the items so far
        profile.effects/    what was recorded of every token, where right answers say too little
        earlier/            the same of fewer items, until it is moved there
        lock                held by the process that calibrates; others wait for its result

It begins with a quarter of the items allowed, and doubles them while the chosen heads are no better
than chance. What was recorded is not recorded again. Where right answers choose no heads above
chance in the end, heads are chosen by the effect of the sound too, and those that gain more stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from steering.calibration.activations import ACTIVATIONS_VERSION
from steering.calibration.assembly import SYNTHETIC
from steering.calibration.calibrate import beats_chance, calibrate
from steering.calibration.collecting import Progress, store_folder
from steering.calibration.data_checks import MIN_ITEMS
from steering.calibration.effects.token_effects import TOKEN_EFFECTS
from steering.calibration.prompt_trial import kept_trial
from steering.calibration.specialists import CORRECTNESS, EFFECT, Criterion
from steering.errors import DataError, EvidenceError, ProfileError
from steering.items import read
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO, public_name
from steering.model.prompt_style import STYLES
from steering.profile import AUTO, SCHEMA_VERSION, Profile, check_fits, load, save
from steering.synthetic.data import write_items

_SEED = 20260727  # of the items: a stream of its own, which no test set has
_POLL_SECONDS = 0.5
_FIRST_SHARE = 4  # of the items allowed, a quarter is tried first
MOST_PARAMETERS_ON_A_CPU = 1_000_000_000  # of more, a profile takes a CPU many hours

OnProgress = Callable[[str], None]  # an exception from it cancels the work


@dataclass(frozen=True, slots=True)
class NoProfile:
    """The reason, in plain words, why synthetic items give no profile for a model."""

    reason: str


def is_wanted(profile: str | None, model: AudioModel) -> bool:
    """Whether a profile is made by self-calibration: `auto`, or none named and none shipped."""
    return profile == AUTO or (profile is None and model.name != DEMO)


def out_of_reach(model: AudioModel) -> str | None:
    """Why no profile is made of this model here, and how to get one; None if one can be made."""
    count = sum(parameter.numel() for parameter in model.network.parameters())
    if model.device.type != "cpu" or count <= MOST_PARAMETERS_ON_A_CPU:
        return None
    name = public_name(model.name)
    shown = name if "/" in name else "MODEL"
    return (
        f"not calibrated: {count / 1e9:.1f} B parameters on a CPU would take many hours. On a"
        f" machine with a GPU run `allears calibrate --model {shown} --data ITEMS --out PROFILE`"
        " and `allears profile push PROFILE ORG/NAME`; here serve with --profile ORG/NAME, or with"
        " the folder that `allears profile pull ORG/NAME FOLDER` writes"
    )


def profile_folder(cache: Path, model: AudioModel, items: int) -> Path:
    """The cache folder of a model's profile from a number of items."""
    dtype = str(model.dtype).removeprefix("torch.")
    kind = f"{dtype}-{model.prompt_style.name}-schema{SCHEMA_VERSION}.{ACTIVATIONS_VERSION}"
    name = f"{model.fingerprint}-{kind}-{items}items"
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

    It is made from at most `items` items; of a model that is `out_of_reach`, none is.
    `on_progress` gets a line for every step; an exception from it cancels the work, and the next
    call goes on from there. Raises ProfileError if the cache folder can't be written.
    """
    folder = profile_folder(cache, model, items)
    if (reason := out_of_reach(model)) is not None:
        return _load_undamaged(folder, model, on_progress) or NoProfile(reason)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, on_progress):
            cached = _load_undamaged(folder, model, on_progress)
            if cached is not None:
                return cached
            try:
                return _make_profile(model, folder, items, on_progress)
            except (DataError, EvidenceError) as error:  # what a stopped run left can't be used
                on_progress(f"calibrating again: {error}")
                _remove_scratch(folder)
                return _make_profile(model, folder, items, on_progress)
    except (OSError, DataError, EvidenceError) as error:
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

    def report_trial(done: int, count: int) -> None:
        on_progress(f"calibrating: trying how to ask, {done} of {count} answers")

    def report_items(done: int, count: int) -> None:
        rest = "" if done < count else ", now choosing heads and strengths"
        on_progress(f"calibrating: {done} of {count} items{rest}")

    data, draft = folder / "items" / "items.json", folder / "draft"
    _write_sounds(data, next(_counts(items)), on_progress)
    trial = kept_trial(
        folder / "items" / "prompt_trial.json", model, read(data, data.parent).items, report_trial
    )
    model = replace(model, prompt_style=STYLES[trial.style])
    by_answers = _record_enough(model, folder, items, on_progress, report_items)

    def fit(criterion: Criterion) -> Profile:
        calibrate(
            model,
            data,
            data.parent,
            draft,
            calibrated_on=SYNTHETIC,
            progress=report_items,
            keep_evidence=True,
            trial=trial,
            criterion=criterion,
        )
        return load(draft)  # as every later start reads it

    profile: Profile | NoProfile
    try:
        profile = fit(CORRECTNESS) if by_answers else _fit_by_either(fit, draft, on_progress)
        os.replace(draft, folder / "profile")
    except DataError as error:
        profile = _refuse(folder, items, error)
    _remove_scratch(folder)
    return profile


def _remove_scratch(folder: Path) -> None:
    """Delete what a profile is made from."""
    draft = folder / "draft"
    stores = (store_folder(draft), store_folder(draft, TOKEN_EFFECTS))
    for scratch in (folder / "items", folder / "earlier", draft, *stores):
        shutil.rmtree(scratch, ignore_errors=True)


def _fit_by_either(
    fit: Callable[[Criterion], Profile], draft: Path, on_progress: OnProgress
) -> Profile:
    """The profile whose heads gain more outside the fold: by effect, or by right answers; `fit`
    saves each as the draft, where the chosen one is at last.

    Those by right answers are no better than chance here. So they need a gain, and if neither set
    can be chosen, their reason is raised.
    """
    on_progress("calibrating: right answers choose no heads above chance, trying the effect too")
    try:
        by_effect = fit(EFFECT)
    except DataError as error:
        on_progress(f"calibrating: {error}")
        return fit(CORRECTNESS)
    try:
        by_answers = fit(CORRECTNESS)
    except DataError:
        return by_effect
    if _gain(by_answers) >= _gain(by_effect) > 0:
        return by_answers
    save(by_effect, draft)
    return by_effect


def _gain(profile: Profile) -> float:
    """Points that steering gains outside the fold; 0 where it is refused."""
    return 0.0 if profile.refusal else float(profile.held_out.get("gain_balanced", [0.0])[0])


def _record_enough(
    model: AudioModel, folder: Path, items: int, on_progress: OnProgress, report_items: Progress
) -> bool:
    """Record more and more items, up to a number, while the heads chosen on them are by chance.

    Returns whether those chosen on the last ones are better.
    """
    data, draft, earlier = folder / "items" / "items.json", folder / "draft", folder / "earlier"
    for count in _counts(items):
        if _write_sounds(data, count, on_progress) > count:  # a run that was stopped was further
            continue
        above = beats_chance(
            model, data, data.parent, draft, progress=report_items, earlier=earlier
        )
        if above is not False or count == items:
            return above is True
        on_progress(f"calibrating: heads chosen on {count} items are no better than chance")
        os.replace(store_folder(draft), earlier)
    raise AssertionError(items)


def _write_sounds(data: Path, count: int, on_progress: OnProgress) -> int:
    """The number of items whose sounds are there, which are written if they are fewer than asked.

    Those that are there are written again, with the same bytes.
    """

    def report_clips(done: int, clips: int) -> None:
        on_progress(f"calibrating: {done} of {clips} clips made")

    written = len(json.loads(data.read_text())) if data.is_file() else 0
    if written < count:
        write_items(
            data.parent, split="calibration", count=count, seed=_SEED, progress=report_clips
        )
    return max(written, count)


def _counts(items: int) -> Iterator[int]:
    """The numbers of items to try, one after the other."""
    count = max(MIN_ITEMS, items // _FIRST_SHARE)
    while count < items:
        yield count
        count *= 2
    yield items


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
