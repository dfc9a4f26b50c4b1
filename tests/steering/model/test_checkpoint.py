"""Files of a checkpoint or an adapter that could run code: never opened, whatever lies beside."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from steering.calibration.workers import CalibrationWorker, arguments_of
from steering.errors import ModelError
from steering.model.checkpoint import weight_files
from steering.model.loading import load
from tests.steering import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft


class Trap:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """Bytes that leave a mark when unpickled; after the test there is none, nor was any read."""
    mark = tmp_path / "it-ran"
    armed = pickle.dumps({"weight": Trap(mark)})
    pickle.loads(armed)
    assert mark.exists(), "the trap does not work"
    mark.rmdir()
    opened: list[object] = []

    def read(*given: object, **_: object) -> None:
        opened.append(given)
        raise RuntimeError("torch.load was called")

    monkeypatch.setattr(torch, "load", read)
    yield armed
    assert not mark.exists()
    assert not opened


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """A LoRA adapter to damage."""
    config = LoraConfig(r=2, target_modules=["q_proj"])
    adapted: Any = get_peft_model(load(str(checkpoint), device="cpu").network, config)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_checkpoint_of_pickles_is_refused(copy: Path, trap: bytes, name: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(trap)
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        load(str(copy), device="cpu")


def test_an_index_of_pickles_is_refused(copy: Path, trap: bytes) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "part-1.bin").write_bytes(trap)
    index = json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "part-1.bin"}})
    for name in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (copy / name).write_text(index)
        with pytest.raises(ModelError, match=r"no \.safetensors|names 'part-1\.bin'"):
            load(str(copy), device="cpu")
    (copy / "model.safetensors.index.json").unlink()
    (copy / "other.safetensors").write_bytes((copy / "part-1.bin").read_bytes())
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(str(copy), device="cpu")


def test_a_pickle_under_a_safe_name_is_no_weights(copy: Path, trap: bytes) -> None:
    (copy / "model.safetensors").write_bytes(trap)
    with pytest.raises(ModelError, match="not a safetensors file"):
        load(str(copy), device="cpu")


def test_an_index_may_not_mix_pickles_in(copy: Path, trap: bytes) -> None:
    (copy / "part-1.bin").write_bytes(trap)
    weights = {"lm_head.weight": "part-1.bin", "x": "model-1.safetensors"}
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weights})
    )
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    with pytest.raises(ModelError, match=r"part-1\.bin"):
        load(str(copy), device="cpu")


def test_pickles_beside_safe_weights_are_left_alone(copy: Path, trap: bytes) -> None:
    names = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "scaler.pt")
    for name in names:
        (copy / name).write_bytes(trap)
    assert load(str(copy), device="cpu").num_layers == 8


def test_the_voices_of_an_omni_are_not_read(tmp_path: Path, trap: bytes) -> None:
    """Transformers reads spk_dict.pt for the talker, which is not loaded here."""
    folder = tiny.save(tiny.WHOLE["qwen2_5_omni"], tmp_path / "omni")
    (folder / "spk_dict.pt").write_bytes(trap)
    load(str(folder), device="cpu")


def test_an_adapter_inside_a_checkpoint_is_refused(copy: Path, trap: bytes) -> None:
    """Transformers would merge it unasked, pickles included."""
    LoraConfig(r=2, target_modules=["q_proj"]).save_pretrained(str(copy))
    (copy / "adapter_model.bin").write_bytes(trap)
    with pytest.raises(ModelError, match=r"adapter_config\.json.*--adapter"):
        load(str(copy), device="cpu")


@pytest.mark.parametrize("decoy", [None, "other.safetensors"])
def test_an_adapter_of_pickles_is_refused(
    checkpoint: Path, adapter: Path, trap: bytes, decoy: str | None
) -> None:
    weights = adapter / "adapter_model.safetensors"
    if decoy:
        weights.rename(adapter / decoy)
    else:
        weights.unlink()
    (adapter / "adapter_model.bin").write_bytes(trap)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        load(str(checkpoint), device="cpu", adapter=str(adapter))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"peft_type": None}, "None"),
        ({"megatron_config": {}, "megatron_core": "evil"}, "megatron_config"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused(
    checkpoint: Path, adapter: Path, changes: dict[str, Any], said: str
) -> None:
    load(str(checkpoint), device="cpu", adapter=str(adapter))
    change(adapter / "adapter_config.json", **changes)
    with pytest.raises(ModelError, match=said):
        load(str(checkpoint), device="cpu", adapter=str(adapter))


def test_an_adapters_code_never_runs(
    checkpoint: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "it-ran"
    (adapter / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(str(adapter))
    mapping = {"base_model_class": "Evil", "parent_library": "evil"}
    classes = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    change(adapter / "adapter_config.json", auto_mapping=mapping, auto_map=classes)
    load(str(checkpoint), device="cpu", adapter=str(adapter))
    assert not mark.exists()


# ---- damaged


@pytest.mark.parametrize("text", ['{"metadata": {', "[]", "{}", '{"weight_map": {"x": 1}}'])
def test_a_damaged_index_is_said(copy: Path, text: str) -> None:
    (copy / "model.safetensors.index.json").write_text(text)
    for look in (lambda: load(str(copy), device="cpu"), lambda: weight_files(copy)):
        with pytest.raises(ModelError, match=r"index\.json is damaged or cut off.*again"):
            look()


def test_a_damaged_adapter_config_is_said(checkpoint: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text('{"peft_type": ')
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged or cut off"):
        load(str(checkpoint), device="cpu", adapter=str(adapter))


def test_a_worker_of_a_calibration_loads_the_adapter_too(checkpoint: Path, adapter: Path) -> None:
    model = load(str(checkpoint), device="cpu", adapter=str(adapter))
    worker = CalibrationWorker(*arguments_of(model))
    assert (
        worker.fingerprint() == model.fingerprint != load(str(checkpoint), device="cpu").fingerprint
    )
