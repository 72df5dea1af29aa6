"""Gradients of what is trained: how they are added up over the parts of a step, and their size all together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from wmdp_fast.unlearning.shared_batches import SharedBatches


def add_gradients(
    loss: Tensor,
    trained: Mapping[str, nn.Parameter],
    gradients: dict[str, Tensor],
    shared: SharedBatches | None = None,
) -> None:
    """Differentiates a loss, and adds in the weights' precision, as a backward pass through a sum of losses does.

    Args:
        loss: A number; its graph is let go.
        trained: The parameters by name.
        gradients: Those of other losses, by the same names; added to in place. Empty before the first.
        shared: The processes that share the batch of the loss; None if this one has all of it.
    """
    # A parameter without a gradient is an expert that no token of the batch went to.
    own = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
    found = own if shared is None else shared.summed(own)
    for name, gradient in zip(trained, found, strict=True):
        gradients[name] = gradients[name].add_(gradient) if name in gradients else gradient


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
