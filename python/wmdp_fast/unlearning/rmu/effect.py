"""What a run has done to activations, and whether that is enough to speak of unlearning.

A run whose learning rate is too low ends like any other: the losses are finite and a checkpoint is written, but forget
activations are where they were. Whether they moved can be measured at the steered layer, without any question.

Where the bounds come from. In the published run on Zephyr-7B (the log in the notebooks of centerforaisafety/wmdp),
after which WMDP was near chance and MMLU a point lower, the cosine between forget activations and the control vector
ended at 0.2 to 0.4, their norm at two to three times what it was, and the cosine between retain activations and the
original model's at 0.996. A part `c` of an activation's length is `c * c` of what the next layer sees, since it
normalizes: a cosine of 0.1 is 1 % of it. So below 0.1 nothing was unlearned, and below 0.2 less than in any run that is
known to have worked; retain activations with a cosine of less than 0.9 to the original's have lost a fifth (1 - 0.81)
of themselves. These say that a run failed. They do not say that one worked: that is for accuracy on questions to tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from wmdp_fast.unlearning.verdict import Remedies, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Rise of the mean cosine to the control vector below which nothing happened, and below which little did.
NOTHING, LITTLE = 0.1, 0.2
# Mean cosine of retain activations to the original ones below which they were not kept.
KEPT = 0.9

_REMEDIES = Remedies(
    weak="Raise the learning rate or the number of steps (`wmdp-fast layers --pilot` tries some)",
    damaged="Raise alpha, give more retain text, or lower the learning rate",
    both="Give more retain text, raise alpha with the learning rate, or steer another layer",
)

Forgetting = Literal["steered", "weakly steered", "not steered"]


@dataclass(frozen=True)
class Effect:
    """How activations at the steered layer differ from those of the model before.

    Means are over real tokens without the first of each document, whose activation is many times larger in most models
    and the same in all documents.

    Attributes:
        topic: Number of the topic.
        unseen: Whether the forget documents were not trained on; else they are the last that were.
        steering_coeff: Length of the control vector.
        forget_cosine: Mean cosine of forget activations with the control vector.
        forget_cosine_before: The same of the model before.
        forget_norm: Mean norm of forget activations.
        forget_norm_before: The same of the model before.
        retain_cosine: Mean cosine of retain activations with those of the model before.
        retain_norm: Mean norm of retain activations.
        retain_norm_before: The same of the model before.
    """

    topic: int
    unseen: bool
    steering_coeff: float
    forget_cosine: float
    forget_cosine_before: float
    forget_norm: float
    forget_norm_before: float
    retain_cosine: float
    retain_norm: float
    retain_norm_before: float

    @property
    def figures(self) -> dict[str, float]:
        """What was measured."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)}

    @property
    def forgetting(self) -> Forgetting:
        """Whether forget activations turned towards the control vector."""
        rise = self.forget_cosine - self.forget_cosine_before
        return "not steered" if rise < NOTHING else "weakly steered" if rise < LITTLE else "steered"

    @property
    def retain_kept(self) -> bool:
        """Whether retain activations are still those of the model before, more or less."""
        return self.retain_cosine >= KEPT

    @property
    def text(self) -> str:
        """The figures as a sentence's part."""
        return (
            f"on {'unseen' if self.unseen else 'the last'} forget documents the cosine to the control vector is"
            f" {self.forget_cosine:.3f} (before {self.forget_cosine_before:.3f}) and the norm {self.forget_norm:.3g}"
            f" (before {self.forget_norm_before:.3g}, control vector {self.steering_coeff:.3g}); that of retain"
            f" activations to the original ones is {self.retain_cosine:.3f}"
        )

    def to_json(self) -> dict[str, Any]:
        """All figures and what follows from them."""
        return {**asdict(self), "forgetting": self.forgetting, "retain_kept": self.retain_kept}


def effect_of(
    topic: int,
    control: Tensor,
    forget: tuple[Tensor, Tensor],
    forget_mask: Tensor,
    retain: tuple[Tensor, Tensor],
    retain_mask: Tensor,
    *,
    unseen: bool,
) -> Effect:
    """Compares activations [B, S, d] of the trained and of the original model, in this order.

    Args:
        topic: Its number.
        control: Its control vector, coefficient included: [1, 1, d].
        forget: Activations of forget documents.
        forget_mask: Which of them are real tokens, [B, S].
        retain: Activations of retain documents.
        retain_mask: Likewise.
        unseen: Whether the forget documents were not trained on.
    """
    now, before = (_tokens(one, forget_mask) for one in forget)
    kept, original = (_tokens(one, retain_mask) for one in retain)
    aim = control.reshape(1, -1).to(now)
    figures = torch.stack(
        [
            aim.norm(),
            _cosine(now, aim),
            _cosine(before, aim),
            now.norm(dim=-1).mean(),
            before.norm(dim=-1).mean(),
            _cosine(kept, original),
            kept.norm(dim=-1).mean(),
            original.norm(dim=-1).mean(),
        ]
    )
    return Effect(topic, unseen, *figures.tolist())


def advice(effects: Sequence[Effect]) -> str | None:
    """What is wrong with a run and what to change, or None if nothing is.

    Args:
        effects: Of each topic.
    """
    weak = [one for one in effects if one.forgetting != "steered"]
    moved = [one for one in effects if not one.retain_kept]
    unlearned = "nothing" if weak and weak[0].forgetting == "not steered" else "little"
    return verdict(effects, weak=weak, damaged=moved, remedies=_REMEDIES, verb="steer", unlearned=unlearned)


def _tokens(activations: Tensor, mask: Tensor) -> Tensor:
    """The activations that count, [tokens, d] in float32."""
    real = mask.bool()
    counted = real & (real.cumsum(dim=1) > 1)
    return activations.detach()[counted if bool(counted.any()) else real].float()


def _cosine(activations: Tensor, others: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(activations, others, dim=-1).mean()
