"""The loader: a name becomes a model that is ready to answer."""

from __future__ import annotations

import importlib.util
import logging
import platform
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, GenerationConfig, PreTrainedConfig

from steering.attention.taps import ATTENTION
from steering.errors import ModelError
from steering.model import memory_plan, omni
from steering.model.audio_model import AudioModel
from steering.model.checkpoint import (
    ADAPTER_CONFIG,
    DEMO,
    check_adapter,
    check_bare,
    check_whole,
    find,
    fingerprint,
    first_line,
    tensors,
)
from steering.model.families import Family, family_of
from steering.model.memory_plan import DTYPES, QUANTIZED, ModelSizes
from steering.model.prompt_style import style_of

SPREAD = "spread"
_UNMATCHED = "missing adapter keys"  # what peft warns of, and merges nothing
_TIED = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
_NOT_QUANTIZED = ["lm_head", "model.audio_tower", "model.multi_modal_projector"]
log = logging.getLogger("allears")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes, and the memory that is free there."""

    device: torch.device  # of its inputs
    kind: str  # dtype of its weights, or 8bit, 4bit
    where: str
    free: int
    through_host: bool  # whether its weights are in the host's memory first


def take_attention(family: Family, network: Any, device: torch.device) -> None:
    """Let the decoder's attention be read by `steering.attention.taps`, at any length of a prompt.

    On CUDA, cuDNN's attention is no longer chosen, in this whole process: it builds a plan for
    every new length, which takes longer than the prompt itself.
    """
    family.decoder(network).config._attn_implementation = ATTENTION
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def load(
    name: str = DEMO,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | None = None,
    quantize: str | None = None,
    style: str = "auto",
    mmap: bool = True,
) -> AudioModel:
    """Load a model, ready to answer.

    Args:
        name: `demo`, a folder, or a hub id.
        revision: commit or branch of a hub model.
        device: auto (CUDA if there is one), cpu, cuda, cuda:N, or spread over all cards.
        dtype: auto (bfloat16 where the device computes in it, float16 on older cards, float32 on
            other CPUs and for the embedded model), float32, bfloat16 or float16.
        adapter: LoRA adapter to merge into the weights, a folder or hub id.
        quantize: 8bit or 4bit, for the decoder's linear layers.
        style: prompt style, auto (by the name), plain or r1_aqa.
        mmap: whether weights on a CPU may stay parts of the checkpoint's mapped file, which
            processes share. False for a model whose weights are merged or packed: the whole file
            is in memory as long as one weight is part of it.

    Returns:
        The model in eval mode, its attention readable by `steering.attention.taps`.

    Raises:
        ModelError: unknown name or family, missing or damaged files, a wrong device, too little
            memory, or a missing optional package.
    """
    folder, commit = find(name, revision)
    config = read_config(name, folder)
    family = family_of(config.model_type)
    check_bare(name, folder)
    check_whole(name, folder)
    _check_options(adapter, quantize)
    placed = placement(name, device, dtype, quantize)
    place, (kind, reason) = placed.device, _dtype(name, dtype, placed.device)
    _check_memory(name, memory_plan.sizes(family, config), placed)
    chosen = style_of(style, f"{name} {folder.name}")
    try:
        network = _network(family, config, folder, kind, place, device, quantize, mmap)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name}: the checkpoint in {folder} can't be loaded: {error}") from error
    processor = read_processor(name, family, folder)
    print_of = fingerprint(folder)
    if adapter is not None:
        network, print_of = _with_adapter(network, adapter, print_of)
    network = network.eval().requires_grad_(False)
    first = family.decoder(network).embed_tokens.weight.device
    take_attention(family, network, first)
    places = _places(family.decoder(network), first) if device == SPREAD else ()
    where = ", ".join(dict.fromkeys(map(str, (first, *places))))
    size = sum(p.numel() for p in network.parameters()) / 1e6
    log.info(
        "loaded %s, revision %s: %s, %.1f M parameters on %s, %s because %s%s, prompt style %s",
        *(name, commit or "none (a local folder)", family.name, size, where, _name_of(kind)),
        *(reason, f", decoder in {quantize}" if quantize else "", chosen.name),
    )
    return AudioModel(
        name,
        folder,
        commit,
        print_of,
        family,
        network,
        processor,
        first,
        kind,
        chosen,
        places,
        adapter,
    )


def _places(decoder: Any, first: torch.device) -> tuple[torch.device, ...]:
    """The device of each layer; the first one for layers offloaded to the CPU or a disk."""
    devices = [layer.input_layernorm.weight.device for layer in decoder.layers]
    return tuple(first if place.type in ("meta", "cpu") else place for place in devices)


def read_config(name: str, folder: Path) -> Any:
    """The config in a folder, of an Omni its thinker's; no code of the checkpoint is run.

    The talker is never loaded, and transformers would warn of token ids that are not its own.
    ModelError if the config is unusable.
    """
    try:
        whole, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
        if thinker := omni.thinker_part(whole):
            return AutoConfig.for_model(**thinker)
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: no usable config.json in {folder} ({error})") from error


def _network(
    family: Family,
    config: Any,
    folder: Path,
    dtype: torch.dtype,
    place: torch.device,
    device: str,
    quantize: str | None,
    mmap: bool,
) -> Any:
    """The network with all its weights; ModelError if the checkpoint lacks some."""
    part = family.config(config)
    placed: dict[str, Any] = {}
    if device == SPREAD:
        _require_package("accelerate", "spread", "a model on several cards")
        placed["device_map"] = "auto"
    if quantize is not None:
        placed.setdefault("device_map", {"": str(place)})
        placed["quantization_config"] = _quantization(quantize, dtype)
    with ExitStack() as opened:
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
        if not mmap and place.type == "cpu" and not placed:
            state = opened.enter_context(tensors(folder))
            source = {"pretrained_model_name_or_path": None, "state_dict": state}
            source["generation_config"] = _generation_config(folder)
        network, report = _tied_as_its_text(family, part).from_pretrained(
            config=part,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **source,
            **placed,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder.name}: {len(missing)} weights are not in the checkpoint, the first is"
            f" {missing[0]}: it is not whole, or not of family {family.name}"
        )
    kinds = set(getattr(family.text_config(part), "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ModelError(
            f"{folder.name}: layers of kind {', '.join(sorted(kinds))}; only full_attention is"
            " read here: turn use_sliding_window off in its config.json"
        )
    return network if placed else network.to(place)


def _generation_config(folder: Path) -> GenerationConfig:
    """Of its own file or else of config.json, as transformers reads it with a folder's weights."""
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_pretrained(
            folder, "config.json", local_files_only=True, _from_model_config=True
        )


def _tied_as_its_text(family: Family, part: Any) -> Any:
    """The network's class, with `part` changed so that a readout which its text_config ties to the
    embeddings is tied: transformers looks for that at the top of a config only.
    """
    network_class = family.network_class()
    if not getattr(family.text_config(part), "tie_word_embeddings", False):
        return network_class
    part.tie_word_embeddings = True
    parts = {"__module__": network_class.__module__, "_tied_weights_keys": _TIED}
    return type(network_class.__name__, (network_class,), parts)


def _quantization(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The decoder's linear layers in 8 or 4 bits; encoder and readout stay as they are."""
    _require_package("bitsandbytes", "quantize", "8 and 4 bits")
    return BitsAndBytesConfig(
        load_in_8bit=quantize == "8bit",
        load_in_4bit=quantize == "4bit",
        llm_int8_skip_modules=_NOT_QUANTIZED,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )


def _with_adapter(network: Any, adapter: str, base_print: str) -> tuple[Any, str]:
    """The network with a LoRA adapter merged into its weights, and the fingerprint of both."""
    _require_package("peft", "lora", "LoRA adapters")
    from peft import PeftModel  # an optional package

    folder, _ = find(adapter, None)
    check_adapter(adapter, folder)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(network, str(folder), local_files_only=True)
        merged = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"adapter {adapter!r} can't be merged: {error}") from error
    if missing := [warning for warning in caught if _UNMATCHED in str(warning.message)]:
        raise ModelError(
            f"adapter {adapter!r} is not of this model: {str(missing[0].message)[:200]}…"
        )
    return merged, fingerprint(folder, ADAPTER_CONFIG, base_print)


def _require_package(package: str, extra: str, what: str) -> None:
    """Raise ModelError, with the command that installs it, if an optional package is missing."""
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{what} need {package}: pip install 'allears[{extra}]'")


def _check_options(adapter: str | None, quantize: str | None) -> None:
    """Raise ModelError for unknown options and for options that exclude each other."""
    if quantize is not None and quantize not in QUANTIZED:
        raise ModelError(f"quantize {quantize!r} is unknown; allowed: {', '.join(QUANTIZED)}")
    if quantize is not None and adapter is not None:
        raise ModelError(
            "an adapter can't be merged into quantized weights without loss: merge it first,"
            " or serve without quantize"
        )


def placement(name: str, device: str, dtype: str, quantize: str | None) -> Placement:
    """Where a model of these options goes. Raises ModelError for a device that can't be used."""
    first = _device("auto" if device == SPREAD else device)
    kind, free = quantize or _name_of(_dtype(name, dtype, first)[0]), memory_plan.free_bytes(first)
    if device != SPREAD:
        through_host = first.type == "cuda" and quantize is None
        return Placement(first, kind, str(first), free, through_host)
    cards = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    free = sum(memory_plan.free_bytes(card) for card in [*cards, torch.device("cpu")])
    return Placement(first, kind, "all cards and the CPU", free, through_host=False)


def _check_memory(name: str, of: ModelSizes, placed: Placement) -> None:
    """Raise ModelError if the weights do not fit into free memory."""
    needed = of.weight_bytes[placed.kind]
    what = f"{name}: weights in {placed.kind} on {placed.where}"
    remedy = "use a smaller dtype, quantize to 8bit or 4bit, or device spread over several cards"
    memory_plan.require(needed, placed.free, what, remedy)
    if placed.through_host:
        check_host(name, of, placed)


def check_host(name: str, of: ModelSizes, placed: Placement) -> str:
    """The host's memory while weights pass through it. Raises ModelError if it is short."""
    needed, free = of.weight_bytes[placed.kind], memory_plan.free_bytes(torch.device("cpu"))
    what = f"{name}: weights, which pass through the host's memory while they are loaded,"
    memory_plan.require(needed, free, what, "free host memory, or quantize to 8bit or 4bit")
    return f"{memory_plan.gigabytes(needed)} of {memory_plan.gigabytes(free)} free on the host"


def read_processor(name: str, family: Family, folder: Path) -> Any:
    """The processor in a folder. ModelError if it is unusable."""
    try:
        with omni.talker_unseen():
            return family.processor_class().from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: no usable processor in {folder}: {error}") from error


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {wanted!r} can't be used ({first_line(error)}); allowed: auto, cpu,"
            " cuda, cuda:N, spread"
        ) from error
    return device


def _dtype(name: str, wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that a model computes in, and the reason for it."""
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ModelError(f"dtype {wanted!r} is unknown; allowed: auto, {', '.join(DTYPES)}")
        return DTYPES[wanted], "it was asked for"
    if name == DEMO:
        return torch.float32, "the embedded model answers the same on every machine"
    if device.type != "cuda":
        if instructions := bfloat16_instructions():
            return torch.bfloat16, f"this CPU computes in it ({instructions})"
        return torch.float32, "this CPU has no instructions for bfloat16"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, "this card does not compute in bfloat16"
    return torch.bfloat16, "it is half the memory, and the range of float32"


def bfloat16_instructions() -> str:
    """The CPU's own instructions for bfloat16 that torch makes use of; empty where it has none."""
    if not torch.backends.mkldnn.is_available():
        return ""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # on x86 also where it is emulated
        return ""
    if platform.machine() in ("aarch64", "arm64"):
        return "Arm's BF16"
    of_x86 = {
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    return " and ".join(name for name, there in of_x86.items() if there)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
