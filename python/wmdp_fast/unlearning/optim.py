"""The optimizers: AdamW in the arithmetic of two libraries, and what a step of a run does with gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from wmdp_fast.unlearning.gradients import clip_gradients, gradient_norm
from wmdp_fast.unlearning.schedule import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from wmdp_fast.unlearning.training_config import TrainingConfig

BETAS = (0.9, 0.999)


class AdamW:
    """AdamW as transformers had it until 4.x, which the published RMU runs used.

    Unlike `torch.optim.AdamW` it adds epsilon (1e-6, not 1e-8) before the bias is corrected. At the tiny gradients of
    RMU's first steps that makes all the difference: it is a warm-up. The moments have the dtype of the weights; in
    bfloat16 the second one then never decays, since `0.999 * v` rounds back to v. The published settings were tuned so.

    Weight decay is decoupled and for tensors of at least two dimensions; norms and biases have none, as in
    transformers' `Trainer`.

    Args:
        parameters: What is trained, by name.
        learning_rate: Of the first step. It may be set anew before each step.
        weight_decay: What a weight loses in a step, as a multiple of the learning rate and itself.
        master_weights: Keep float32 copies of weights that are narrower, and float32 moments; weights are rounded from
            the copies.

    Attributes:
        state: Everything that a continued run needs besides the weights, by name. Tensors are changed in place.
        steps: Steps done.
    """

    epsilon = 1e-6

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        learning_rate: float,
        *,
        weight_decay: float = 0.0,
        master_weights: bool = False,
    ) -> None:
        self.parameters = dict(parameters)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = 0
        self.state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            dtype = torch.promote_types(parameter.dtype, torch.float32) if master_weights else parameter.dtype
            self.state[f"first.{name}"] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            self.state[f"second.{name}"] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            if parameter.dtype != dtype:
                self.state[f"master.{name}"] = parameter.detach().to(dtype, copy=True)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Changes the parameters in place by gradients of their names and shapes."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            first, second = self.state[f"first.{name}"], self.state[f"second.{name}"]
            weights = self.state.get(f"master.{name}", parameter)
            decay = self.learning_rate * self.weight_decay if weights.dim() > 1 else 0.0
            self._update(weights, first, second, gradients[name].to(first.dtype), decay)
            if weights is not parameter:
                parameter.copy_(weights)

    def _update(self, weights: Tensor, first: Tensor, second: Tensor, gradient: Tensor, decay: float) -> None:
        """One tensor's step; `decay` is the share of the weights that goes."""
        beta1, beta2 = BETAS
        correction = math.sqrt(1.0 - beta2**self.steps) / (1.0 - beta1**self.steps)
        first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        weights.addcdiv_(first, second.sqrt().add_(self.epsilon), value=-self.learning_rate * correction)
        if decay:
            weights.add_(weights, alpha=-decay)


class TorchAdamW(AdamW):
    """`torch.optim.AdamW`: the same bits as its loop over single tensors, with float32 masters if wanted."""

    epsilon = 1e-8

    def _update(self, weights: Tensor, first: Tensor, second: Tensor, gradient: Tensor, decay: float) -> None:
        beta1, beta2 = BETAS
        if decay:
            weights.mul_(1.0 - decay)
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        step_size = self.learning_rate / (1.0 - beta1**self.steps)
        root = second.sqrt().div_((1.0 - beta2**self.steps) ** 0.5).add_(self.epsilon)
        weights.addcdiv_(first, root, value=-step_size)


OPTIMIZERS = {"adamw_hf": AdamW, "adamw_torch": TorchAdamW}
"""By the name that a configuration has them by."""


def optimizer_of(config: TrainingConfig, parameters: Mapping[str, Tensor]) -> AdamW:
    """The optimizer that a run's settings ask for."""
    return OPTIMIZERS[config.optimizer](
        parameters, config.learning_rate, weight_decay=config.weight_decay, master_weights=config.master_weights
    )


def update(
    optimizer: AdamW, gradients: Mapping[str, Tensor], config: TrainingConfig, *, total_steps: int, device: torch.device
) -> Tensor:
    """One step of a run: clips the gradients in place, takes the step's learning rate, and changes the parameters.

    Args:
        optimizer: Has done the steps before.
        gradients: By parameter.
        config: The settings.
        total_steps: Of the run.
        device: Of the norm of no gradients.

    Returns:
        The norm over all gradients before they were clipped, float32.
    """
    norm = gradient_norm(gradients, device)
    if config.grad_clip is not None:
        clip_gradients(gradients, norm, config.grad_clip)
    factor = learning_rate_factor(optimizer.steps, total_steps, schedule=config.schedule, warmup=config.warmup)
    optimizer.learning_rate = config.learning_rate * factor
    optimizer.step(gradients)
    return norm
