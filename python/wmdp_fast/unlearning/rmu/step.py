"""One step of RMU: the losses of a topic's batches, their gradients, and what is worth watching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from wmdp_fast.unlearning.gradients import add_gradients

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch import Tensor, nn

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.rmu.branches import Branches, Trunk

# What `losses_and_gradients` measures besides the gradient, in the order of its columns.
MEASURES = (
    "forget_loss",
    "retain_loss",
    "forget_loss_masked",
    "retain_loss_masked",
    "forget_norm",
    "retain_norm",
    "forget_cosine",
    "retain_cosine",
)


@dataclass
class Retained:
    """The part of a retain batch's work that training does not change.

    Attributes:
        trunk: The batch up to the first updated layer.
        frozen: The original model's activations, [B, S, d].
    """

    trunk: Trunk
    frozen: Tensor


def control_vectors(count: int, hidden_size: int, *, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """A random unit vector with positive entries for each topic: [1, 1, d].

    Drawn on the CPU, so that a seed means the same on every device.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    options: Any = {"dtype": dtype, "device": "cpu", "generator": generator}
    drawn = [torch.rand(1, 1, hidden_size, **options) for _ in range(count)]
    return [vector / torch.norm(vector) for vector in drawn]


def mean_norm(activations: Tensor, attention_mask: Tensor) -> float:
    """Mean Euclidean norm over the real tokens of activations [B, S, d]."""
    return float(activations.detach().float().norm(dim=-1)[attention_mask.bool()].mean())


class Step:
    """Computes losses and gradients.

    Args:
        branches: The model.
        trained: The trained parameters by name.
        masked: Whether the loss is over real tokens only.
    """

    def __init__(self, branches: Branches, trained: Mapping[str, nn.Parameter], *, masked: bool) -> None:
        self._branches = branches
        self._trained = dict(trained)
        self._masked = masked
        # The retain work of the last batch from each place in the step: the next topic often has the same one.
        self._retained: dict[int, tuple[Hashable, Retained]] = {}

    def losses_and_gradients(
        self,
        pairs: Sequence[tuple[Batch, Batch]],
        control: Tensor,
        alpha: float,
        *,
        noise: Sequence[Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The mean loss over pairs of a forget and a retain batch, differentiated.

        Args:
            pairs: The batches.
            control: The topic's control vector times its steering coefficient, [1, 1, d].
            alpha: Weight of the retain loss.
            noise: What is added to each pair's retain target, [B, S, d].

        Returns:
            Gradients by name, and the means of `MEASURES` over the pairs, float32 on the device. Of batches without
            padding, losses are the same masked or not.
        """
        gradients: dict[str, Tensor] = {}
        measured = []
        for place, (forget, retain) in enumerate(pairs):
            steered = self._branches.updated(self._branches.trunk(forget))
            loss = self._mean(steered, control, forget)
            self._differentiate(loss, gradients, len(pairs))
            with torch.no_grad():
                forget_measures = _measures(steered, control, forget)
            unmasked_forget = loss if not self._masked else _plain_mse(steered, control)
            del steered, loss

            work = self._retain_work(place, retain)
            target = work.frozen if noise is None else work.frozen + noise[place].to(work.frozen)
            kept = self._branches.updated(work.trunk)
            loss = self._mean(kept, target, retain) * alpha
            self._differentiate(loss, gradients, len(pairs))
            with torch.no_grad():
                retain_measures = _measures(kept, target, retain)
                unmasked_retain = loss if not self._masked else _plain_mse(kept, target) * alpha
                columns = (
                    unmasked_forget,
                    unmasked_retain,
                    forget_measures[0],
                    retain_measures[0] * alpha,
                    forget_measures[1],
                    retain_measures[1],
                    forget_measures[2],
                    retain_measures[2],
                )
                measured.append(torch.stack([column.detach().float() for column in columns]))
        return gradients, torch.stack(measured).mean(dim=0)

    def _retain_work(self, place: int, retain: Batch) -> Retained:
        key, work = self._retained.get(place, (None, None))
        if work is None or key != retain.key:
            self._retained.pop(place, None)  # before the new one is computed, to hold one at a time
            trunk = self._branches.trunk(retain)
            work = Retained(trunk, self._branches.frozen(trunk, share=True))
            self._retained[place] = (retain.key, work)
        return work

    def _mean(self, activations: Tensor, target: Tensor, batch: Batch) -> Tensor:
        if not self._masked:
            return _plain_mse(activations, target)
        return F.mse_loss(*_real(activations, target, batch))

    def _differentiate(self, loss: Tensor, gradients: dict[str, Tensor], count: int) -> None:
        add_gradients(loss if count == 1 else loss / count, self._trained, gradients)


def _plain_mse(activations: Tensor, target: Tensor) -> Tensor:
    """Mean over batch, positions with padding, and hidden dimensions."""
    return F.mse_loss(activations, target.expand_as(activations))


def _real(activations: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Activations of a batch's real tokens and their target, float32 [..., d]."""
    targets = target.expand_as(activations)
    if batch.layout is not None:
        return activations.float(), targets.float()
    real = batch.attention_mask.bool()
    return activations[real].float(), targets[real].float()


def _measures(activations: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Over real tokens: mean squared difference, mean norm of the activations, mean cosine with the target."""
    states, aims = _real(activations, target, batch)
    norms = states.norm(dim=-1)
    cosines = (states * aims).sum(-1) / (norms * aims.norm(dim=-1)).clamp_min(1e-12)
    return F.mse_loss(states, aims), norms.mean(), cosines.mean()
