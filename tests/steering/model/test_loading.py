"""What is loaded of a checkpoint, what never is, and what a checkpoint must not do."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from steering.errors import ModelError
from steering.model import checkpoint as checkpoints
from steering.model import loading
from steering.model.audio_model import AudioModel
from steering.model.loading import load
from steering.prefill import prefill
from steering.verification.self_test import self_test
from tests.steering import tiny
from tests.steering.examples import full_pass, prompt

OMNI = ["qwen2_5_omni", "qwen3_omni_moe"]
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ---- weights of their own


@pytest.mark.parametrize("name", tiny.WHOLE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_read_are_those_that_are_mapped(
    name: str, dtype: str, tmp_path: Path
) -> None:
    folder = tiny.save(tiny.WHOLE[name], tmp_path)
    mapped, own = (
        load(str(folder), device="cpu", dtype=dtype, mmap=mmap) for mmap in (True, False)
    )
    weights, buffers = (dict(own.network.named_parameters()), dict(own.network.named_buffers()))
    for key, tensor in mapped.network.named_parameters():
        assert torch.equal(tensor, weights.pop(key)), key
    for key, tensor in mapped.network.named_buffers():
        assert torch.equal(tensor, buffers.pop(key)), key
    assert not weights and not buffers
    assert own.eos_token_ids == mapped.eos_token_ids
    assert own.generation_defaults == mapped.generation_defaults


@pytest.mark.parametrize("mmap", [True, False])
def test_a_checkpoint_in_parts_is_read_by_its_index(
    checkpoint: Path, tmp_path: Path, mmap: bool
) -> None:
    """What else lies in the folder, as some do of the hub, is not looked at."""
    whole = load(str(checkpoint), device="cpu", mmap=mmap)
    folder = tmp_path / "parts"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    whole.network.save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    (folder / "generation_config.json").write_text('{"temperature": 0.4, "do_sample": true}')
    stray = {"lm_head.weight": torch.zeros(1), "unheard.of": torch.zeros(1)}
    save_file(stray, folder / "consolidated.safetensors", metadata={"format": "pt"})
    parts = load(str(folder), device="cpu", mmap=mmap)
    for key, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, parts.network.state_dict()[key]), key
    assert parts.generation_defaults["temperature"] == 0.4


# ---- only the thinker of an Omni


@pytest.mark.parametrize("name", OMNI)
def test_talker_vocoder_and_eyes_are_never_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save(tiny.WHOLE[name], tmp_path / name)
    file = folder / "model.safetensors"
    before = load(str(folder), device="cpu")
    whole = load_file(file)
    unread = {key for key in whole if not key.startswith("thinker.") or ".visual." in key}
    others = {key.split(".")[0] for key in unread}
    assert others == {"thinker", "talker", "token2wav" if name == OMNI[0] else "code2wav"}
    for key in unread:  # whatever stands there: nobody looks
        whole[key] = torch.full((1,), torch.nan)
    save_file(whole, file, metadata={"format": "pt"})
    after = load(str(folder), device="cpu")
    names = dict(after.network.named_parameters())
    assert all(torch.equal(weight, names[key]) for key, weight in before.network.named_parameters())
    assert not any("visual" in key or "talker" in key for key in names)
    read = sum(t.nbytes for key, t in whole.items() if key not in unread)
    assert sum(p.nbytes for p in after.network.parameters()) == read


def test_the_talkers_token_ids_are_no_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real Omni's talker has a small vocabulary, and ids beyond it."""
    folder = tiny.save(tiny.WHOLE[OMNI[0]], tmp_path / "omni")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    ids = {"audio_start_token_id": 1, "audio_end_token_id": 2, "vision_start_token_id": 3}
    config["thinker_config"].update(ids, vision_end_token_id=4)
    config["talker_config"].update(dict.fromkeys(ids, 151_647))
    file.write_text(json.dumps(config))
    warn_again = cast(Any, transformers.configuration_utils.logger.warning_once).cache_clear
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    warn_again()
    caplog.clear()
    model = load(str(folder), device="cpu")
    assert "unexpected behavior" not in caplog.text
    warn_again()
    whole = AutoConfig.from_pretrained(folder)
    assert "unexpected behavior" in caplog.text, "transformers itself warns"
    assert loading.read_config("x", folder).to_dict() == whole.thinker_config.to_dict()
    assert model.family.name == OMNI[0]


@pytest.mark.parametrize("name", OMNI)
def test_a_thinker_saved_by_itself_is_loaded_as_well(name: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.WHOLE[name], tmp_path / name)
    whole = load(str(folder), device="cpu")
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("model*", "config.json"))
    whole.network.save_pretrained(alone)
    thinker = load(str(alone), device="cpu")
    example = prompt(whole, 1.2)
    assert thinker.family is whole.family
    by_thinker, by_whole = prefill(thinker, example).final, prefill(whole, example).final
    torch.testing.assert_close(
        by_thinker, by_whole, atol=1e-6, rtol=0
    )  # weights lie elsewhere in memory


# ---- checkpoints that are not whole


def test_a_half_downloaded_folder_names_the_missing_file(
    untrained: AudioModel, tmp_path: Path
) -> None:
    untrained.network.save_pretrained(tmp_path, max_shard_size="3MB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"1 of {len(shards)} .*{shards[1].name}.*download it"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("damage", ["tail", "head", "length"])
def test_a_damaged_file_is_named_before_anything_is_loaded(copy: Path, damage: str) -> None:
    file = copy / "model.safetensors"
    data = file.read_bytes()
    start = {"tail": data[:-5000], "head": b"x" * 64 + data[64:], "length": b"\xff" * 8 + data[8:]}
    file.write_bytes(start[damage])
    with pytest.raises(ModelError, match=r"model\.safetensors can't be loaded.*download it again"):
        load(str(copy), device="cpu")


def test_weights_that_are_not_there_are_not_made_up(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    gone = next(key for key in tensors if "layers.2.mlp.up" in key)
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not in the checkpoint.*mlp\.up"):
        load(str(copy), device="cpu")


@pytest.mark.parametrize("name", tiny.WHOLE)
def test_a_readout_that_only_the_text_config_ties_is_tied(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.save(tiny.WHOLE[name], tmp_path / name)
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(file)
    del tensors[next(key for key in tensors if key.endswith("lm_head.weight"))]
    save_file(tensors, file, metadata={"format": "pt"})
    text = config.get("thinker_config", config)["text_config"]
    for tied in (False, True):
        text["tie_word_embeddings"] = tied
        (folder / "config.json").write_text(json.dumps(config))
        if not tied:
            with pytest.raises(ModelError, match=r"lm_head\.weight"):
                load(str(folder), device="cpu")
    caplog.clear()
    model = load(str(folder), device="cpu")
    embeddings = model.decoder.embed_tokens.weight
    assert model.family.readout(model.network).weight is embeddings
    kept = {k: t for k, t in tensors.items() if "embed_tokens" in k and "talker" not in k}
    assert torch.equal(embeddings, *kept.values())
    assert "MISSING" not in caplog.text, "nothing is said to be made up"
    self_test(model)


def test_layers_that_see_less_than_everything_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["layer_types"][3] = "sliding_attention"
    config["text_config"].update(use_sliding_window=True, sliding_window=16)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="sliding_attention"):
        load(str(copy), device="cpu")


# ---- no code of a checkpoint, no network


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_that_came_with_a_checkpoint_never_runs(copy: Path, file: str, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    (copy / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: ...\n")
    classes = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoFeatureExtractor")
    change_json(
        copy / file,
        auto_map={name: "evil.Evil" for name in classes}
        | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    )
    load(str(copy), device="cpu")
    assert not mark.exists()
    change_json(copy / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    with pytest.raises(ModelError):
        load(str(copy), device="cpu")
    assert not mark.exists()


@pytest.mark.slow
def test_a_folder_is_loaded_without_a_network(checkpoint: Path) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "from steering.model.loading import load\n"
        "print(load(sys.argv[1], device='cpu').num_layers)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "8\n", run.stderr


def test_what_was_loaded_is_in_the_log(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "allears"):
        load(str(checkpoint), device="cpu")
    assert "revision none (a local folder)" in caplog.text
    assert "on cpu, float32 because this CPU has no instructions for bfloat16" in caplog.text
    assert "prompt style plain" in caplog.text


def test_the_revision_of_the_hub_is_in_the_log(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    snapshot = tmp_path / "0123abc"
    snapshot.symlink_to(checkpoint)
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda *_, **__: str(snapshot))
    with caplog.at_level(logging.INFO, "allears"):
        load("org/name", revision="main", device="cpu")
    assert "loaded org/name, revision 0123abc" in caplog.text


# ---- LoRA


@pytest.fixture(scope="module")
def adapter(
    untrained: AudioModel, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A LoRA adapter with weights that change something."""
    folder = tmp_path_factory.mktemp("adapter")
    network = load(str(checkpoint), device="cpu").network
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    adapted: Any = get_peft_model(network, config)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return folder


def test_a_merged_adapter_is_pefts_own_model(
    untrained: AudioModel, checkpoint: Path, adapter: Path
) -> None:
    merged = load(str(checkpoint), device="cpu", adapter=str(adapter))
    base = load(str(checkpoint), device="cpu")
    peft: Any = PeftModel.from_pretrained(base.network, str(adapter)).eval()
    base.decoder.config._attn_implementation = "eager"
    example = prompt(untrained)
    expected = full_pass(peft.base_model.model, example)
    heard = prefill(merged, example)
    torch.testing.assert_close(heard.final, expected.residuals[-1, -1], atol=1e-4, rtol=1e-4)
    logits = merged.network.lm_head(merged.decoder.norm(heard.final))
    torch.testing.assert_close(logits, expected.logits[-1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(heard.final, prefill(untrained, example).final, atol=0.1)


def test_an_adapted_model_has_a_fingerprint_of_its_own(
    untrained: AudioModel, checkpoint: Path, adapter: Path
) -> None:
    merged = load(str(checkpoint), device="cpu", adapter=str(adapter))
    assert merged.fingerprint != untrained.fingerprint
    again = load(str(checkpoint), device="cpu", adapter=str(adapter))
    assert merged.fingerprint == again.fingerprint


def test_what_is_no_adapter_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load(str(checkpoint), device="cpu", adapter=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"code")
    with pytest.raises(ModelError, match="safetensors"):
        load(str(checkpoint), device="cpu", adapter=str(tmp_path))


def test_an_adapter_of_another_model_is_refused(
    checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    file = other / "adapter_model.safetensors"
    renamed = {key.replace("layers.", "blocks."): t for key, t in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not of this model"):
        load(str(checkpoint), device="cpu", adapter=str(other))


# ---- packages that are not needed by all


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("peft", {"adapter": "x/y"}),
        ("bitsandbytes", {"quantize": "4bit"}),
        ("accelerate", {"device": "spread"}),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, package: str, options: dict[str, Any]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else known(name)
    )
    with pytest.raises(ModelError, match=rf"{package}: pip install 'allears\["):
        load(str(checkpoint), **{"device": "cpu", **options})


def test_options_that_clash_or_do_not_exist_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="8bit, 4bit"):
        load(str(checkpoint), device="cpu", quantize="2bit")
    with pytest.raises(ModelError, match="merge it first"):
        load(str(checkpoint), device="cpu", quantize="4bit", adapter="x/y")


def test_layers_that_accelerate_places_are_walked_like_any(
    checkpoint: Path, untrained: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`spread` goes through accelerate's hooks; here they keep some layers on disk."""
    from accelerate import dispatch_model

    model = load(str(checkpoint), device="cpu")
    places = {f"model.language_model.layers.{i}": "disk" if i % 3 else "cpu" for i in range(8)}
    parts = ("embed_tokens", "norm", "rotary_emb")
    places |= {f"model.language_model.{part}": "cpu" for part in parts}
    places |= {"model.audio_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    dispatch_model(model.network, places, offload_dir=str(tmp_path), main_device="cpu")
    assert model.decoder.layers[1].self_attn.q_proj.weight.is_meta
    example = prompt(untrained)
    places_of_two = {"a": 0, "b": 1}  # a spread encoder is run over the padding as well
    monkeypatch.setattr(untrained.network, "hf_device_map", places_of_two, raising=False)
    heads = [(0, 0), (4, 3)]
    heard = prefill(model, example, heads=heads, layers=(1, 4))
    expected = prefill(untrained, example, heads=heads, layers=(1, 4))
    torch.testing.assert_close(heard.final, expected.final, atol=1e-6, rtol=0)
    torch.testing.assert_close(heard.attention, expected.attention, atol=1e-6, rtol=0)
    torch.testing.assert_close(heard.states, expected.states, atol=1e-6, rtol=0)
    self_test(model)


# ---- the start-up check


def test_every_tiny_model_passes_the_start_up_check(untrained: AudioModel) -> None:
    self_test(untrained)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("tokens", "audio tokens of one second are"),
        ("readout", "logits are"),
        ("deaf", "IndexError|RuntimeError"),
        ("nan", "not finite"),
    ],
)
def test_a_model_that_does_not_do_as_its_family_is_refused(
    untrained: AudioModel, fault: str, said: str
) -> None:
    family = untrained.family
    changes: dict[str, Any] = {
        "tokens": {"audio_tokens": lambda config, frames: 7},
        "readout": {"readout": lambda network: lambda states: states[:, :9]},
        "deaf": {"hear": lambda network, mels, frames: [torch.zeros(3, untrained.hidden_size)]},
        "nan": {
            "hear": lambda n, m, f: [clip_audio * torch.nan for clip_audio in family.hear(n, m, f)]
        },
    }
    broken = replace(untrained, family=replace(family, **changes[fault]))
    with pytest.raises(ModelError, match=rf"(?s)start-up check.*({said}).*docs/families\.md"):
        self_test(broken)


# ---- 8 and 4 bits, where bitsandbytes is installed

if importlib.util.find_spec("bitsandbytes"):

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("quantize", ["8bit", "4bit"])
    def test_a_quantized_decoder_hears_about_the_same(tmp_path: Path, quantize: str) -> None:
        folder = tiny.save(tiny.qwen2_audio, tmp_path / "tiny")
        exact = load(str(folder), device="cpu")
        rough = load(str(folder), device="cpu", quantize=quantize)
        self_test(rough)
        kinds = {type(module).__name__ for module in rough.decoder.layers.modules()}
        assert {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantize] in kinds
        assert type(rough.network.lm_head) is torch.nn.Linear
        assert {p.dtype for p in rough.network.model.audio_tower.parameters()} == {torch.float32}
        example = prompt(exact, 1.5)
        quantized, whole = (prefill(model, example).final.float() for model in (rough, exact))
        assert float(torch.cosine_similarity(quantized, whole, dim=0)) > 0.9


def test_a_spread_model_is_walked_from_card_to_card(untrained: AudioModel) -> None:
    """There is one device here, so only the way of the states is run, not the crossing."""
    spread = replace(untrained, layer_devices=(torch.device("cpu"),) * untrained.num_layers)
    example, heads = prompt(untrained), [(0, 0), (7, 3)]
    heard = prefill(spread, example, heads=heads, layers=(2, 5))
    expected = prefill(untrained, example, heads=heads, layers=(2, 5))
    torch.testing.assert_close(heard.final, expected.final, atol=1e-6, rtol=0)
    torch.testing.assert_close(heard.states, expected.states, atol=1e-6, rtol=0)
    torch.testing.assert_close(heard.attention, expected.attention, atol=1e-6, rtol=0)


def test_on_cuda_no_attention_is_planned_for_each_length(checkpoint: Path) -> None:
    model = load(str(checkpoint))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for device, chosen in (("cpu", True), ("cuda", False)):
            torch.backends.cuda.enable_cudnn_sdp(True)
            loading.take_attention(model.family, model.network, torch.device(device))
            assert torch.backends.cuda.cudnn_sdp_enabled() is chosen
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


# ---- the dtype that is chosen


@pytest.mark.parametrize(
    "name, instructions, chosen",
    [
        ("a/model", "AMX", torch.bfloat16),
        ("a/model", "", torch.float32),
        ("demo", "AMX", torch.float32),
    ],
)
def test_dtype_auto_is_what_the_cpu_computes_in_but_for_the_embedded_model(
    name: str, instructions: str, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "bfloat16_instructions", lambda: instructions)
    placed = loading.placement(name, "cpu", "auto", None)
    assert placed.kind == str(chosen).removeprefix("torch.")
    assert loading.placement(name, "cpu", "float16", None).kind == "float16", "asked for"


def test_the_log_says_why_a_dtype_was_chosen(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "bfloat16_instructions", lambda: "AVX512-BF16")
    with caplog.at_level(logging.INFO, "allears"):
        assert load(str(checkpoint), device="cpu").dtype == torch.bfloat16
    assert "bfloat16 because this CPU computes in it (AVX512-BF16)" in caplog.text
