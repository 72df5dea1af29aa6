"""What a method of unlearning is, to the trainer.

The trainer loads as much of the model as the method's configuration asks for, cuts batches, updates weights, evaluates,
stops, saves and resumes, and writes the checkpoint, its delta and its card. A method says what the gradients of a step
are, what it has to remember between steps, and what is to be told of it. It is made by its configuration
(`TrainingConfig.method`), so a new one is a subclass of that and a class with these members: gradient ascent, NPO,
SimNPO, RMU and its variants, RR, ELM. `LanguageModel` is what those with losses on logits work with. One that needs the
original model's answers computes them in `prepare`, or runs the model in `Setup.as_original`. A perturbation such as
SAM's is made and undone within `step`.

A method without steps (`one_shot` in its configuration) changes the trained parameters itself, when `step` is called
for the only time; what it returns has no gradients.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.unlearning.activation_cache import TrunkCache
    from wmdp_fast.unlearning.batch_reader import BatchReader
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.layers_below import LayersBelow
    from wmdp_fast.unlearning.shared_batches import SharedBatches


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a method works on.

    Attributes:
        name: The model's, for messages.
        decoder: The model without its head, or its first layers.
        model: The whole model, or None if only its first layers are there (`TrainingConfig.depth`).
        trained: The parameters that are trained, by their names in `decoder.model`; what lies outside it, as a head, by
            its name in `model`. Nothing else needs gradients. With LoRA they are the factors, in float32.
        originals: Their original values.
        as_original: Inside this context the model is the original one, also where the trained model is one with the
            weights that will be saved. Not while a gradient through it is still to be computed.
        batches: Cuts batches out of the corpora.
        total_steps: Steps of the run, for schedules.
        cache: Where activations are kept that training does not change, or None.
        tokenizer: The model's, or None if it has none: tokens may be given ready-made.
        below: The layers below the first trained one, if they are not in memory but read when they are run, which only
            RMU does; else None.
        shared: The processes that share batches, each holding a part of the model's layers; None if this one has all.

    Example:
        >>> import torch
        >>> import wmdp_fast as wf
        >>> from wmdp_fast import demo
        >>> class Shrink(wf.Method):
        ...     metrics = ("num_shrunk",)
        ...
        ...     def __init__(self, setup):
        ...         self.setup = setup
        ...
        ...     def step(self, given):
        ...         for name, parameter in self.setup.trained.items():
        ...             parameter.data = 0.9 * self.setup.originals[name]
        ...         return wf.StepOutput({}, torch.tensor([float(len(self.setup.trained))]))
        ...
        ...     def card(self, record):
        ...         return wf.CardText(method="shrinking", summary="Weights were shrunk.", change="", ways_back=())
        >>> class ShrinkConfig(wf.SSDConfig):  # the settings of another method without steps
        ...     method_name = "shrink"
        ...
        ...     def method(self, setup):
        ...         return Shrink(setup)
        >>> corpora = {domain: demo.corpus_path(domain) for domain in ("forget", "retain")}
        >>> result = wf.unlearn(demo.model_path(), **corpora, config=ShrinkConfig(dtype="float32"), progress=False)
        >>> result.metrics[0]["num_shrunk"]  # `mlp.down_proj` in each of six layers
        6.0
    """

    name: str
    decoder: Decoder
    model: PreTrainedModel | None
    trained: Mapping[str, nn.Parameter]
    originals: Mapping[str, Tensor]
    as_original: Callable[[], AbstractContextManager[None]]
    batches: BatchReader
    total_steps: int
    cache: TrunkCache | None
    tokenizer: PreTrainedTokenizerBase | None = None
    below: LayersBelow | None = None
    shared: SharedBatches | None = None


@dataclass(frozen=True)
class StepInput:
    """What a step is about.

    Attributes:
        index: Steps done before.
        topic: The step's topic.
        pairs: A forget and a retain batch for each part whose mean loss makes the step.

    Example:
        >>> from wmdp_fast import StepInput
        >>> given = StepInput(index=5, topic=1, pairs=())
        >>> given.index, given.topic  # the sixth step, on the second of two forget corpora
        (5, 1)
    """

    index: int
    topic: int
    pairs: Sequence[tuple[Batch, Batch]]


@dataclass(frozen=True)
class StepOutput:
    """What a method makes of a step.

    Attributes:
        gradients: By parameter, each of its shape; empty from a method that has changed the weights itself.
        measured: The values of `Method.metrics`, float32 [metrics] on the device; from before the weights change.
        tokens: How many tokens the step ran, padding included; None for those of the batches that were given.

    Example:
        >>> import torch
        >>> from wmdp_fast import StepOutput
        >>> gradients = {"layers.0.mlp.down_proj.weight": torch.zeros(8, 16)}
        >>> made = StepOutput(gradients, torch.tensor([2.5, 0.1]))  # of a method whose `metrics` are two names
        >>> made.measured.tolist()
        [2.5, 0.10000000149011612]
    """

    gradients: dict[str, Tensor]
    measured: Tensor
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class MethodState:
    """What a method has to remember from step to step, besides the weights and what follows from its input.

    Attributes:
        tensors: By name; names do not begin with `weights.`, `first.`, `second.`, `master.` or `best.`.
        values: Whatever else, as JSON has it.

    Example:
        >>> import torch
        >>> from wmdp_fast import MethodState
        >>> state = MethodState(tensors={"reference_nll": torch.zeros(3)}, values={"ceiling": 7.5})
        >>> state.values["ceiling"]
        7.5
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: Any = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a method found at the end of a run, with the weights as they are saved.

    Attributes:
        record: Entries of `unlearn.json`.
        settings: Those of them that the delta repeats.
        delta: Entries of the delta's metadata.
        figures: Numbers that must be finite, or the run has diverged.
        verdict: What is wrong with the run, in a sentence's part that names the remedy; None if nothing is.

    Example:
        >>> from wmdp_fast import Findings
        >>> nll = {"forget_nll": 3.1}
        >>> found = Findings(record=nll, figures=nll, verdict="this run unlearned little: raise max_steps")
        >>> found.verdict
        'this run unlearned little: raise max_steps'
    """

    record: dict[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    delta: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None


@dataclass(frozen=True, kw_only=True)
class CardText:
    """What a model card says of a method.

    Attributes:
        method: Its name with its source, such as `RMU (Li et al. 2024, arXiv:2403.03218)`.
        summary: What was done to the model, as sentences.
        change: What that changes, as the sentence after "The knowledge has not been deleted."
        ways_back: What is known to undo it, a list item each.
        settings: Further rows of the settings table.
        delta: What the delta has besides changed tensors, or an empty text.

    Example:
        >>> from wmdp_fast import CardText
        >>> card = CardText(
        ...     method="gradient ascent",
        ...     summary="Forget text was made unlikely.",
        ...     change="Much of it comes back with little training.",
        ...     ways_back=("fine-tuning on a few texts",),
        ... )
        >>> card.settings
        ()
    """

    method: str
    summary: str
    change: str
    ways_back: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()
    delta: str = ""


class Method(Protocol):
    """A method of unlearning on one model.

    A subclass needs `metrics`, `step` and `card`; what else it does not define is as said here.

    Attributes:
        metrics: Names of what a step measures. The first two are shown while the run goes on.

    Example:
        >>> import wmdp_fast as wf
        >>> from wmdp_fast import demo
        >>> class Ascent(wf.Method):
        ...     metrics = ("forget_loss",)
        ...
        ...     def __init__(self, setup):
        ...         self.model = wf.LanguageModel(setup)
        ...
        ...     def step(self, given):
        ...         gradients = {}
        ...         for forget, _retain in given.pairs:
        ...             loss = -self.model.losses(forget).mean() / len(given.pairs)
        ...             gradients = self.model.gradients(loss, into=gradients)
        ...         return wf.StepOutput(gradients, -loss.detach().reshape(1))
        ...
        ...     def card(self, record):
        ...         return wf.CardText(method="ascent", summary="Text was made unlikely.", change="", ways_back=())
        >>> class AscentConfig(wf.TrainingConfig):
        ...     method_name = "ascent"
        ...
        ...     def method(self, setup):
        ...         return Ascent(setup)
        ...
        ...     def trained_layers(self, num_layers, /):
        ...         return range(num_layers)
        >>> config = AscentConfig(learning_rate=1e-2, max_steps=8, max_length=48, dtype="float32")
        >>> corpora = {domain: demo.corpus_path(domain) for domain in ("forget", "retain")}
        >>> result = wf.unlearn(demo.model_path(), **corpora, config=config, progress=False)
        >>> first, *_, last = (row["forget_loss"] for row in result.metrics)
        >>> last > first
        True
    """

    metrics: tuple[str, ...]

    def why_padded(self, _padded: Batch, _packed: Batch, /) -> str | None:
        """Why documents must run with padding, tried on some of them in both forms; None if they may be packed.

        Unless defined, they must: nobody has tried.
        """
        return "the method was not written for documents without padding"

    def prepare(self) -> None:
        """Finds what is fixed for the run: nothing. Called once with the original weights, unless `restore` is."""
        return  # An empty body would be an abstract one to mypy.

    def restore(self, _state: MethodState, /) -> None:
        """Takes over from an interrupted run what its `state` was: nothing."""
        return

    def state(self) -> MethodState:
        """What `restore` needs for the run to end in the same bits: nothing."""
        return MethodState()

    def describe(self) -> str | None:
        """What `prepare` found, as a line for the user, or None, which it is unless defined."""
        return None

    @abstractmethod
    def step(self, given: StepInput) -> StepOutput:
        """The gradients of a step's mean loss; the trainer clips and applies them."""

    def findings(self, _steps: int, /) -> Findings:
        """What is to be told of the model after so many steps, with the weights as they are: nothing."""
        return Findings()

    @abstractmethod
    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says. `record` is the content of `unlearn.json`."""
