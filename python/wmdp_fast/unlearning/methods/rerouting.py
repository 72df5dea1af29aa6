"""RR on a model: its first layers run with the weights as they are and with the original ones, each batch once."""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from wmdp_fast.exceptions import what_was_raised
from wmdp_fast.models.attention.packed import NotPackableError, packed_attention, packed_batch
from wmdp_fast.models.decoder import record_outputs
from wmdp_fast.models.fused.lean_gates import LEAN_GATES
from wmdp_fast.models.fused.linear import LINEAR_LAYERS
from wmdp_fast.models.fused.trials import Trials, replaced_modules
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.padded import is_out_of_memory
from wmdp_fast.unlearning.gradients import add_gradients
from wmdp_fast.unlearning.method import CardText, Findings, Method, StepOutput
from wmdp_fast.unlearning.seeds import normal_noise
from wmdp_fast.unlearning.verdict import Remedies, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from wmdp_fast.models.decoder import LayerArguments
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import Setup, StepInput

# Length of the noise that the first step starts with, as a share of that of the activation.
NOISE = 0.01

# Of forget activations the mean cosine to the original ones above which nothing was rerouted; of retain activations the
# mean distance, as a share of their length, above which they were not kept. What is left of an activation for the next
# layer, which normalizes, is the square of its cosine: 0.81 of it at a cosine of 0.9, which a distance of 0.44 means.
NOTHING, DAMAGED = 0.9, 0.44

_CHANGE = """\
Weights were changed so that activations on forget data point elsewhere than they did, which the layers above make
nothing of; those layers still hold what they held."""

_WAYS_BACK = (
    """\
by fine-tuning: after a short training on forget text models unlearned so had all of it back, while unrelated text
  brought back little (arXiv:2510.07626)""",
    "by several turns of conversation (arXiv:2408.15221)",
    "by undoing the change of the first layers' weights, if the original model is at hand",
    "reading layers below the rerouted ones shows it still there",
)

_REMEDIES = Remedies(
    weak="Raise the learning rate or the number of steps",
    damaged="Lower the learning rate, or give more steps or more retain text",
    both="Give more retain text, or other target layers",
)


@dataclass(frozen=True)
class Effect:
    """How activations differ from those of the model before, on average over layers and tokens.

    Attributes:
        topic: Number of the topic.
        unseen: Whether the forget documents were not trained on; else they are the last that were.
        forget_cosine: Cosine of target layers' outputs with the original ones on forget documents; below 0 counts as 0.
        retain_distance: Distance of all layers' outputs from the original ones on retain documents, as a share of
            their length.
    """

    topic: int
    unseen: bool
    forget_cosine: float
    retain_distance: float

    @property
    def rerouted(self) -> bool:
        """Whether forget activations point elsewhere."""
        return self.forget_cosine <= NOTHING

    @property
    def retain_kept(self) -> bool:
        """Whether retain activations are still those of the model before, more or less."""
        return self.retain_distance <= DAMAGED

    @property
    def text(self) -> str:
        """The figures as a sentence's part."""
        return (
            f"on {'unseen' if self.unseen else 'the last'} forget documents the cosine of activations to the original"
            f" ones is {self.forget_cosine:.3f}; those on retain documents have moved by {self.retain_distance:.3g} of"
            " their length"
        )

    def to_json(self) -> dict[str, Any]:
        """All figures and what follows from them."""
        return {**asdict(self), "rerouted": self.rerouted, "retain_kept": self.retain_kept}


class LayerOutputs:
    """The outputs of a model's first layers on the real tokens of a batch.

    Layers below the first trained one run once for both, the trained model and the original one.

    Args:
        setup: What is worked on.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, self._decoder = setup, setup.decoder
        self._decoder.refuse_other_orders()
        # Layers that processes hold together have no whole weights to be tried with until they run.
        self._parts = (LINEAR_LAYERS, LEAN_GATES) if setup.shared is None else ()
        ours = {id(parameter) for parameter in setup.trained.values()}
        holds = [any(id(parameter) in ours for parameter in layer.parameters()) for layer in self._decoder.layers]
        self.first = holds.index(True)
        self._trials = Trials()
        self._takes_positions = "position_ids" in inspect.signature(self._decoder.model.forward).parameters

    def now_and_before(self, batch: Batch, layers: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of some layers with the weights as they are, and the original ones.

        Args:
            batch: Documents.
            layers: Their numbers, ascending, none below the first trained one.

        Returns:
            For each layer float32 [N, d], of the N real tokens; the first with gradients where these are on.
        """
        stop = layers[-1] + 1
        inputs = dict(batch.inputs)
        if batch.layout is None and self._takes_positions:
            # Those of a document by itself; left to themselves, models count the padding before it.
            inputs["position_ids"] = (batch.attention_mask.cumsum(dim=1) - 1).clamp_min(0)
        with self._running(batch, stop):
            with torch.no_grad():
                entering, arguments = self._decoder.run_to(self.first, stop, inputs)
                with self._setup.as_original():
                    before = self._outputs(batch, layers, entering, arguments)
            return self._outputs(batch, layers, entering, arguments), before

    def _outputs(
        self, batch: Batch, layers: Sequence[int], entering: Tensor, arguments: Mapping[int, LayerArguments]
    ) -> list[Tensor]:
        real = batch.attention_mask.bool()
        with record_outputs([self._decoder.layers[index] for index in layers]) as outputs:
            self._decoder.run_layers(self.first, layers[-1] + 1, entering, arguments)
        # Packed, all tokens are real, and none need be copied.
        return [(output.flatten(0, 1) if batch.layout is not None else output[real]).float() for output in outputs]

    @contextmanager
    def _running(self, batch: Batch, stop: int) -> Iterator[None]:
        these = nn.ModuleList(self._decoder.layers[index] for index in range(stop))
        # No other parts are replaced: they have no gradients, and both models must differ in nothing but weights.
        with replaced_modules(these, self._parts, self._trials):
            if batch.layout is None:
                yield
            else:
                with packed_attention(self._decoder.model), packed_batch(batch.layout):
                    yield


class Rerouting(Method):
    """RR on one model.

    Where the trained model is still the original one, the forget loss is at its maximum and its gradient is 0: the
    published code leaves that point by whatever rounding does. Here the first step compares with original activations
    that have a little noise, so that a seed means the same run everywhere.

    Args:
        setup: What it works on.
        target_layers: Layers whose outputs are rerouted.
        coefficient: The sum of the weights of both terms.
        seed: Of the noise.

    Attributes:
        metrics: Both terms of the loss, weights included, and without them: the cosine, and the distance.
    """

    metrics: tuple[str, ...] = ("forget_loss", "retain_loss", "forget_cosine", "retain_distance")

    def __init__(self, setup: Setup, target_layers: Sequence[int], coefficient: float, *, seed: int) -> None:
        self._setup, self._coefficient, self._seed = setup, coefficient, seed
        self._targets = sorted(target_layers)
        self._outputs = LayerOutputs(setup)
        # Those below are the same in both models: they count in the mean, as a distance of 0.
        self._held = range(self._outputs.first, self._targets[-1] + 1)
        self._moved = False

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """Why documents must be padded, activations having been tried both ways; None if they are the same."""
        with computing(), torch.no_grad():
            expected, _ = self._outputs.now_and_before(padded, self._held)
            try:
                found, _ = self._outputs.now_and_before(packed, self._held)
            except NotPackableError as error:
                return str(error)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                return f"tried without padding, {what_was_raised(error)}"
        # Half the digits of the dtype: batches of another shape round differently.
        differences = [(a - b).norm(dim=-1) / b.norm(dim=-1) for a, b in zip(found, expected, strict=True)]
        worst = float(torch.stack(differences).max())
        if worst <= torch.finfo(self._setup.decoder.model.dtype).eps ** 0.5:
            return None
        return f"packed, activations of a token differ by {worst:.1g} of their length from what they are with padding"

    def step(self, given: StepInput) -> StepOutput:
        """Gradients of both terms, and `metrics`."""
        share = given.index / (2 * self._setup.total_steps)
        forget_weight, retain_weight = self._coefficient * (1 - share), self._coefficient * share
        gradients: dict[str, Tensor] = {}
        measured = []
        for part, (forget, retain) in enumerate(given.pairs):
            # One after the other, so that one graph is alive at a time.
            cosine = self._forget_loss(forget, (given.index, part))
            self._differentiate(forget_weight * cosine / len(given.pairs), gradients)
            with nullcontext() if retain_weight else torch.no_grad():
                distance = self._retain_loss(retain)
            self._differentiate(retain_weight * distance / len(given.pairs), gradients)
            row = [forget_weight * cosine, retain_weight * distance, cosine, distance]
            measured.append(torch.stack(row).detach())
        return StepOutput(gradients, torch.stack(measured).mean(dim=0))

    def findings(self, steps: int) -> Findings:
        """How activations of each topic differ from those of the model before, with the weights as they are.

        Args:
            steps: How many have been done: forget documents beyond theirs are taken, if there are any.
        """
        effects = [self._effect(topic, steps) for topic in range(self._setup.batches.num_topics)]
        figures = {
            f"{key} {one.topic}": value
            for one in effects
            for key, value in asdict(one).items()
            if isinstance(value, float)
        }
        record = {"effects": [one.to_json() for one in effects]}
        return Findings(record=record, figures=figures, verdict=_advice(effects))

    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says of RR."""
        layers = ", ".join(map(str, self._targets))
        effects = [Effect(**{name: one[name] for name in Effect.__dataclass_fields__}) for one in record["effects"]]
        return CardText(
            method="RR, representation rerouting or circuit breakers (Zou et al. 2024, arXiv:2406.04313)",
            summary=(
                f"On the forget corpora, the outputs of layers {layers} were turned away from what they were; on the"
                " retain corpora, those of all layers up to there were held where they were."
                + "".join(f" {one.text[0].upper()}{one.text[1:]}." for one in effects)
            ),
            change=_CHANGE,
            ways_back=_WAYS_BACK,
        )

    def _forget_loss(self, batch: Batch, at: tuple[int, int]) -> Tensor:
        """`mean relu(cos(h, h0))`."""
        moved, num_tokens = self._has_moved(), int(batch.attention_mask.sum())

        def cosines(own: Batch, rows: slice) -> Tensor:
            now, before = self._outputs.now_and_before(own, self._targets)
            if not moved:
                seeds = [(self._seed, *at, index) for index in range(len(before))]
                before = [_with_noise(one, num_tokens, rows, seed) for one, seed in zip(before, seeds, strict=True)]
            return _cosines(now, before)

        return self._of_tokens(cosines, batch).relu().mean()

    def _retain_loss(self, batch: Batch) -> Tensor:
        """`mean ||h - h0||`, over all layers up to the highest target."""

        def distances(own: Batch, _rows: slice) -> Tensor:
            now, before = self._outputs.now_and_before(own, self._held)
            # By layer: those of all in one tensor, and its gradient, would be as much again as all that is recorded.
            return torch.stack([torch.linalg.vector_norm(a - b, dim=-1) for a, b in zip(now, before, strict=True)])

        found = self._of_tokens(distances, batch)
        return found.sum(dim=1).sum() / ((self._targets[-1] + 1) * found.shape[1])

    def _of_tokens(self, compute: Callable[[Batch, slice], Tensor], batch: Batch) -> Tensor:
        """Something of every token of a batch at some layers, `[L, N]`.

        Args:
            compute: Computes it for a batch, or for a part of one, whose place among the batch's tokens it is given.
            batch: The batch. Of one that processes share, this one computes its documents and gets all.
        """
        shared = self._setup.shared
        if shared is None:
            return compute(batch, slice(None))
        document, count = batch.document_of_tokens(), len(batch.documents)
        (part, is_own), rows = shared.part_of(batch), shared.rows_of_own(document, count)
        found = compute(part, rows if is_own else slice(0, int(part.attention_mask.sum())))
        return shared.gathered(found.t() if is_own else found.t()[:0], document, count).t()

    def _differentiate(self, loss: Tensor, gradients: dict[str, Tensor]) -> None:
        """Adds a loss's gradients to others, if it was to be differentiated."""
        if loss.requires_grad:
            add_gradients(loss, self._setup.trained, gradients, self._setup.shared)

    def _has_moved(self) -> bool:
        """Whether the model is another than the original one."""
        if not self._moved:
            originals = self._setup.originals
            self._moved = any(not torch.equal(one, originals[name]) for name, one in self._setup.trained.items())
        return self._moved

    @torch.no_grad()
    def _effect(self, topic: int, steps: int) -> Effect:
        batches = self._setup.batches
        index, unseen = batches.after(topic, steps)
        with computing():
            cosines = _cosines(*self._outputs.now_and_before(batches.forget(topic, index), self._targets))
            kept = self._outputs.now_and_before(batches.retain(topic, index), self._held)
        shares = [(now - before).norm(dim=-1) / before.norm(dim=-1) for now, before in zip(*kept, strict=True)]
        distance = torch.stack(shares).sum() / ((self._targets[-1] + 1) * len(shares[0]))
        return Effect(topic, unseen, *torch.stack([cosines.relu().mean(), distance]).tolist())


def _cosines(now: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """By layer and token, [L, N]."""
    return torch.stack([F.cosine_similarity(one, other, dim=-1) for one, other in zip(now, before, strict=True)])


def _with_noise(activations: Tensor, num_tokens: int, rows: slice, seed: Sequence[int]) -> Tensor:
    """Activations [n, d] with Gaussian noise of `NOISE` of their length, which depends on the seed alone.

    Args:
        activations: Those of some tokens of a batch.
        num_tokens: N, of the batch.
        rows: Which of its tokens they are.
        seed: The seed.
    """
    noise = normal_noise(torch.Size((num_tokens, activations.shape[1])), seed)[rows]
    size = NOISE / math.sqrt(activations.shape[1]) * torch.linalg.vector_norm(activations, dim=-1, keepdim=True)
    noisy: Tensor = activations + size * noise.to(activations.device)
    return noisy


def _advice(effects: Sequence[Effect]) -> str | None:
    """What is wrong with a run and what to change, or None if nothing is."""
    weak = [one for one in effects if not one.rerouted]
    damaged = [one for one in effects if not one.retain_kept]
    return verdict(effects, weak=weak, damaged=damaged, remedies=_REMEDIES, verb="reroute")
