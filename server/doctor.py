"""`allears doctor`: what is installed, whether the model loads and the profile fits."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch

from server.settings import Settings
from steering import auto, decode, model, profile
from steering.errors import AllEarsError
from steering.model import AudioModel


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str


def examine(settings: Settings) -> Iterator[Check]:
    """The findings one by one, the quick ones first."""
    yield Check("python", sys.version_info >= (3, 11), platform.python_version())
    for package in ("torch", "transformers", "fastapi", "uvicorn"):
        yield Check(package, True, version(package))
    yield Check("libsndfile", True, decode.libsndfile_version())
    cuda = torch.cuda.is_available()
    yield Check("device", True, torch.cuda.get_device_name() if cuda else "cpu")
    loaded: list[AudioModel] = []

    def load() -> str:
        loaded.append(
            model.load(
                settings.model,
                revision=settings.revision,
                device=settings.device,
                dtype=settings.dtype,
            )
        )
        found = loaded[0]
        return f"{found.name}: {found.family.name}, {found.layers} layers, {found.device}"

    yield _attempt("model", load)
    if loaded:
        yield _attempt("profile", lambda: _fits(settings, loaded[0]))


def _fits(settings: Settings, loaded: AudioModel) -> str:
    if auto.is_wanted(settings.profile, loaded):
        folder = auto.entry(settings.cache_folder, loaded, settings.calibration_items)
        found = auto.kept(folder, loaded)
        if found is None:
            return f"auto: not made yet, the first start makes it in {folder}"
        if isinstance(found, auto.Unprofiled):
            return f"auto: none, {found.reason}"
    else:
        found = profile.find(settings.profile, loaded)
    if found is None:
        return "none: listening scores are unknown and nothing is steered"
    return (
        f"{found.name}: {len(found.heads)} heads, max_strength {found.max_strength:g}, calibrated"
        f" on {found.calibrated_on}"
    )


def _attempt(name: str, act: Callable[[], str]) -> Check:
    """What `act` says, or the error it raises, as a finding."""
    try:
        return Check(name, True, act())
    except AllEarsError as error:
        return Check(name, False, str(error))
