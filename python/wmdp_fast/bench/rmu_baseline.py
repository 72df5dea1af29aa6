"""RMU written down plainly, as a baseline to be measured against: two models, a hook, and nothing frozen or shared.

This is how the original program goes: each step runs the updated model on forget and on retain data and the frozen one
on retain data, from the first layer to the vocabulary, and differentiates with respect to every parameter up to the
steered layer, though few are trained. `truncated` is the same with the layers above that one and the head cut off.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.unlearning.parameters import select_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


class PlainRMU:
    """Two models of the same weights, one of which is trained.

    Args:
        updated: The model that is trained; a causal language model or one without head.
        frozen: The other one.
        layer_id: The layer whose output is steered.
        update_layer_ids: The layers that are trained.
        parameters: Which of their parameters.
        learning_rate: Of the optimizer.
    """

    def __init__(
        self,
        updated: Any,
        frozen: Any,
        *,
        layer_id: int,
        update_layer_ids: Sequence[int],
        parameters: str,
        learning_rate: float,
    ) -> None:
        self.updated, self.frozen = updated.train(), frozen.eval()
        decoder = decoder_of(updated)
        self._layers = decoder.layers[layer_id], decoder_of(frozen).layers[layer_id]
        picked = select_parameters(decoder.layers, decoder.prefix, update_layer_ids, parameters)
        self._optimizer = _FormerAdamW([one.parameter for one in picked], learning_rate)

    def step(self, forget: Tensor, retain: Tensor, control: Tensor, alpha: float) -> tuple[float, float]:
        """One optimizer step on token ids [B, S] of either kind; returns the forget and the retain loss."""
        updated_layer, frozen_layer = self._layers
        steered = _activations(self.updated, updated_layer, forget)
        forget_loss = F.mse_loss(steered, control.expand_as(steered))
        kept = _activations(self.updated, updated_layer, retain)
        with torch.no_grad():
            original = _activations(self.frozen, frozen_layer, retain)
        retain_loss = F.mse_loss(kept, original) * alpha
        (forget_loss + retain_loss).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return forget_loss.item(), retain_loss.item()


def _activations(model: Any, layer: nn.Module, input_ids: Tensor) -> Tensor:
    """A layer's output while the whole model runs: [B, S, d]."""
    caught: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(hook)
    try:
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    finally:
        handle.remove()
    return caught[0]


class _FormerAdamW:
    """AdamW of transformers 4.38: epsilon is added before the bias is corrected, moments have the weights' dtype.

    As in the original program, gradients of what is not trained are never cleared.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
        self._parameters, self._learning_rate, self._time = parameters, learning_rate, 0
        self._first = [torch.zeros_like(one) for one in parameters]
        self._second = [torch.zeros_like(one) for one in parameters]

    @torch.no_grad()
    def step(self) -> None:
        self._time += 1
        rate = self._learning_rate * math.sqrt(1 - 0.999**self._time) / (1 - 0.9**self._time)
        for parameter, first, second in zip(self._parameters, self._first, self._second, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            first.mul_(0.9).add_(gradient, alpha=1 - 0.9)
            second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            parameter.addcdiv_(first, second.sqrt().add_(1e-6), value=-rate)
            parameter.grad = None
