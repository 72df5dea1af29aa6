"""The optimizer of the published runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-6


class AdamW:
    """AdamW as transformers had it until 4.x, without weight decay.

    Unlike `torch.optim.AdamW` it adds epsilon (1e-6, not 1e-8) before the bias is corrected. At the tiny gradients of
    RMU's first steps that makes all the difference: it is a warm-up. The moments have the dtype of the weights; in
    bfloat16 the second one then never decays, since `0.999 * v` rounds back to v. The published settings were tuned so.

    Args:
        parameters: What is trained, by name.
        learning_rate: Constant.
        master_weights: Keep float32 copies of the weights, and float32 moments; weights are rounded from the copies.

    Attributes:
        state: Everything that a continued run needs besides the weights, by name. Tensors are changed in place.
        steps: Steps done.
    """

    def __init__(self, parameters: Mapping[str, Tensor], learning_rate: float, *, master_weights: bool = False) -> None:
        self.parameters = dict(parameters)
        self.learning_rate = learning_rate
        self.steps = 0
        self.state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            dtype = torch.float32 if master_weights else parameter.dtype
            self.state[f"first.{name}"] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            self.state[f"second.{name}"] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            if master_weights:
                self.state[f"master.{name}"] = parameter.detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Changes the parameters in place by gradients of their names and shapes."""
        self.steps += 1
        beta1, beta2 = BETAS
        correction = math.sqrt(1.0 - beta2**self.steps) / (1.0 - beta1**self.steps)
        for name, parameter in self.parameters.items():
            first, second = self.state[f"first.{name}"], self.state[f"second.{name}"]
            weights = self.state.get(f"master.{name}", parameter)
            gradient = gradients[name].to(first.dtype)
            first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
            weights.addcdiv_(first, second.sqrt().add_(EPSILON), value=-self.learning_rate * correction)
            if weights is not parameter:
                parameter.copy_(weights)
