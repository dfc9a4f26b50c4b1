"""The effect of each clip on the bare model's first token, from recorded activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.calibration.activations import Activations
from steering.decision import divergence_bits
from steering.model.audio_model import AudioModel
from steering.readout import logits

_ROWS = 256  # items read out at once: their logits are kept for a moment


def first_effects(model: AudioModel, activations: Activations) -> NDArray[np.float64]:
    """(I,) effect of each clip on the bare model's first token, over the vocabulary, in bits."""
    return compare_with_silence(model, activations, divergence_bits)


def compare_with_silence(
    model: AudioModel, activations: Activations, compare: Callable[[Tensor, Tensor], Tensor]
) -> NDArray[np.float64]:
    """(I,) figures of the first token's log-probabilities (N, V) on each clip and its silence."""
    blocks = []
    last = model.num_layers - 1
    with torch.inference_mode():
        for start in range(0, len(activations.final), _ROWS):
            block = slice(start, start + _ROWS)
            final = torch.from_numpy(activations.final[block])
            silent = final - torch.from_numpy(activations.differences[block, last])
            heard, silence = (
                logits(model, states.to(model.device, model.dtype)).log_softmax(-1)
                for states in (final, silent)
            )
            blocks.append(compare(heard, silence).double().cpu().numpy())
    return np.concatenate(blocks)
