"""The differences between model families, in one table; all other code is the same for all.

A family is found by `model_type` of the checkpoint's own config. Sizes and ids are read from the
checkpoint, never from here. To add a row, see docs/families.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import gelu

from steering.errors import ModelError
from steering.model import omni
from steering.model.passes import Passes, at_once

POSITIONS_STEP = 64  # of an encoder, whose convolutions run over so many more at most


@dataclass(frozen=True, slots=True)
class Family:
    """The parts of one architecture. `config` is that of the loaded part."""

    name: str  # model_type of its config.json
    network_class: Callable[[], Any]  # of transformers, read lazily
    processor_class: Callable[[], Any]
    audio_tokens: Callable[[Any, int], int]  # config, mel frames -> audio tokens
    hear: Callable[[Any, Tensor, Tensor], list[Tensor]]  # (C, M, N), (C,) -> C x (F, D)
    hear_in_passes: Callable[[Any, Tensor, Tensor], Passes[list[Tensor]]] | None = None  # the same
    any_length: bool = False  # the encoder takes features that are not padded to the window
    config: Callable[[Any], Any] = lambda whole: whole  # the part of a checkpoint that is loaded
    decoder: Callable[[Any], Any] = lambda network: network.model.language_model
    readout: Callable[[Any], Any] = lambda network: network.lm_head  # (B, D) -> (B, V)
    text_config: Callable[[Any], Any] = lambda config: config.text_config
    audio_token_id: Callable[[Any], int] = lambda config: int(config.audio_token_id)
    window_seconds: Callable[[Any, Any], float] = lambda config, processor: float(
        processor.feature_extractor.chunk_length
    )


def _qwen2_audio_tokens(config: Any, frames: int) -> int:
    """Audio tokens for a number of mel frames: a strided convolution, then pooling by two."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _qwen2_audio_hear(network: Any, mels: Tensor, frames: Tensor) -> list[Tensor]:
    """Audio embeddings of C clips: each (F, D), from log-mels (C, M, N) and frame counts (C,)."""
    return at_once(_qwen2_audio_hear_in_passes(network, mels, frames))


def _qwen2_audio_hear_in_passes(network: Any, mels: Tensor, frames: Tensor) -> Passes[list[Tensor]]:
    """The same, a layer of the encoder at a time."""
    project, counts = network.model.multi_modal_projector, frames.tolist()
    filled = [(count - 1) // 2 + 1 for count in counts]  # encoder positions before the padding
    tokens = [_qwen2_audio_tokens(None, count) for count in counts]
    audio: list[Tensor] = []
    if len(set(getattr(network, "hf_device_map", {}).values())) > 1:  # spread: whole, it moves
        ends = torch.tensor(filled, device=mels.device)[:, None, None, None]
        positions = torch.arange((mels.shape[-1] - 1) // 2 + 1, device=mels.device)
        heard = network.model.audio_tower(mels, attention_mask=positions < ends).last_hidden_state
        audio += project(heard)  # C x (N/4, D)
    else:
        for mel, length in zip(mels.split(1), filled, strict=True):
            encoded = yield from _encode(network.model.audio_tower, mel, length)
            audio.append(project(encoded)[0])
    return [clip[:count] for clip, count in zip(audio, tokens, strict=True)]


def _encode(tower: Any, mel: Tensor, length: int) -> Passes[Tensor]:
    """(1, P/2, E) of one clip's log-mels (1, M, N), by the encoder's own layers, for its first P
    positions: nothing attends to the padding behind, so a short clip costs its own length, and
    a clip among others is heard as alone. A pass is a layer, a clip's tokens are all of them.
    """
    whole = -(-length // POSITIONS_STEP) * POSITIONS_STEP  # oneDNN keeps kernels for each length
    states = gelu(tower.conv1(mel[..., : 2 * whole + 1]))  # as far as the last position reads
    states = gelu(tower.conv2(states))[..., :length].transpose(1, 2)  # (1, P, E)
    states = states + tower.embed_positions.weight[:length]
    for layer in tower.layers:
        yield -(-length // (2 * len(tower.layers)))
        output = layer(states, None)
        states = output[0] if isinstance(output, tuple) else output
    pooled: Tensor = tower.avg_pooler(states.transpose(1, 2)).transpose(1, 2)
    heard: Tensor = tower.layer_norm(pooled)
    return heard


QWEN2_AUDIO = Family(
    name="qwen2_audio",
    network_class=lambda: transformers.Qwen2AudioForConditionalGeneration,
    processor_class=lambda: transformers.Qwen2AudioProcessor,
    audio_tokens=_qwen2_audio_tokens,
    hear=_qwen2_audio_hear,
    hear_in_passes=_qwen2_audio_hear_in_passes,
)

QWEN2_5_OMNI = Family(
    name="qwen2_5_omni",
    network_class=lambda: omni.without_eyes(
        transformers.Qwen2_5OmniThinkerForConditionalGeneration
    ),
    processor_class=lambda: omni.ears_only(transformers.Qwen2_5OmniProcessor),
    audio_tokens=_qwen2_audio_tokens,
    hear=omni.hear,
    any_length=True,
    config=omni.thinker_config,
)

QWEN3_OMNI = Family(
    name="qwen3_omni_moe",
    network_class=lambda: omni.without_eyes(
        transformers.Qwen3OmniMoeThinkerForConditionalGeneration
    ),
    processor_class=lambda: omni.ears_only(transformers.Qwen3OmniMoeProcessor),
    audio_tokens=omni.qwen3_audio_tokens,
    hear=omni.hear,
    config=omni.thinker_config,
    window_seconds=omni.qwen3_window_seconds,
)

FAMILIES: dict[str, Family] = {
    family.name: family for family in (QWEN2_AUDIO, QWEN2_5_OMNI, QWEN3_OMNI)
}


def family_of(model_type: str) -> Family:
    """The family of a checkpoint's `model_type`; ModelError with the known ones if unknown.

    A thinker that was saved by itself is of the family of the model it was taken from.
    """
    family = FAMILIES.get(model_type.removesuffix("_thinker"))
    if family is None:
        raise ModelError(
            f"model_type {model_type!r} is not a family allears knows; known: "
            f"{', '.join(sorted(FAMILIES))}. Serve one of these, or add a row to"
            " steering/model/families.py as docs/families.md says"
        )
    return family
