"""A checkpoint becomes an AudioModel: network, processor, and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor

from steering.errors import ModelError
from steering.family import Family, family_of
from steering.style import PLAIN, Style, style_of
from steering.taps import ATTENTION

DEMO = "demo"
DEMO_WEIGHTS = Path(__file__).parent / "demo" / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WANTED_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class AudioModel:
    """A loaded model. It is shared by all requests and never changed by one."""

    name: str  # "demo", a hub id or a path, as it was asked for
    folder: Path
    revision: str | None  # the hub's commit; None for a local folder
    fingerprint: str  # sha256 of the checkpoint's config and samples of its weights
    family: Family
    network: Any  # a transformers model in eval mode
    processor: Any
    device: torch.device
    dtype: torch.dtype
    style: Style = PLAIN

    @property
    def decoder(self) -> Any:
        """The text decoder: embed_tokens, layers, rotary_emb, norm."""
        return self.family.decoder(self.network)

    @property
    def text_config(self) -> Any:
        """The decoder's config."""
        return self.family.text_config(self.network.config)

    @property
    def layers(self) -> int:
        """L, the decoder's layers."""
        return int(self.text_config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """H, the attention heads of a layer."""
        return int(self.text_config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Heads that keys and values have: fewer than H in grouped-query models."""
        return int(self.text_config.num_key_value_heads)

    @property
    def head_width(self) -> int:
        """Width of one head's keys."""
        own = getattr(self.text_config, "head_dim", None)
        return int(own or self.width // self.heads)

    @property
    def width(self) -> int:
        """D, the width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def rate_hz(self) -> int:
        """Sample rate of the waveforms that the processor takes."""
        return int(self.processor.feature_extractor.sampling_rate)

    @property
    def max_clip_seconds(self) -> float:
        """Longest clip the model hears; what is longer is cut there, and said to be."""
        return float(self.processor.feature_extractor.chunk_length)

    @property
    def hop_seconds(self) -> float:
        """Seconds of sound that one audio token stands for."""
        extractor = self.processor.feature_extractor
        frames = int(extractor.nb_max_frames)
        return self.max_clip_seconds / self.family.audio_tokens(frames)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.network.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return frozenset(int(i) for i in [*ids, self.processor.tokenizer.eos_token_id])


def load(
    name: str = DEMO,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    style: str = "auto",
) -> AudioModel:
    """The model called `demo`, or at a path, or with a hub id, ready to answer.

    `device` auto is CUDA where there is one; `dtype` auto is bfloat16 there and float32 on a CPU.
    Raises ModelError for an unknown name, an unknown family, missing files, or a wrong device.
    """
    folder, commit = _find(name, revision)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: no usable config.json in {folder} ({error})") from error
    family = family_of(config.model_type)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name}: no .safetensors weights in {folder}; download the checkpoint again, or"
            " convert it: other formats can run code when they are loaded and are not read"
        )
    place = _device(device)
    kind = _dtype(dtype, place)
    chosen = style_of(style, f"{name} {folder.name}")
    try:
        network = getattr(transformers, family.model_class).from_pretrained(
            folder, dtype=kind, attn_implementation="sdpa", use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name}: the checkpoint in {folder} can't be loaded: {error}") from error
    network = network.eval().requires_grad_(False).to(place)
    family.decoder(network).config._attn_implementation = ATTENTION
    return AudioModel(
        name, folder, commit, fingerprint(folder), family, network, processor, place, kind, chosen
    )


def fingerprint(folder: Path) -> str:
    """What tells one checkpoint from another, in 32 hex digits, without reading all its weights.

    sha256 over the config and, for each weight file, its header and a sample of every tensor.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text())
    config.pop("transformers_version", None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        for part in _samples(file):
            digest.update(part)
    return digest.hexdigest()[:32]


def _samples(file: Path) -> Iterator[bytes]:
    """The header of a safetensors file, then bytes from the middle of each tensor."""
    with file.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        yield header
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                first, end = tensor["data_offsets"]
                middle = (first + end) // 2
                stream.seek(8 + len(header) + middle)
                yield stream.read(min(_SAMPLE_BYTES, end - middle))


def _find(name: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a model and, for one from the hub, its commit."""
    if name == DEMO:
        return DEMO_WEIGHTS, None
    if Path(name).is_dir():
        return Path(name), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"model {name!r} is neither 'demo', nor a folder, nor a hub id 'org/name'")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {name!r} (revision {revision or 'newest'}) can't be downloaded:"
            f" {first_line(error)}. Check the id and the network, log in if it is gated,"
            " or give the path of a local folder"
        ) from error
    return folder, folder.name


def first_line(error: Exception) -> str:
    """The first line of what another library says, or the error's name where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {wanted!r} can't be used ({first_line(error)}); allowed: auto, cpu,"
            " cuda, cuda:N"
        ) from error
    return device


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if wanted not in DTYPES:
        raise ModelError(f"dtype {wanted!r} is unknown; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[wanted]
