"""Sharpness-aware minimization of the forget loss (Foret et al. 2020, arXiv:2010.01412)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from wmdp_fast.exceptions import ModelError
from wmdp_fast.unlearning.gradients import gradient_norm
from wmdp_fast.unlearning.method import StepOutput
from wmdp_fast.unlearning.methods.forget_retain import ForgetRetain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from wmdp_fast.unlearning.method import Setup, StepInput
    from wmdp_fast.unlearning.methods.forget_retain import Settings


class SharpnessAware(ForgetRetain):
    """As `ForgetRetain`, with the forget gradient at weights that were moved along it.

    Args:
        setup: What it works on.
        config: The settings, and the loss on forget documents.
        rho: How far weights are moved.

    Attributes:
        metrics: Those of `ForgetRetain`, and how much larger the forget loss is where weights were moved to.

    Raises:
        ModelError: What is trained is not float32.
    """

    def __init__(self, setup: Setup, config: Settings, rho: float) -> None:
        super().__init__(setup, config)
        self.metrics = (*self.metrics, "sharpness")
        self._rho = rho
        narrow = next((one.dtype for one in setup.trained.values() if one.dtype != torch.float32), None)
        if narrow is not None:
            raise ModelError(
                f"{setup.name} is trained in {str(narrow).removeprefix('torch.')}, which is too coarse for the small"
                " perturbations of sharpness-aware minimization: pass dtype float32, or train LoRA factors"
            )

    def step(self, given: StepInput) -> StepOutput:
        """The gradient of the forget loss at moved weights, that of the retain loss where they were, and `metrics`."""
        ((forget, retain),) = given.pairs
        gradients: dict[str, Tensor] = {}
        forget_loss, forget_nll = self.forget_term(given.topic, forget, gradients)
        with self._moved(gradients):
            gradients = {}
            moved_loss, _ = self.forget_term(given.topic, forget, gradients)
        retain_loss, retain_measure = self.retain_term(retain, gradients)
        measured = [forget_loss, retain_loss, forget_nll, retain_measure, moved_loss - forget_loss]
        return StepOutput(gradients, torch.stack(measured))

    @contextmanager
    def _moved(self, gradients: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, weights are moved along gradients. Afterwards they have the very bits that they had."""
        trained = self._setup.trained
        before = {name: parameter.detach().clone() for name, parameter in trained.items()}
        scale = self._rho / gradient_norm(gradients, self._setup.batches.device).clamp_min(1e-12)
        with torch.no_grad():
            for name, gradient in gradients.items():
                trained[name].add_(gradient * scale)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(before[name])
