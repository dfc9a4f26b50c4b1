"""A checkpoint's files: location, completeness, fingerprint.

Only safetensors are read, and no code that came with a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from steering.errors import ModelError

DEMO = "demo"
DEMO_WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
_WANTED_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
_SAMPLE_BYTES = 4096


def find(name: str, revision: str | None, *, weights: bool = True) -> tuple[Path, str | None]:
    """The folder of a model and, for one from the hub, its commit.

    An existing folder is never downloaded; without `weights`, only the small files are.
    """
    if name == DEMO:
        return DEMO_WEIGHTS, None
    if Path(name).is_dir():
        return Path(name), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"model {name!r} is neither 'demo', nor a folder, nor a hub id 'org/name'")
    wanted = _WANTED_FILES if weights else _WANTED_FILES[1:]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {name!r} (revision {revision or 'newest'}) can't be downloaded:"
            f" {first_line(error)}. Check the id and the network, log in if it is gated,"
            " or give the path of a local folder"
        ) from error
    return folder, folder.name


def public_name(name: str) -> str:
    """`demo` and hub ids as they are, the last part of a path: what others may see of a name."""
    return Path(name).resolve().name if Path(name).is_dir() or name.count("/") > 1 else name


def check_whole(name: str, folder: Path) -> None:
    """Raise ModelError unless every weight file of the index is present, whole and safe."""
    index = folder / _INDEX
    if index.is_file():
        wanted = sorted(set(_weight_map(name, _read_json(name, index)).values()))
        if odd := [file for file in wanted if "/" in file or not file.endswith(".safetensors")]:
            raise ModelError(
                f"{name}: {_INDEX} names {odd[0]!r}; only .safetensors files in its own folder are"
                " read: convert the checkpoint"
            )
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise ModelError(
                f"{name}: {len(missing)} of {len(wanted)} weight files are missing in {folder},"
                f" the first is {missing[0]}: the download was cut off; download it again"
            )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{name}: no .safetensors weights in {folder}; download the checkpoint again, or"
            " convert it: other formats can run code when they are loaded and are not read"
        )
    for file in files:
        _check_file(name, file)


@contextmanager
def tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors of a checkpoint by name, each read into memory of its own when it is sliced."""
    names = {_WEIGHTS}
    if not (folder / _WEIGHTS).is_file():
        names = set(_weight_map(folder.name, _read_json(folder.name, folder / _INDEX)).values())
    with ExitStack() as files:
        found: dict[str, Any] = {}
        for name in sorted(names):
            file = safe_open(folder / name, framework="pt", backend="pread")
            files.enter_context(file)
            found |= {tensor: file.get_slice(tensor) for tensor in file.keys()}  # noqa: SIM118
        yield found


def check_adapter(name: str, folder: Path) -> None:
    """Raise ModelError unless a folder holds a LoRA in safetensors that asks for no code.

    peft falls back to a pickle where its safetensors file is missing, and imports the module that
    a config for Megatron names.
    """
    for file in (ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise ModelError(
                f"adapter {name!r} has no {file} in {folder}; save it with peft, as safetensors"
            )
    check_whole(name, folder)
    config = _read_json(f"adapter {name!r}", folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA" or config.get("megatron_config") is not None:
        what = "a megatron_config" if kind == "LORA" else f"peft_type {kind}"
        raise ModelError(f"adapter {name!r} has {what}; only a plain LoRA can be merged")


def check_bare(name: str, folder: Path) -> None:
    """Raise ModelError if a checkpoint has an adapter in its folder.

    Transformers would put it into the model unasked, from a pickle if there is nothing else.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{name}: {folder} holds an {ADAPTER_CONFIG}; serve the model it was made for, and give"
            " this folder with --adapter, or take the file away"
        )


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a model on the hub, not of a folder or of the embedded one."""
    return name != DEMO and not Path(name).is_dir()


def weight_files(folder: Path) -> tuple[int, int]:
    """Number of weight files and their bytes, by the index; zeros without one."""
    index = folder / _INDEX
    if not index.is_file():
        return 0, 0
    record = _read_json(folder.name, index)
    metadata = record.get("metadata")
    size = metadata.get("total_size", 0) if isinstance(metadata, dict) else 0
    files = set(_weight_map(folder.name, record).values())
    return len(files), size if isinstance(size, int) else 0


def _read_json(name: str, file: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint; ModelError if there is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(name, file.name, str(error)) from error
    if not isinstance(record, dict):
        raise _damaged(name, file.name, f"it holds {type(record).__name__}, not an object")
    return record


def _weight_map(name: str, record: Mapping[str, Any]) -> dict[str, str]:
    """The file of each tensor, by an index; ModelError if it does not say."""
    files = record.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise _damaged(name, _INDEX, "it has no weight_map of tensors and files")
    return files


def _damaged(name: str, file: str, what: str) -> ModelError:
    return ModelError(f"{name}: {file} is damaged or cut off ({what}); download it again")


def only_config(folder: Path) -> bool:
    """Whether a folder holds a config and no weights at all."""
    return (folder / "config.json").is_file() and not any(folder.glob("*.safetensors*"))


def _check_file(name: str, file: Path) -> None:
    """Raise ModelError unless a weight file is as long as its own header says."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name}: {file.name} can't be loaded: it is not a safetensors file, or it is cut off"
            f" or damaged ({file.stat().st_size:,} bytes, {first_line(error)}); download it again"
        ) from error


def fingerprint(folder: Path, config_name: str = "config.json", base: str = "") -> str:
    """The identity of a checkpoint, in 32 hex digits, without reading all its weights.

    sha256 over the config and, for each weight file, its header and a sample of every tensor; for
    an adapter, over the fingerprint of its `base` as well.
    """
    digest = hashlib.sha256(base.encode())
    config = json.loads((folder / config_name).read_text())
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


def first_line(error: Exception) -> str:
    """The first line of another library's error, or the error's name if it has no text."""
    return str(error).partition("\n")[0] or type(error).__name__
