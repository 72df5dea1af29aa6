"""The size of a gradient, over all trained parameters together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def gradient_norm(gradients: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The Euclidean norm over all gradients together, float32; 0 if there are none."""
    norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients.values()]
    if not norms:
        return torch.zeros((), device=device)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def clip_gradients(gradients: Mapping[str, Tensor], norm: Tensor, largest: float) -> None:
    """Scales gradients in place so that their common norm is at most `largest`."""
    factor = (largest / norm.clamp_min(1e-12)).clamp_max(1.0)
    for gradient in gradients.values():
        gradient.mul_(factor.to(gradient.dtype))
