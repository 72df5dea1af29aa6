"""RMU as a method that the trainer runs: losses at one layer, with the layers above it never loaded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.models.threads import computing
from wmdp_fast.unlearning import divergence
from wmdp_fast.unlearning.method import CardText, Findings, MethodState, StepInput, StepOutput
from wmdp_fast.unlearning.rmu.branches import Branches
from wmdp_fast.unlearning.rmu.card import card_text
from wmdp_fast.unlearning.rmu.effect import Effect, advice, effect_of
from wmdp_fast.unlearning.rmu.step import MEASURES, Step, control_vectors, mean_norm
from wmdp_fast.unlearning.seeds import normal_noise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import Setup
    from wmdp_fast.unlearning.rmu.topic import RMUTopic


@dataclass(frozen=True, kw_only=True)
class RMUFindings(Findings):
    """What RMU found.

    Attributes:
        steering_coeffs: Of each topic, as given or found.
        effects: Of each topic, how activations differ from those of the model before.
        control_vectors: Of each topic, steering coefficient included, [1, 1, d] on the CPU.
    """

    steering_coeffs: tuple[float, ...]
    effects: tuple[Effect, ...]
    control_vectors: tuple[Tensor, ...]


class RMU:
    """RMU on one model.

    Args:
        setup: What it works on.
        topics: The settings of each topic.
        layer_id: The layer whose output is steered.
        masked: Whether losses are over real tokens only.
        noise: Standard deviation of the noise on the retain target.
        seed: Of control vectors and noise.
    """

    metrics: tuple[str, ...] = MEASURES

    def __init__(
        self, setup: Setup, topics: Sequence[RMUTopic], layer_id: int, *, masked: bool, noise: float, seed: int
    ) -> None:
        setup.decoder.refuse_other_orders()
        _warn_of_dropout(setup.decoder.model)
        self._setup, self._topics = setup, topics
        self._noise_scale, self._seed = noise, seed
        # The step at hand; None before the run has begun.
        self._at: int | None = None
        self._branches = Branches(
            setup.decoder, layer_id, setup.trained, setup.cache, setup.originals, setup.below, self._upcoming
        )
        self._step = Step(self._branches, setup.trained, masked=masked)
        self._coefficients: list[float] = []
        self._controls: list[Tensor] = []

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """Why activations of packed documents cannot be had, or are others; None if they are the same."""
        with computing():
            return self._branches.why_not_packed(padded, packed)

    def prepare(self) -> None:
        """Draws control vectors, and measures activations where the steering coefficient follows from them.

        Raises:
            ModelError: A coefficient that was measured is not finite or not above 0.
        """
        self._at = 0
        dtype = next(iter(self._setup.trained.values())).dtype
        units = control_vectors(len(self._topics), self._setup.decoder.hidden_size, dtype=dtype, seed=self._seed)
        self._coefficients = [self._coefficient(index) for index in range(len(self._topics))]
        divergence.check_base(self._setup.name, self._coefficients, dtype)
        device = self._setup.batches.device
        self._controls = [
            (unit * coefficient).to(device) for unit, coefficient in zip(units, self._coefficients, strict=True)
        ]

    def restore(self, state: MethodState) -> None:
        """Takes over coefficients and control vectors."""
        self._coefficients = list(state.values["steering_coeffs"])
        device = self._setup.batches.device
        self._controls = [state.tensors[f"control.{topic}"].to(device) for topic in range(len(self._topics))]

    def state(self) -> MethodState:
        """Coefficients and control vectors; noise follows from the seed and the step."""
        return MethodState(
            tensors={f"control.{index}": vector for index, vector in enumerate(self._controls)},
            values={"steering_coeffs": list(self._coefficients)},
        )

    def describe(self) -> str:
        """The coefficients as a line."""
        return "steering coefficients: " + ", ".join(f"{value:.4g}" for value in self._coefficients)

    def step(self, given: StepInput) -> StepOutput:
        """Gradients of `mse(h, c * u) + alpha * mse(h', h'_frozen)`, and `MEASURES`."""
        self._at = given.index
        if self._setup.below is not None:
            self._setup.below.give_back()
        gradients, measured = self._step.losses_and_gradients(
            given.pairs,
            self._controls[given.topic],
            self._topics[given.topic].alpha,
            noise=self._noise(given.pairs, given.index),
        )
        return StepOutput(gradients, measured)

    def findings(self, steps: int) -> RMUFindings:
        """How activations of each topic differ from those of the model before, with the weights as they are.

        Args:
            steps: How many have been done: documents beyond theirs are taken, if there are any.
        """
        effects = tuple(self._effect(topic, steps) for topic in range(len(self._topics)))
        controls = tuple(vector.cpu() for vector in self._controls)
        return RMUFindings(
            record={
                "steering_coeffs": list(self._coefficients),
                "effects": [one.to_json() for one in effects],
            },
            settings=("steering_coeffs",),
            delta={"control_vectors": tensor_file.as_text(controls)},
            figures={f"{key} {one.topic}": value for one in effects for key, value in one.figures.items()},
            verdict=advice(effects),
            steering_coeffs=tuple(self._coefficients),
            effects=effects,
            control_vectors=controls,
        )

    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says of RMU."""
        return card_text(record)

    def _coefficient(self, topic: int) -> float:
        settings = self._topics[topic]
        if settings.steering_coeff is not None:
            return float(settings.steering_coeff)
        batch = self._setup.batches.forget(topic, 0)
        with computing():
            activations = self._branches.frozen(self._branches.trunk(batch))
        return settings.auto_factor * mean_norm(activations, batch.attention_mask)

    def _effect(self, topic: int, steps: int) -> Effect:
        forget, retain, unseen = self._looked_at(topic, steps)
        activations = [self._branches.now_and_before(batch) for batch in (forget, retain)]
        return effect_of(
            topic,
            self._controls[topic],
            activations[0],
            forget.attention_mask,
            activations[1],
            retain.attention_mask,
            unseen=unseen,
        )

    def _looked_at(self, topic: int, steps: int) -> tuple[Batch, Batch, bool]:
        """What `_effect` is measured on, and whether its forget documents were not trained on."""
        batches = self._setup.batches
        index, unseen = batches.after(topic, steps)
        return batches.forget(topic, index, packed=False), batches.retain(topic, index, packed=False), unseen

    def _upcoming(self) -> Iterator[Batch]:
        """The batches that are yet to be run, in about that order."""
        if self._at is None:
            return
        setup = self._setup
        for step in range(self._at, setup.total_steps):
            for pair in setup.batches.pairs(step)[1]:
                yield from pair
        for topic in range(len(self._topics)):
            yield from self._looked_at(topic, setup.total_steps)[:2]

    def _noise(self, pairs: Sequence[tuple[Batch, Batch]], step: int) -> list[Tensor] | None:
        if self._noise_scale == 0.0:
            return None
        width = self._setup.decoder.hidden_size
        return [
            self._noise_scale * normal_noise(torch.Size((*retain.shape, width)), (self._seed, step, part))
            for part, (_, retain) in enumerate(pairs)
        ]


def _warn_of_dropout(model: nn.Module) -> None:
    """The branches share what dropout would make different, so it stays off, unlike in the original."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        warnings.warn(
            "the model has dropout, which the original RMU would leave on; here it is off",
            WmdpFastWarning,
            stacklevel=2,
        )
