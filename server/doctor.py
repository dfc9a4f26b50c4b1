"""`allears doctor`: what is installed, whether the model loads and the profile fits."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from server.loading import load_from
from server.settings import Settings
from steering import profile as profiles
from steering.audio import soundfile_reader
from steering.calibration import auto
from steering.errors import AllEarsError
from steering.model import loading, memory_plan
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import find, only_config
from steering.model.families import family_of
from steering.model.memory_plan import MemoryPlan
from steering.self_test import self_test
from steering.silence_cache import TOP_FRAMES, Ladder

SILENCES = {
    "ladder": "cut from a few lengths, mostly cached",
    "exact": "of every clip's own length, mostly not cached",
}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `allears doctor --json` prints these fields."""

    name: str
    ok: bool
    found: str


def run_checks(settings: Settings) -> Iterator[Check]:
    """The checks one by one, the quick ones first."""
    yield Check("python", sys.version_info >= (3, 11), platform.python_version())
    for package in ("torch", "transformers", "fastapi", "uvicorn"):
        yield Check(package, True, version(package))
    yield Check("libsndfile", True, soundfile_reader.libsndfile_version())
    cuda = torch.cuda.is_available()
    yield Check("device", True, torch.cuda.get_device_name() if cuda else "cpu")
    yield from _memory(settings)
    loaded: list[AudioModel] = []
    yield _attempt("model", lambda: _load(settings, loaded))
    if loaded:
        yield _attempt("profile", lambda: _profile(settings, loaded[0]))


def _memory(settings: Settings) -> Iterator[Check]:
    """The memory that the model will take, from its config: nothing is loaded."""
    try:
        folder, _ = find(settings.model, settings.revision, weights=False)
        config = loading.read_config(settings.model, folder)
        plan = memory_plan.plan(family_of(config.model_type), config)
    except AllEarsError as error:
        yield Check("memory", False, str(error))
        return
    cuda = settings.device.startswith("cuda") or torch.cuda.is_available()
    default_dtype = "bfloat16" if cuda else "float32"
    dtype = default_dtype if settings.dtype == "auto" else settings.dtype
    weights = ", ".join(f"{name} {_gb(size)}" for name, size in plan.weight_bytes.items())
    yield Check("memory: weights", True, f"{plan.parameters / 1e6:,.1f} M parameters: {weights}")
    rows, tokens = settings.max_batch_rows, settings.max_context_tokens
    row_bytes = plan.row_bytes(dtype, tokens)
    yield Check(
        "memory: keys and values",
        True,
        f"{plan.kv_bytes_a_token[dtype]:,} bytes a token in {dtype}; a row of {tokens} tokens"
        f" {_gb(row_bytes)}, {rows} rows {_gb(rows * row_bytes)}",
    )
    yield Check("memory: silence cache", True, _silences(settings, plan, dtype))
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices.append(torch.device("cpu"))
    free = [f"{device} {_gb(memory_plan.free_bytes(device))}" for device in devices]
    yield Check("memory: free", True, ", ".join(free))


def _silences(settings: Settings, plan: MemoryPlan, dtype: str) -> str:
    """The silences behind one prompt's words, at most all layers deep."""
    limit, token_bytes = settings.silence_cache_bytes, plan.kv_bytes_a_token[dtype]
    ladder = Ladder.within(limit, token_bytes, plan.audio_tokens, TOP_FRAMES)
    tokens = ladder.tokens(plan.audio_tokens, TOP_FRAMES)
    return (
        f"{len(list(ladder.rungs(TOP_FRAMES)))} lengths up to 30 s, each"
        f" {2 ** (1 / ladder.steps):.2f} times the next shorter: {tokens} tokens, at most"
        f" {_gb(tokens * token_bytes)}; the cache holds at most {_gb(limit)}"
    )


def _gb(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _load(settings: Settings, loaded: list[AudioModel]) -> str:
    """Load the model into `loaded`, unless the folder has no weights, and describe it."""
    if Path(settings.model).is_dir() and only_config(Path(settings.model)):
        return f"{settings.model} holds a config and no weights: nothing was loaded"
    model = load_from(settings)
    loaded.append(model)
    self_test(model)
    return f"{model.name}: {model.family.name}, {model.num_layers} layers, {model.device}"


def _profile(settings: Settings, model: AudioModel) -> str:
    """Find the model's profile, without making one, and describe it."""
    if auto.is_wanted(settings.profile, model):
        folder = auto.profile_folder(settings.cache_folder, model, settings.calibration_items)
        profile = auto.load_cached(folder, model)
        if profile is None:
            return f"auto: not made yet, the first start makes it in {folder}"
        if isinstance(profile, auto.NoProfile):
            return f"auto: none, {profile.reason}"
    else:
        profile = profiles.find(settings.profile, model)
    if profile is None:
        return "none: listening scores are unknown and nothing is steered"
    return (
        f"{profile.name}: {len(profile.heads)} heads, max_strength {profile.max_strength:g},"
        f" calibrated on {profile.calibrated_on}, silence {SILENCES[profile.silence]}"
    )


def _attempt(name: str, check: Callable[[], str]) -> Check:
    """The description by a check, or the error it raises."""
    try:
        return Check(name, True, check())
    except AllEarsError as error:
        return Check(name, False, str(error))
