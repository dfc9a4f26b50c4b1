"""The oracle: one pass of transformers' own classes over the weights that are loaded already.

Nothing of ours takes part: the prompt is the processor's, encoder, mask and positions are the
network's. Hooks keep what the layers made of it; they, and the other attention kernel, are gone
afterwards. Nobody else may use the model meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steering.audio.clip import Clip
from steering.model.audio_model import AudioModel


@dataclass(frozen=True, slots=True, eq=False)
class PlainPass:
    """The results of one pass over a prompt of T tokens and K of its answer, on the CPU."""

    tokens: Tensor  # (T,) int64, of the prompt
    embedded: Tensor  # (T, D) float32, what the decoder was given of the prompt
    residuals: Tensor  # (L, D) float32, of the last prompt token after each layer
    attention: Tensor  # (L, H, T) float32, from the last prompt token; empty unless eager
    logits: Tensor  # (K + 1, V) float32, of the last prompt token and each of the answer's


@torch.inference_mode()
def plain_pass(
    model: AudioModel,
    clips: Sequence[Clip],
    text: str,
    answer: Sequence[int] = (),
    *,
    kernel: Literal["eager", "sdpa"] = "eager",
    copies: int = 1,
    heard: Tensor | None = None,
) -> PlainPass:
    """Run a question and the tokens of its answer through transformers, nothing cached.

    Args:
        model: the model.
        clips: the sounds, before the text.
        text: the question.
        answer: K token ids behind the prompt.
        kernel: attention of the decoder.
        copies: rows of the same; the first is looked at.
        heard: (F, D) in place of what the encoder makes of the sounds.

    Returns:
        Embeddings, residuals, attention and logits.
    """
    prompt = _inputs(model, clips, text)
    length = prompt["input_ids"].shape[1]
    inputs = {
        name: values.repeat(copies, *[1] * (values.dim() - 1))
        for name, values in _continued(prompt, answer).items()
    }
    last, audio_token = length - 1, model.audio_token_id
    audio = (inputs["input_ids"] == audio_token).to(model.device)
    residuals: list[Tensor] = []
    attention: list[Tensor] = []
    embedded: list[Tensor] = []

    def keep_embedded(module: Any, args: Any, options: dict[str, Any]) -> Any:
        given = options["inputs_embeds"]
        if heard is not None:
            given = given.masked_scatter(audio[..., None], heard.repeat(copies, 1).to(given))
        embedded.append(given[0, :length].float().cpu())
        return args, {**options, "inputs_embeds": given}

    def keep_residual(module: Any, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        residuals.append(states[0, last].float().cpu())

    def keep_attention(module: Any, args: Any, output: Any) -> None:
        if output[1] is not None:
            attention.append(output[1][0, :, last, :length].float().cpu())

    with ExitStack() as stack:
        stack.enter_context(_attention_kernel(model, kernel))
        decoder = model.decoder
        stack.enter_context(decoder.register_forward_pre_hook(keep_embedded, with_kwargs=True))
        for layer in decoder.layers:
            stack.enter_context(layer.register_forward_hook(keep_residual))
            stack.enter_context(layer.self_attn.register_forward_hook(keep_attention))
        logits = model.network(**_on_device(model, inputs), use_cache=False).logits
    return PlainPass(
        tokens=prompt["input_ids"][0],
        embedded=embedded[0],
        residuals=torch.stack(residuals),
        attention=torch.stack(attention) if attention else torch.empty(0),
        logits=logits[0, last:].float().cpu(),
    )


def _inputs(model: AudioModel, clips: Sequence[Clip], text: str) -> dict[str, Tensor]:
    """What a user of transformers gives to `generate`; the style's mark opens the answer."""
    sounds = [{"type": "audio", "audio": clip.samples} for clip in clips]
    chat = [{"role": "user", "content": [*sounds, {"type": "text", "text": text}]}]
    inputs = model.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    mark = model.processor.tokenizer(model.prompt_style.before, add_special_tokens=False)
    return _continued(dict(inputs), mark["input_ids"])


def _continued(inputs: dict[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """The inputs with more text behind: `attention_mask` sees it, other marks of tokens are 0."""
    added = torch.tensor([list(tokens)], dtype=torch.int64)  # (1, K)
    more = {"input_ids": added, "attention_mask": torch.ones_like(added)}
    shape = inputs["input_ids"].shape
    return {
        name: torch.cat([values, more.get(name, torch.zeros_like(added)).to(values.dtype)], dim=1)
        if values.shape == shape
        else values
        for name, values in inputs.items()
    }


def _on_device(model: AudioModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs on the model's device, features in its dtype, by the network's own names.

    A family may take another model's processor, which names the mask of the features otherwise.
    """
    names = inspect.signature(model.network.forward).parameters

    def is_mask(name: str) -> bool:
        return "feature" in name and name.endswith("mask")

    own = [name for name in names if is_mask(name)]
    return {
        own[0] if own and is_mask(name) else name: values.to(
            model.device, model.dtype if values.is_floating_point() else values.dtype
        )
        for name, values in inputs.items()
    }


@contextmanager
def _attention_kernel(model: AudioModel, kernel: str) -> Iterator[None]:
    """Another attention kernel in the decoder for a while."""
    config = model.decoder.config
    before = config._attn_implementation
    config._attn_implementation = kernel
    try:
        yield
    finally:
        config._attn_implementation = before
