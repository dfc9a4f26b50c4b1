"""The listening profile: the result of calibrating one model, as a folder.

`profile.json` is for people and programs, `profile.safetensors` holds the tensors. A profile
belongs to one checkpoint and is refused for others.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from steering.attention.taps import Head
from steering.errors import ProfileError
from steering.heads import Verdicts
from steering.meters.regression import MeterGate
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import DEMO, first_line
from steering.model.prompt_style import STYLES
from steering.readout import Intervention
from steering.silence_cache import Ladder
from steering.strength import Gate, Reading

log = logging.getLogger("allears")

SCHEMA_VERSION = 1
Silence = Literal["ladder", "exact"]
SILENCES: dict[Silence, str] = {
    "ladder": "cut from a few lengths, mostly cached",
    "exact": "of every clip's own length, mostly not cached",
}
AUTO = "auto"
DEMO_PROFILE = Path(__file__).parent / "demo" / "profile"
RECORD_FILE, TENSORS_FILE = "profile.json", "profile.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Everything that serving needs besides the checkpoint."""

    name: str
    model: str  # the checkpoint's name when it was calibrated
    revision: str | None
    fingerprint: str
    family: str
    heads: tuple[Head, ...]  # the audio specialists, best first
    correlations: tuple[float, ...]  # r of each with what they were chosen by
    intervention: Intervention
    gate: Gate
    fixed_strength: float  # the best constant strength; 0 where steering does not help
    verdicts: Verdicts
    calibration: Mapping[str, Any]  # data hash, items, settings searched
    held_out: Mapping[str, Any]  # figures outside the fold, with intervals
    versions: Mapping[str, str]
    direction: Tensor  # (D,) float32, mean of d(x) over the calibration set
    quantiles: NDArray[np.float32]  # (101,) listening scores of the calibration set, 0 % to 100 %
    head_mean: NDArray[np.float32]  # (N,) audio mass of each specialist, mean over the set
    head_std: NDArray[np.float32]  # (N,) and its standard deviation
    refusal: str | None = None  # why this model is not steered, in plain words
    silence: Silence = "ladder"  # what its silent twins were and are: cut, or as long as the clip
    meter_gate: MeterGate | None = None  # a control for evaluation, never served

    @property
    def max_strength(self) -> float:
        """The largest strength that a request may ask for."""
        return max(self.gate.max_strength, self.fixed_strength)

    @property
    def calibrated_on(self) -> str:
        """`user data`, or `synthetic`: items made by allears itself."""
        return str(self.calibration.get("calibrated_on", "user data"))

    @property
    def criterion(self) -> str:
        """What the heads were chosen by: `correctness` of answers, or `effect` of the sound."""
        return str(self.calibration.get("head_choice", {}).get("criterion", "correctness"))

    @property
    def prompt_style(self) -> str | None:
        """Name of the wording of options that it was fitted with; None in profiles of before."""
        style = self.calibration.get("prompt_style")
        return str(style) if style in STYLES else None

    @property
    def warning(self) -> str | None:
        """What is doubtful about the heads, in plain words; None where nothing is."""
        parts = (self.calibration.get(part, {}) for part in ("head_choice", "meters"))
        return "; ".join(part["warning"] for part in parts if "warning" in part) or None

    @property
    def confirmed(self) -> str:
        """Predicted beside generated accuracy, in plain words."""
        generated = self.held_out.get("generated", {})
        return str(generated.get("words", "none generated: the figures are of one token an item"))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose differences make the direction."""
        return self.intervention.layers

    @property
    def ladder(self) -> Ladder:
        """The lengths of silence that twins are cut from."""
        return Ladder() if self.silence == "ladder" else Ladder(0)

    @property
    def depth(self) -> int:
        """Number of layers down to the deepest that a silent twin is run to."""
        return 1 + max(*self.layers, *(layer for layer, _ in self.heads))

    def percentile(self, score: float) -> float:
        """Share of the calibration set with a lower score, in [0, 1]."""
        return float(np.interp(score, self.quantiles, np.linspace(0.0, 1.0, len(self.quantiles))))


def save(profile: Profile, folder: Path) -> None:
    """Write a profile folder, whole or not at all: a crash leaves the old one or none.

    Raises ProfileError if the folder holds other files and no profile.
    """

    def write(partial: Path) -> None:
        (partial / RECORD_FILE).write_text(json.dumps(_record(profile), indent=2) + "\n")
        # by itself safetensors makes files that only their owner reads: not the user of a server
        (partial / TENSORS_FILE).write_bytes(to_bytes(_tensors(profile)))

    replace_folder(folder, write)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Put what `write` writes in place of a profile folder, whole or not at all.

    Raises ProfileError if the folder holds other files and no profile.
    """
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(partial)
        partial.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            try:
                os.replace(folder, old / "profile")
                os.replace(partial, folder)
            except OSError:
                if (old / "profile").is_dir():
                    os.replace(old / "profile", folder)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Raise ProfileError unless a folder is missing or empty, or holds a profile, and is not the
    current one.
    """
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ProfileError(
            f"{folder} is the current folder, or holds it, and a profile's folder is put in place"
            " whole: name a folder within, such as ./profile"
        )
    if folder.is_dir() and ((folder / RECORD_FILE).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise ProfileError(
            f"{folder} is not a profile folder, and writing a profile there would delete what it"
            " holds: name a new folder, or that of a profile"
        )


def load(folder: Path | str) -> Profile:
    """Load a listening profile.

    Args:
        folder: folder with `profile.json` and `profile.safetensors`, as `calibrate` writes it.

    Returns:
        The profile; whether it fits a model is checked where the two meet.

    Raises:
        ProfileError: the folder is missing, damaged or of another schema.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD_FILE).read_text())
        tensors = load_file(folder / TENSORS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ProfileError(
            f"no usable profile in {folder}: {error}. Make one with `allears calibrate`"
        ) from error
    schema = record.get("schema_version") if isinstance(record, dict) else None
    if schema != SCHEMA_VERSION:
        raise ProfileError(
            f"{folder}: profile schema {schema!r}, this version of allears reads {SCHEMA_VERSION}:"
            " calibrate again"
        )
    try:
        return _profile(record, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{folder}: damaged profile ({error!r}): calibrate again") from error


def find(wanted: str | None, model: AudioModel) -> Profile | None:
    """The profile to serve a model with: None for `none`; ProfileError if none fits.

    `wanted` is a folder, a hub id, `none`, or None for the one shipped with the model. `auto` is
    made by a server at its first start, with `steering.calibration.auto`.
    """
    if wanted == "none":
        return None
    if wanted == AUTO:
        raise ProfileError(
            "a profile `auto` is made at the first start of `allears serve`; here, name the folder"
            " of a profile"
        )
    if wanted is None:
        if model.name != DEMO:
            raise ProfileError(
                f"no profile is shipped for {model.name}: make one with `allears calibrate --model"
                f" {model.name} --data … --out PROFILE` and serve with --profile PROFILE, or serve"
                " without listening scores with --profile none"
            )
        folder = DEMO_PROFILE
    elif Path(wanted).is_dir() or wanted.count("/") != 1:
        folder = Path(wanted)
    else:
        folder = download(wanted)
    profile = load(folder)
    check_fits(profile, model)
    return profile


def download(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a profile of the hub, in the hub's cache; ProfileError if there is none."""
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=[RECORD_FILE, TENSORS_FILE])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ProfileError(
            f"profile {hub_id!r} is not a folder here and can't be downloaded:"
            f" {first_line(error)}. Check the id and the network, log in if it is private, or give"
            " a folder"
        ) from error


def check_fits(profile: Profile, model: AudioModel) -> None:
    """Raise ProfileError, with both fingerprints, if the profile is another checkpoint's."""
    if profile.fingerprint != model.fingerprint:
        raise ProfileError(
            f"profile {profile.name!r} was made for {profile.model} with fingerprint"
            f" {profile.fingerprint}; {model.name} has {model.fingerprint}. Calibrate this model"
        )


def asked_as_fitted(model: AudioModel, profile: Profile) -> AudioModel:
    """The model, asked in the style that its profile was fitted with, where the profile says so."""
    if profile.prompt_style is None or profile.prompt_style == model.prompt_style.name:
        return model
    log.info("prompt style %s, which the profile was fitted with", profile.prompt_style)
    return replace(model, prompt_style=STYLES[profile.prompt_style])


def _record(profile: Profile) -> dict[str, Any]:
    pairs = zip(profile.heads, profile.correlations, strict=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": profile.name,
        "model": profile.model,
        "revision": profile.revision,
        "fingerprint": profile.fingerprint,
        "family": profile.family,
        "heads": [{"layer": lay, "head": head, "r": round(r, 4)} for (lay, head), r in pairs],
        "layers": list(profile.layers),
        "intervention": profile.intervention.record(),
        "gate": asdict(profile.gate),
        "fixed_strength": profile.fixed_strength,
        "refusal": profile.refusal,
        "max_strength": profile.max_strength,
        "silence": profile.silence,
        "meter_gate": profile.meter_gate.record() if profile.meter_gate else None,
        "verdicts": asdict(profile.verdicts),
        "calibrated_on": profile.calibrated_on,
        "calibration": dict(profile.calibration),
        "held_out": dict(profile.held_out),
        "versions": dict(profile.versions),
    }


def _gate(record: Mapping[str, Any]) -> Gate:
    gate = Gate(**record)
    if gate.reads not in get_args(Reading):
        raise ValueError(f"gate reads {gate.reads!r}, not one of {', '.join(get_args(Reading))}")
    return gate


def _silence(value: str) -> Silence:
    if value not in get_args(Silence):
        raise ValueError(f"silence is {value!r}, not one of {', '.join(get_args(Silence))}")
    return cast(Silence, value)


def _tensors(profile: Profile) -> dict[str, Tensor]:
    return {
        "direction": profile.direction.float().cpu().contiguous(),
        "quantiles": torch.from_numpy(profile.quantiles),
        "head_mean": torch.from_numpy(profile.head_mean),
        "head_std": torch.from_numpy(profile.head_std),
    }


def _profile(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Profile:
    intervention = dict(record["intervention"])
    heads, width = (len(record["heads"]),), (tensors["direction"].numel(),)
    shapes = {"direction": width, "quantiles": (101,), "head_mean": heads, "head_std": heads}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {shape}")
    return Profile(
        name=record["name"],
        model=record["model"],
        revision=record["revision"],
        fingerprint=record["fingerprint"],
        family=record["family"],
        heads=tuple((int(h["layer"]), int(h["head"])) for h in record["heads"]),
        correlations=tuple(float(h["r"]) for h in record["heads"]),
        intervention=Intervention(**{**intervention, "layers": tuple(intervention["layers"])}),
        gate=_gate(record["gate"]),
        fixed_strength=float(record["fixed_strength"]),
        verdicts=Verdicts(**record["verdicts"]),
        calibration=record["calibration"],
        held_out=record["held_out"],
        versions=record["versions"],
        direction=tensors["direction"],
        quantiles=tensors["quantiles"].numpy(),
        head_mean=tensors["head_mean"].numpy(),
        head_std=tensors["head_std"].numpy(),
        refusal=record.get("refusal"),
        silence=_silence(record.get("silence", "exact")),  # of older profiles it was
        meter_gate=MeterGate.of(record["meter_gate"]) if record.get("meter_gate") else None,
    )
