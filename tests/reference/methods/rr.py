"""RR (Zou et al. 2024, algorithm 1): `c_s * mean relu(cos(h, h0)) + c_r * mean ||h - h0||`, with weights that change.

The original's first step has no gradient but that of rounding. Here, as in the package, h0 has a little noise in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tests.reference.methods.training import Rows


@dataclass
class Rerouting:
    """The terms of a step's loss; each call is a step."""

    targets: tuple[int, ...]
    coefficient: float
    steps: int
    seed: int
    step: int = 0

    def __call__(self, model: Any, reference: Any, forget: Rows, retain: Rows) -> tuple[Tensor, Tensor]:
        progress = self.step / (2 * self.steps)
        now, before = layer_outputs(model, forget), layer_outputs(reference, forget)
        cosines = []
        for place, layer in enumerate(self.targets):
            target = before[layer]
            if self.step == 0:
                target = target + self.noise(target, place)
            lengths = now[layer].norm(dim=-1) * target.norm(dim=-1)
            cosines.append(((now[layer] * target).sum(dim=-1) / lengths).clamp_min(0))
        distances = []
        for one, other in zip(
            layer_outputs(model, retain)[: max(self.targets) + 1], layer_outputs(reference, retain), strict=False
        ):
            distances.append((one - other).norm(dim=-1))
        self.step += 1
        return (
            self.coefficient * (1 - progress) * torch.stack(cosines).mean(),
            self.coefficient * progress * torch.stack(distances).mean(),
        )

    def noise(self, activations: Tensor, place: int) -> Tensor:
        """A hundredth of the length of each activation [N, d]."""
        mixed = int(np.random.SeedSequence([self.seed, self.step, 0, place]).generate_state(1, np.uint64)[0])
        drawn = torch.randn(activations.shape, generator=torch.Generator().manual_seed(mixed))
        return drawn * 0.01 * activations.norm(dim=-1, keepdim=True) / activations.shape[1] ** 0.5


def layer_outputs(model: Any, rows: Rows) -> list[Tensor]:
    """Of each layer what it returns for the real tokens, [N, d]."""
    outputs = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden[rows.mask.bool()].float())

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    model(input_ids=rows.ids, attention_mask=rows.mask)
    for handle in handles:
        handle.remove()
    return outputs
