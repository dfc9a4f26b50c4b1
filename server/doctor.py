"""`allears doctor`: what is installed, whether the model loads and the profile fits."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from server.settings import Settings
from steering import profile
from steering.audio import soundfile_reader
from steering.calibration import auto
from steering.errors import AllEarsError
from steering.model import loading, memory_plan
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import find, only_config
from steering.model.families import family_of
from steering.self_test import self_test


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding."""

    name: str
    ok: bool
    found: str


def examine(settings: Settings) -> Iterator[Finding]:
    """The findings one by one, the quick ones first."""
    yield Finding("python", sys.version_info >= (3, 11), platform.python_version())
    for package in ("torch", "transformers", "fastapi", "uvicorn"):
        yield Finding(package, True, version(package))
    yield Finding("libsndfile", True, soundfile_reader.libsndfile_version())
    cuda = torch.cuda.is_available()
    yield Finding("device", True, torch.cuda.get_device_name() if cuda else "cpu")
    yield from _memory(settings)
    loaded: list[AudioModel] = []

    def load() -> str:
        if Path(settings.model).is_dir() and only_config(Path(settings.model)):
            return f"{settings.model} holds a config and no weights: nothing was loaded"
        loaded.append(
            loading.load(
                settings.model,
                revision=settings.revision,
                device=settings.device,
                dtype=settings.dtype,
                adapter=settings.adapter,
                quantize=settings.quantize,
                style=settings.prompt_style,
            )
        )
        found = loaded[0]
        self_test(found)
        return f"{found.name}: {found.family.name}, {found.layers} layers, {found.device}"

    yield _attempt("model", load)
    if loaded:
        yield _attempt("profile", lambda: _fits(settings, loaded[0]))


def _memory(settings: Settings) -> Iterator[Finding]:
    """What the model will take, from its config: nothing is loaded."""
    try:
        folder, _ = find(settings.model, settings.revision, weights=False)
        config = loading.read_config(settings.model, folder)
        found = memory_plan.plan(family_of(config.model_type), config)
    except AllEarsError as error:
        yield Finding("memory", False, str(error))
        return
    cuda = settings.device.startswith("cuda") or torch.cuda.is_available()
    usual = "bfloat16" if cuda else "float32"
    kind = usual if settings.dtype == "auto" else settings.dtype
    weights = ", ".join(f"{name} {_gb(size)}" for name, size in found.weight_bytes.items())
    yield Finding("memory: weights", True, f"{found.parameters / 1e6:,.1f} M parameters: {weights}")
    rows, tokens = settings.max_batch_rows, settings.max_context_tokens
    row = found.row_bytes(kind, tokens)
    yield Finding(
        "memory: keys and values",
        True,
        f"{found.kv_bytes_a_token[kind]:,} bytes a token in {kind}; a row of {tokens} tokens"
        f" {_gb(row)}, {rows} rows {_gb(rows * row)}",
    )
    yield Finding(
        "memory: silence cache",
        True,
        f"30 s of silence are {found.silence_tokens} tokens, at most"
        f" {_gb(found.silence_bytes(kind))} an entry; the cache holds at most"
        f" {_gb(settings.silence_cache_bytes)}",
    )
    places = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    free = [f"{p} {_gb(memory_plan.free_bytes(p))}" for p in (*places, torch.device("cpu"))]
    yield Finding("memory: free", True, ", ".join(free))


def _gb(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _fits(settings: Settings, loaded: AudioModel) -> str:
    if auto.is_wanted(settings.profile, loaded):
        folder = auto.profile_folder(settings.cache_folder, loaded, settings.calibration_items)
        found = auto.load_cached(folder, loaded)
        if found is None:
            return f"auto: not made yet, the first start makes it in {folder}"
        if isinstance(found, auto.NoProfile):
            return f"auto: none, {found.reason}"
    else:
        found = profile.find(settings.profile, loaded)
    if found is None:
        return "none: listening scores are unknown and nothing is steered"
    return (
        f"{found.name}: {len(found.heads)} heads, max_strength {found.max_strength:g}, calibrated"
        f" on {found.calibrated_on}"
    )


def _attempt(name: str, act: Callable[[], str]) -> Finding:
    """What `act` says, or the error it raises, as a finding."""
    try:
        return Finding(name, True, act())
    except AllEarsError as error:
        return Finding(name, False, str(error))
