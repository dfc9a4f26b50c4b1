"""Names and sizes of the model and profile that are served, as users, metrics and logs see them."""

from __future__ import annotations

from typing import Any

from server.engine.runtime import Runtime
from steering.kv_slots import KVSlots
from steering.model.checkpoint import public_name


def model_name(runtime: Runtime) -> str:
    """The model's public name."""
    return public_name(runtime.model.name)


def model_and_profile_names(runtime: Runtime) -> tuple[str, str]:
    """Public names of model and profile; only records of the same ones compare."""
    profile = runtime.profile
    return model_name(runtime), public_name(profile.name) if profile else "none"


def model_info(runtime: Runtime) -> dict[str, str]:
    """The labels of allears_model_info."""
    model, (name, profile) = runtime.model, model_and_profile_names(runtime)
    return {
        "model": name,
        "revision": model.revision or "",
        "fingerprint": model.fingerprint,
        "profile": profile,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def describe_profile(runtime: Runtime) -> dict[str, Any] | None:
    """Name, model, heads and layers of the profile; None if there is none."""
    profile = runtime.profile
    if profile is None:
        return None
    pairs = zip(profile.heads, profile.correlations, strict=True)
    return {
        "name": public_name(profile.name),
        "model": public_name(profile.model),
        "heads": [{"layer": layer, "head": head, "r": r} for (layer, head), r in pairs],
        "layers": list(profile.layers),
        "max_strength": profile.max_strength,
        "calibrated_on": profile.calibrated_on,
    }


def describe_kv_memory(runtime: Runtime) -> str:
    """Memory of the KV slots, all of which is allocated at start."""
    slots = runtime.slots
    token_bytes = KVSlots.bytes_of(runtime.model, 1, 1)
    total = slots.store.nbytes / 1e6
    return (
        f"keys and values: {slots.rows} rows x {slots.tokens} tokens x {token_bytes} bytes,"
        f" {total:.0f} MB"
    )
