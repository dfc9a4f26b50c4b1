from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from steering.attention.taps import ATTENTION
from steering.errors import ModelError
from steering.model import checkpoint as checkpoints
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import fingerprint
from steering.model.loading import load
from steering.prefill import prefill
from tests.steering.examples import prompt


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# ---- what is loaded


def test_sizes_are_read_from_the_checkpoint(untrained: AudioModel, grouped: AudioModel) -> None:
    assert (untrained.num_layers, untrained.num_heads, untrained.hidden_size) == (8, 8, 160)
    assert (grouped.num_layers, grouped.num_heads, grouped.hidden_size) == (3, 8, 160)
    assert untrained.sample_rate_hz == 16_000
    assert untrained.max_clip_seconds == 3.0
    assert untrained.hop_seconds == pytest.approx(0.04)
    assert untrained.revision is None
    assert untrained.family.name == "qwen2_audio"


def test_a_model_is_ready_to_answer(untrained: AudioModel) -> None:
    assert not untrained.network.training
    assert not any(p.requires_grad for p in untrained.network.parameters())
    assert untrained.dtype == torch.float32
    assert untrained.device == torch.device("cpu")


def test_only_the_text_decoder_has_taps(untrained: AudioModel) -> None:
    network = untrained.network
    assert untrained.decoder.config._attn_implementation == ATTENTION
    assert network.model.audio_tower.config._attn_implementation == "sdpa"


def test_answers_end_at_the_tokens_of_both_configs(untrained: AudioModel) -> None:
    end = untrained.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert untrained.eos_token_ids == {end}
    config = untrained.network.generation_config
    config.eos_token_id = [end, 17]
    try:
        assert untrained.eos_token_ids == {end, 17}
    finally:
        config.eos_token_id = end


def test_without_an_accelerator_auto_is_float32_on_the_cpu(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = load(str(checkpoint))
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_hears_about_the_same(
    checkpoint: Path, untrained: AudioModel, dtype: str
) -> None:
    half = load(str(checkpoint), device="cpu", dtype=dtype)
    assert {p.dtype for p in half.network.parameters()} == {getattr(torch, dtype)}
    example = prompt(untrained)
    exact = prefill(untrained, example, heads=[(0, 0), (7, 3)])
    rough = prefill(half, example, heads=[(0, 0), (7, 3)])
    assert rough.attention.dtype == torch.float32
    torch.testing.assert_close(rough.attention.sum(-1), exact.attention.sum(-1), atol=0.05, rtol=0)
    similar = torch.cosine_similarity(rough.final.float(), exact.final, dim=0)
    assert float(similar) > 0.99


def test_demo_is_the_folder_in_the_package(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "DEMO_WEIGHTS", checkpoint)
    model = load("demo", device="cpu")
    assert (model.name, model.folder) == ("demo", checkpoint)


def test_a_hub_id_is_downloaded_and_its_commit_remembered(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "0123abc"
    snapshot.symlink_to(checkpoint)
    downloads: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any(".bin" in p or ".py" in p for p in allow_patterns), "no code"
        downloads.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    model = load("org/name", revision="main", device="cpu")
    assert downloads == [("org/name", "main")]
    assert (model.name, model.revision) == ("org/name", "0123abc")


# ---- what is refused


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c", "demon"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="demo"):
        load(name, device="cpu")


@pytest.mark.parametrize("message", ["401 Client Error.\nLog in.", ""])
def test_a_failed_download_says_the_way_out(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def download(name: str, **_: object) -> str:
        raise OSError(message)

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    with pytest.raises(ModelError, match="org/name") as caught:
        load("org/name", device="cpu")
    assert "Log in" not in str(caught.value), "one line of the hub's words is enough"


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load(str(tmp_path), device="cpu")


def test_a_config_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        load(str(copy), device="cpu")


def test_weights_that_could_run_code_are_not_looked_at(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(str(copy), device="cpu")


@pytest.mark.parametrize("model_type", ["qwen2", "whisper"])
def test_another_family_is_refused(copy: Path, model_type: str) -> None:
    change_config(copy, model_type=model_type)
    with pytest.raises(ModelError, match=f"{model_type}.*qwen2_audio"):
        load(str(copy), device="cpu")


def test_weights_cut_off_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="can't be loaded"):
        load(str(copy), device="cpu")


def test_a_checkpoint_without_its_processor_is_refused(copy: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="no usable processor"):
        load(str(copy), device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_refused(checkpoint: Path, device: str) -> None:
    with pytest.raises(ModelError, match="allowed: auto, cpu"):
        load(str(checkpoint), device=device)


@pytest.mark.parametrize("dtype", ["float64", "int8", "half", ""])
def test_an_unknown_dtype_is_refused(checkpoint: Path, dtype: str) -> None:
    with pytest.raises(ModelError, match="allowed: auto, float32"):
        load(str(checkpoint), device="cpu", dtype=dtype)


# ---- what tells checkpoints apart


def test_the_fingerprint_is_of_the_files_and_not_of_how_they_are_loaded(
    checkpoint: Path, untrained: AudioModel
) -> None:
    half = load(str(checkpoint), device="cpu", dtype="bfloat16")
    assert half.fingerprint == untrained.fingerprint == fingerprint(checkpoint)
    assert len(untrained.fingerprint) == 32


def test_a_copy_has_the_same_fingerprint(checkpoint: Path, copy: Path) -> None:
    (copy / "README.md").write_text("notes")
    change_config(copy, transformers_version="9.9.9")  # who saved it does not matter
    assert fingerprint(copy) == fingerprint(checkpoint)


@pytest.mark.parametrize("place", ["lm_head", "layers.3.mlp.up", "audio_tower.conv1.bias"])
def test_trained_weights_change_the_fingerprint(copy: Path, place: str) -> None:
    before = fingerprint(copy)
    tensors = load_file(copy / "model.safetensors")
    (name,) = (name for name in tensors if place in name)
    tensors[name] += 0.001
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != before


def test_a_changed_config_changes_the_fingerprint(copy: Path) -> None:
    before = fingerprint(copy)
    change_config(copy, audio_token_id=9)
    assert fingerprint(copy) != before
