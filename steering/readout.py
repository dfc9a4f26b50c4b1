"""The steered readout: h + strength * d, where the final representation becomes logits.

Only the readout is touched, so keys and values stay the bare model's, every row of a batch may
have its own direction and strength, and strength 0 is exactly the bare model.
Source: arXiv 2603.06854, intervention; scaling to the norm of h and the choices are ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steering.model.audio_model import AudioModel


@dataclass(frozen=True, slots=True)
class Intervention:
    """Making and adding a direction; chosen by calibration, recorded in the profile."""

    layers: tuple[int, ...]  # whose differences make the direction
    pool: Literal["mean", "sum"] = "mean"
    scale: Literal["raw", "norm"] = "norm"  # norm: the direction gets the norm of h
    place: Literal["before_norm", "after_norm"] = "before_norm"
    tokens: Literal["first", "every"] = "every"
    keep_norm: bool = False  # give the result the norm that h had

    def record(self) -> dict[str, Any]:
        """As it stands in a profile."""
        return asdict(self)


def pool(differences: Tensor, intervention: Intervention) -> Tensor:
    """Direction d (..., D): differences (..., K, D) of the intervention's layers."""
    return differences.mean(-2) if intervention.pool == "mean" else differences.sum(-2)


def steer(
    final: Tensor, direction: Tensor, strength: Tensor, intervention: Intervention, step: int = 0
) -> Tensor:
    """Steer final states row by row: h + strength * d.

    Args:
        final: (B, D) h where the intervention's place has it, before or after the final norm.
        direction: (B, D) d.
        strength: (B,); a row of strength 0 comes back bit for bit.
        intervention: scale of d, and whether the norm of h is kept.
        step: answer tokens before this one; with `tokens` "first" only step 0 is steered.

    Returns:
        (B, D) in the dtype of `final`. Source: arXiv 2603.06854, intervention on the final
        representation.
    """
    if intervention.tokens == "first" and step > 0:
        return final
    h, d, factor = final.float(), direction.float(), strength.float()[:, None]
    length = (
        h.norm(dim=-1, keepdim=True)
        if intervention.scale == "norm" or intervention.keep_norm
        else None
    )
    if length is not None and intervention.scale == "norm":
        factor = factor * length / d.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    steered = torch.addcmul(h, d, factor)
    if length is not None and intervention.keep_norm:
        steered = steered * (length / steered.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return torch.where(strength[:, None] == 0, final, steered.to(final.dtype))


def relative_norm(
    final: Tensor, direction: Tensor, strength: float, intervention: Intervention
) -> float:
    """Length of the added vector over the length of h (D,), before the norm."""
    if intervention.scale == "norm":
        return strength
    return strength * float(direction.float().norm() / final.float().norm().clamp_min(1e-12))


def logits(
    model: AudioModel,
    final: Tensor,
    direction: Tensor | None = None,
    strength: Tensor | None = None,
    intervention: Intervention | None = None,
    step: int = 0,
) -> Tensor:
    """Read out next-token logits, steered if a direction is given.

    Args:
        model: the model.
        final: (B, D) residuals after the last layer, before the final norm.
        direction: (B, D) d of each row.
        strength: (B,) of each row.
        intervention: where and how d is added.
        step: answer tokens before this one.

    Returns:
        (B, V) float32.
    """
    norm, readout = model.decoder.norm, model.family.readout(model.network)
    if direction is None or strength is None or intervention is None:
        return readout(norm(final)).to(final.device).float()  # type: ignore[no-any-return]
    if intervention.place == "before_norm":
        normed = norm(steer(final, direction, strength, intervention, step))
    else:
        normed = steer(norm(final).to(final.device), direction, strength, intervention, step)
    return readout(normed).to(final.device).float()  # type: ignore[no-any-return]
