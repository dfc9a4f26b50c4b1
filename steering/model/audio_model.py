"""AudioModel: a loaded network, its processor, and what identifies the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steering.model.families import Family
from steering.model.prompt_style import PLAIN, PromptStyle

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


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
    device: torch.device  # of its inputs
    dtype: torch.dtype
    prompt_style: PromptStyle = PLAIN
    layer_devices: tuple[torch.device, ...] = ()  # of each layer, where they are on several cards
    adapter: str | None = None  # what was merged into the network: a hub id or a path

    @property
    def decoder(self) -> Any:
        """The text decoder: embed_tokens, layers, rotary_emb, norm."""
        return self.family.decoder(self.network)

    @property
    def text_config(self) -> Any:
        """The decoder's config."""
        return self.family.text_config(self.network.config)

    @property
    def num_layers(self) -> int:
        """L, number of decoder layers."""
        return int(self.text_config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """H, number of attention heads in a layer."""
        return int(self.text_config.num_attention_heads)

    @property
    def num_kv_heads(self) -> int:
        """Number of key and value heads: fewer than H in grouped-query models."""
        return int(self.text_config.num_key_value_heads)

    @property
    def audio_token_id(self) -> int:
        """The token that stands in a prompt for each step of a clip."""
        return self.family.audio_token_id(self.network.config)

    @property
    def head_dim(self) -> int:
        """Width of one head's keys."""
        head_dim = getattr(self.text_config, "head_dim", None)
        return int(head_dim or self.hidden_size // self.num_heads)

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of the processor's waveforms."""
        return int(self.processor.feature_extractor.sampling_rate)

    @property
    def max_clip_seconds(self) -> float:
        """The model's window: the longest clip it takes as one."""
        return self.family.window_seconds(self.network.config, self.processor)

    @property
    def hop_seconds(self) -> float:
        """Seconds of sound per audio token."""
        extractor = self.processor.feature_extractor
        return float(extractor.chunk_length / self.audio_tokens(int(extractor.nb_max_frames)))

    @property
    def window_frames(self) -> int:
        """Mel frames of the longest clip."""
        samples = int(self.max_clip_seconds * self.sample_rate_hz)
        return -(-samples // int(self.processor.feature_extractor.hop_length))

    def token_bytes(self, depth: int) -> int:
        """Bytes of one token's keys and values in so many layers."""
        return 2 * depth * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def audio_tokens(self, frames: int) -> int:
        """Number of audio tokens for a number of mel frames."""
        return self.family.audio_tokens(self.network.config, frames)

    @property
    def generation_defaults(self) -> dict[str, float]:
        """What the checkpoint's generation_config.json says of sampling, by `generate`'s names."""
        config = self.network.generation_config
        values = {name: getattr(config, name, None) for name in _SAMPLING}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.network.generation_config.eos_token_id
        all_ids = [
            *(ids if isinstance(ids, list) else [ids]),
            self.processor.tokenizer.eos_token_id,
        ]
        return frozenset(int(i) for i in all_ids if i is not None)
