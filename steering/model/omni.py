"""Parts shared by the Omni families: only the audio encoder and the text decoder (the thinker) are
loaded. Nothing of the talker or of the vision tower comes into memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

_UNREAD = [r"(^|\.)visual\.", r"^talker\.", r"^token2wav\.", r"^code2wav\."]  # names of weights
_TOKENS = ("image_token", "audio_token", "video_token")


def without_eyes(network_class: Any) -> Any:
    """The thinker's class, whose networks have no vision tower and miss none of its weights.

    It keeps name and module: transformers finds by them how a checkpoint's weights are renamed.
    """

    def build(self: Any, config: Any) -> None:
        network_class.__init__(self, config)
        del self.model.visual

    parts = {
        "__init__": build,
        "__module__": network_class.__module__,
        "_keys_to_ignore_on_load_unexpected": _UNREAD,
    }
    return type(network_class.__name__, (network_class,), parts)


def ears_only(processor_class: Any) -> Any:
    """The processor's class without image processing, which needs packages of its own."""

    def build(
        self: Any, feature_extractor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        ProcessorMixin.__init__(self, feature_extractor, tokenizer, chat_template=chat_template)
        for name in _TOKENS:
            setattr(self, name, getattr(tokenizer, name))
            setattr(self, f"{name}_id", getattr(tokenizer, f"{name}_id"))

    parts = {"__init__": build, "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class,), parts)


def thinker_config(whole: Any) -> Any:
    """The thinker's part of a checkpoint's config, or the config of a thinker saved by itself."""
    return getattr(whole, "thinker_config", whole)


def thinker_part(whole: dict[str, Any]) -> dict[str, Any] | None:
    """The thinker's part of a config.json, with its model_type; None for other checkpoints."""
    part = whole.get("thinker_config")
    return {"model_type": f"{whole['model_type']}_thinker", **part} if part else None


@contextmanager
def talker_unseen() -> Iterator[None]:
    """While it lasts transformers says nothing of token ids beyond a vocabulary.

    It reads the whole config again for a processor, and the talker's ids are those of the thinker,
    in a vocabulary of its own; it is never loaded. The thinker's ids were looked at before.
    """
    logger = logging.getLogger("transformers.configuration_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "_token_id must be" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def hear(network: Any, mels: Tensor, frames: Tensor) -> list[Tensor]:
    """Audio embeddings of C clips: each (F, D), from log-mels (C, M, N) and frame counts (C,).

    One clip at a time: encoded together, the end of a clip under a second would sound different.
    """
    lengths = frames.to(mels.device)
    tower = network.model.audio_tower
    return [
        tower(mels[i, :, : int(length)], feature_lens=length[None]).last_hidden_state
        for i, length in enumerate(lengths)
    ]


def qwen3_audio_tokens(config: Any, frames: int) -> int:
    """Audio tokens for a number of mel frames: 13 a whole chunk, three strides of the rest."""
    chunk = 2 * int(config.audio_config.n_window)
    length = rest = frames % chunk
    for _ in range(3):
        length = (length - 1) // 2 + 1
    whole = chunk
    for _ in range(3):
        whole = (whole - 1) // 2 + 1
    return (frames // chunk) * whole + (length if rest else 0)


def qwen3_window_seconds(config: Any, processor: Any) -> float:
    """Longest clip: the encoder takes any, so the decoder's positions are the limit."""
    extractor = processor.feature_extractor
    if processor.audio_kwargs.get("truncation", True):
        return float(extractor.chunk_length)
    tokens = qwen3_audio_tokens(config, int(extractor.nb_max_frames))
    return float(config.text_config.max_position_embeddings * extractor.chunk_length / tokens)
