"""`allears doctor`: what is installed, whether the model loads, is right, and the profile fits."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from server.loading import load_from
from server.memory_check import check_memory
from server.settings import Settings
from steering import profile as profiles
from steering.audio import soundfile_reader
from steering.calibration import auto
from steering.errors import AllEarsError
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import find, is_on_hub, only_config, weight_files
from steering.model.families import family_of
from steering.model.memory_plan import ModelSizes, Wanted, gigabytes
from steering.silence_cache import TOP_FRAMES, Ladder
from steering.verification.self_test import self_test
from steering.verification.verify import verify


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `allears doctor --json` prints these fields."""

    name: str
    ok: bool
    found: str
    measured: float | None = None  # distance from plain transformers, where it is one
    allowed: float | None = None


def run_checks(
    settings: Settings, *, load: bool = False, verified: bool = False
) -> Iterator[Check]:
    """The checks one by one, the quick ones first; with those of `verify` if wanted.

    Of a model on the hub the weights are fetched and loaded only where that is wanted, or needed to
    verify them: else its small files are.
    """
    yield Check("python", sys.version_info >= (3, 11), platform.python_version())
    for package in ("torch", "transformers", "fastapi", "uvicorn"):
        yield Check(package, True, version(package))
    yield Check("libsndfile", True, soundfile_reader.libsndfile_version())
    cuda = torch.cuda.is_available()
    yield Check("device", True, torch.cuda.get_device_name() if cuda else "cpu")
    yield from _memory(settings)
    if is_on_hub(settings.model) and not (load or verified):
        yield _attempt("model", lambda: _small_files(settings))
        return
    loaded: list[AudioModel] = []
    yield _attempt("model", lambda: _load(settings, loaded, tested=not verified))
    if loaded:
        yield _attempt("profile", lambda: _profile(settings, loaded[0]))
    if verified:
        yield from _verify(loaded)


def _verify(loaded: list[AudioModel]) -> Iterator[Check]:
    """The findings about a model that was loaded, against plain transformers on its weights."""
    if not loaded:
        yield Check("verify", False, "no weights were loaded: there is nothing to verify")
        return
    for finding in verify(loaded[0]):
        measured = finding.measured if math.isfinite(finding.measured) else None
        name = f"verify: {finding.name}"
        yield Check(name, finding.ok, finding.compared, measured, finding.allowed)


def _memory(settings: Settings) -> Iterator[Check]:
    """The memory that the model will take, from its config: nothing is loaded."""
    try:
        memory = check_memory(settings)
    except AllEarsError as error:
        yield Check("memory", False, str(error))
        return
    sizes, wanted, placed = memory.sizes, memory.wanted, memory.placed
    weights = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes.weight_bytes.items())
    yield Check("memory: weights", True, f"{sizes.parameters / 1e6:,.1f} M parameters: {weights}")
    row_bytes = sizes.row_bytes(wanted.dtype, wanted.tokens)
    yield Check(
        "memory: keys and values",
        True,
        f"{sizes.kv_bytes_a_token[wanted.dtype]:,} bytes a token in {wanted.dtype}; a row of"
        f" {wanted.tokens} tokens {gigabytes(row_bytes)}, {wanted.rows} rows"
        f" {gigabytes(wanted.rows * row_bytes)}",
    )
    yield Check("memory: silence cache", True, _silences(sizes, wanted))
    yield _attempt("memory: plan", memory.fits)
    if placed.through_host:
        yield _attempt(
            "memory: while loading", lambda: loading.check_host(settings.model, sizes, placed)
        )


def _silences(sizes: ModelSizes, wanted: Wanted) -> str:
    """The silences behind one prompt's words, at most all layers deep."""
    limit, token_bytes = wanted.silence_cache_bytes, sizes.kv_bytes_a_token[wanted.dtype]
    ladder = Ladder.within(limit, token_bytes, sizes.audio_tokens, TOP_FRAMES)
    tokens = ladder.tokens(sizes.audio_tokens, TOP_FRAMES)
    return (
        f"{len(list(ladder.rungs(TOP_FRAMES)))} lengths up to 30 s, each"
        f" {2 ** (1 / ladder.steps):.2f} times the next shorter: {tokens} tokens, at most"
        f" {gigabytes(tokens * token_bytes)}; the cache holds at most {gigabytes(limit)}"
    )


def _small_files(settings: Settings) -> str:
    """Read a model's config, processor and index from the hub, and describe it."""
    folder, commit = find(settings.model, settings.revision, weights=False)
    family = family_of(loading.read_config(settings.model, folder).model_type)
    processor = loading.read_processor(settings.model, family, folder)
    rate_hz, words = processor.feature_extractor.sampling_rate, len(processor.tokenizer)
    files, size = weight_files(folder)
    weights = f"{files} weight files of {gigabytes(size)}" if files else "weights in one file"
    return (
        f"{settings.model}, revision {commit}: {family.name}, {words:,} tokens, sound at {rate_hz}"
        f" Hz; {weights} are not fetched or loaded without --load"
    )


def _load(settings: Settings, loaded: list[AudioModel], *, tested: bool) -> str:
    """Load the model into `loaded`, unless the folder has no weights, and describe it."""
    if Path(settings.model).is_dir() and only_config(Path(settings.model)):
        return f"{settings.model} holds a config and no weights: nothing was loaded"
    model = load_from(settings)
    loaded.append(model)
    if tested:
        self_test(model)
    return f"{model.name}: {model.family.name}, {model.num_layers} layers, {model.device}"


def _profile(settings: Settings, model: AudioModel) -> str:
    """Find the model's profile, without making one, and describe it."""
    if auto.is_wanted(settings.profile, model):
        folder = auto.profile_folder(settings.cache_folder, model, settings.calibration_items)
        profile = auto.load_cached(folder, model)
        if profile is None:
            reason = auto.out_of_reach(model)
            return f"auto: {reason or f'not made yet, the first start makes it in {folder}'}"
        if isinstance(profile, auto.NoProfile):
            return f"auto: none, {profile.reason}"
    else:
        profile = profiles.find(settings.profile, model)
    if profile is None:
        return "none: listening scores are unknown and nothing is steered"
    return (
        f"{profile.name}: {len(profile.heads)} heads, max_strength {profile.max_strength:g},"
        f" calibrated on {profile.calibrated_on}, silence {profiles.SILENCES[profile.silence]}"
    )


def _attempt(name: str, check: Callable[[], str]) -> Check:
    """The description by a check, or the error it raises."""
    try:
        return Check(name, True, check())
    except AllEarsError as error:
        return Check(name, False, str(error))
