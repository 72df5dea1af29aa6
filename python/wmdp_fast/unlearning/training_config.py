"""The settings that every method of unlearning has, and what a method says of itself before a model is loaded."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from wmdp_fast.exceptions import ModelError
from wmdp_fast.prompts.documents import CorpusKind  # noqa: TC001 (hints are looked at as the program runs)
from wmdp_fast.unlearning.checks import check_number as check_number
from wmdp_fast.unlearning.checks import check_whole as check_whole
from wmdp_fast.unlearning.schedule import SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.unlearning.lora import LoRA
    from wmdp_fast.unlearning.method import Method, Setup

DTYPES = ("auto", "float32", "bfloat16", "float16")
SAVE_DTYPES = (*DTYPES, "checkpoint")


@dataclass(frozen=True)
class SearchAxis:
    """A setting that a sweep can vary.

    Attributes:
        name: The field of the configuration.
        whole: Whether it is a whole number; others are drawn evenly on a logarithmic scale.
        zero_allowed: Whether a range may begin at 0.
        automatic: Whether it takes `"auto:FACTOR"`.

    Example:
        >>> from wmdp_fast import RMUConfig, SearchAxis
        >>> SearchAxis("ceiling") in RMUConfig.search_axes
        False
        >>> [axis.name for axis in RMUConfig.search_axes if axis.automatic]
        ['steering_coeff']
    """

    name: str
    whole: bool = False
    zero_allowed: bool = False
    automatic: bool = False


@dataclass(frozen=True)
class Topic:
    """The settings of one forget corpus and its retain corpus.

    Attributes:
        max_length: Maximum tokens of a forget document.
        raw_lines: Whether the forget corpus is read as raw lines.
    """

    max_length: int
    raw_lines: bool


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(ABC):
    """The settings of a run. A method adds its own in a subclass, whose `method` makes the method itself.

    Subclasses import no torch, so that settings can be checked before anything is loaded.

    Attributes:
        method_name: What records, deltas and cards call the method.
        one_shot: Whether the method changes the weights itself, in one step, without an optimizer.
        optimizer: The arithmetic of a step: `"adamw_hf"`, AdamW as transformers had it until 4.x, which the published
            RMU runs used, or `"adamw_torch"`, that of `torch.optim.AdamW`.
        search_axes: What can be swept, in the order of a grid: the last one changes fastest.
        per_topic: Fields that may be a tuple with a value for each topic.
        forget_kinds: What forget corpora may be: `"documents"`, `"answers"` (prompts with responses, whose loss is of
            the response: `Batch.counted`), or both.
        retain_kinds: Likewise for retain corpora.
        why_kinds: Why another kind will not do, as a sentence's part.
        shares_batches: Whether several processes can share the method's batches (`parallel`): whether all that it asks
            of the model are losses and divergences of `LanguageModel`, and gradients of these, or it sees to the
            exchange itself (`Setup.shared`).
        activation_metrics: Metrics of a step that depend on the model's activations alone: one that is infinite or NaN
            in the first step is the model's fault.
        parameters: Which parameters of the trained layers: a role (`mlp.down_proj`, `self_attn.o_proj`, `mlp`, ...) or
            a regular expression that is searched in names such as `mlp.up_proj.weight`; or `all` for every parameter of
            the model, embeddings, norms and head included, where the method runs the whole model.
        learning_rate: Of AdamW: the largest one of the run.
        schedule: What becomes of the learning rate after the warm-up: `"constant"`, or `"linear"` to fall to 0.
        warmup: Share of the steps in which the learning rate rises from 0, the first step's.
        weight_decay: Of AdamW, decoupled; on matrices, not on norms and biases.
        batch_size: Documents of each kind in a forward pass.
        max_steps: Optimizer steps over all topics; fewer if the corpora end before.
        epochs: How many times the corpora may be gone through.
        max_length: Maximum tokens of a forget document, per topic.
        retain_max_length: Maximum tokens of a retain document.
        seed: Of everything that is drawn.
        grad_accum: Batches of each kind whose mean loss makes one step.
        grad_clip: Largest norm of the gradient over all trained parameters; None to leave it.
        master_weights: Whether the optimizer keeps weights and moments in float32.
        dtype: To compute in: `"auto"` (the checkpoint's), `"float32"`, `"bfloat16"` or `"float16"`.
        save_dtype: Of the changed tensors on disk: `"checkpoint"` (that of the checkpoint), a type as in `dtype`, or
            `"auto"`: the checkpoint's, unless rounding to it would change weights by more than a tenth of what training
            did; then the type that they were trained in.
        save_every: Steps between saved states, from which `resume` goes on; 0 for none.
        min_chars: Documents of at most so many characters are left out of the corpora.
        raw_lines: Whether forget corpora are read as raw JSON lines, per topic.
        field: Key of the text in a corpus record.
        chat_template: Whether prompts of a corpus of prompts and responses go through the tokenizer's chat template.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> from wmdp_fast import Method, SearchAxis, Setup, TrainingConfig
        >>> @dataclass(frozen=True, kw_only=True)
        ... class CeilingConfig(TrainingConfig):
        ...     method_name: ClassVar[str] = "ceiling"
        ...     search_axes: ClassVar[tuple[SearchAxis, ...]] = (SearchAxis("ceiling"), *TrainingConfig.search_axes)
        ...     ceiling: float = 6.0
        ...
        ...     def method(self, setup: Setup) -> Method:
        ...         raise NotImplementedError  # `Method` shows one
        ...
        ...     def trained_layers(self, num_layers: int, /) -> range:
        ...         return range(num_layers // 2)
        >>> config = CeilingConfig(ceiling=8.0, learning_rate=1e-5)
        >>> config.trained_layers(32), config.depth  # of the whole model, since no depth is named
        (range(0, 16), None)
        >>> next(iter(config.to_json()))
        'ceiling'
    """

    method_name: ClassVar[str]
    one_shot: ClassVar[bool] = False
    optimizer: ClassVar[Literal["adamw_hf", "adamw_torch"]] = "adamw_hf"
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (SearchAxis("learning_rate"), SearchAxis("max_steps", whole=True))
    per_topic: ClassVar[tuple[str, ...]] = ("max_length", "raw_lines")
    activation_metrics: ClassVar[tuple[str, ...]] = ()
    forget_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents",)
    retain_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents",)
    why_kinds: ClassVar[str] = "its loss is of every token"
    shares_batches: ClassVar[bool] = False

    parameters: str = "mlp.down_proj"
    learning_rate: float = 5e-5
    schedule: Literal["constant", "linear"] = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 4
    max_steps: int = 150
    epochs: int = 1
    max_length: int | tuple[int, ...] = 512
    retain_max_length: int = 512
    seed: int = 42
    grad_accum: int = 1
    grad_clip: float | None = None
    master_weights: bool = False
    dtype: str = dataclasses.field(default="auto", metadata={"choices": DTYPES})
    save_dtype: str = dataclasses.field(default="auto", metadata={"choices": SAVE_DTYPES})
    save_every: int = 50
    min_chars: int = 0
    raw_lines: bool | tuple[bool, ...] = False
    field: str = "text"
    chat_template: bool = False

    def __post_init__(self) -> None:
        for name in self.per_topic:
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        self._check_numbers()
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.save_dtype not in SAVE_DTYPES:
            raise ValueError(f"save_dtype must be checkpoint or one of {', '.join(DTYPES)}, not {self.save_dtype!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if not self.parameters:
            raise ValueError("parameters must name a role such as mlp.down_proj, or be a regular expression")

    @abstractmethod
    def method(self, setup: Setup) -> Method:
        """The method, for a model whose weights are the original ones."""

    @abstractmethod
    def trained_layers(self, num_layers: int, /) -> Sequence[int]:
        """The layers with trained parameters, of a model of so many, in ascending order."""

    @property
    def depth(self) -> int | None:
        """How many of the first layers the method runs; None if it needs the whole model with its head."""
        return None

    @property
    def lora(self) -> LoRA | None:
        """The factors that are trained in place of `parameters`, if any."""
        return None

    @property
    def save_adapter(self) -> bool:
        """Whether factors are saved as an adapter."""
        return False

    @property
    def depends_on_total(self) -> bool:
        """Whether a step depends on how many are to come; then runs of different lengths share nothing."""
        return self.schedule != "constant" or self.warmup > 0

    @property
    def reference(self) -> bool:
        """Whether padding counts in the loss and steps are counted as in the program that is reproduced."""
        return False

    def topics(self, count: int) -> Sequence[Topic]:
        """The settings of each of `count` topics.

        Raises:
            ValueError: A sequence of settings is not as long as there are topics.
        """
        columns = self.columns(count)
        return [Topic(*row) for row in zip(columns["max_length"], columns["raw_lines"], strict=True)]

    def documents_read(self, num_topics: int, /) -> int:
        """Most documents of a corpus that a run on so many topics gets to."""
        turns = self.max_steps if self.reference else -(-self.max_steps // num_topics)
        return turns * self.grad_accum * self.batch_size

    def what_to_lower(self, *, losses_alone: bool) -> list[str]:
        """What to change in a run that diverged, the likeliest first.

        Args:
            losses_alone: Whether the losses were too large before any weight was changed.
        """
        return [] if losses_alone else [f"lower the learning rate (now {self.learning_rate:g})"]

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON has them; the method's own first."""
        common = {one.name for one in dataclasses.fields(TrainingConfig)}
        values = asdict(self)
        if self.lora is not None:
            values["lora"] = str(self.lora)
            # It says what is trained.
            del values["parameters"]
        return dict(sorted(values.items(), key=lambda item: item[0] in common))

    def columns(self, count: int) -> dict[str, tuple[Any, ...]]:
        """Of each setting in `per_topic` its values for `count` topics.

        Raises:
            ValueError: A sequence of settings is not as long as there are topics.
        """
        columns = {}
        for name in self.per_topic:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != count:
                raise ValueError(
                    f"{name} has {len(value)} values for {count} forget corpora; give one for all, or one for each"
                )
            columns[name] = value if isinstance(value, tuple) else (value,) * count
        return columns

    def check_depth(self, name: str, num_layers: int) -> None:
        """Makes sure that a model of so many layers has what the method runs and trains.

        Raises:
            ModelError: It has too few layers.
            ValueError: All parameters are to be trained, and the method does not run all layers.
        """
        if self.depth is not None and self.parameters == "all":
            raise ValueError(
                f"parameters all is for methods that run the whole model; {self.method_name} runs its first"
                f" {self.depth} layers. Name a role such as mlp, or a regular expression"
            )
        if self.depth is not None and self.depth > num_layers:
            raise ModelError(
                f"{name} has {num_layers} layers, 0 to {num_layers - 1}; layer {self.depth - 1} does not exist;"
                " set the layers for this model, e.g. by layer_id (--layer-id); `wmdp-fast layers` suggests one"
            )

    def _check_numbers(self) -> None:
        for name in ("batch_size", "max_steps", "epochs", "retain_max_length", "grad_accum"):
            check_whole(name, getattr(self, name), least=1)
        for name in ("save_every", "min_chars"):
            check_whole(name, getattr(self, name), least=0)
        for value in each(self.max_length):
            check_whole("max_length", value, least=1)
        check_number("learning_rate", self.learning_rate)
        for name in ("warmup", "weight_decay"):
            check_number(name, getattr(self, name), zero_allowed=True)
        if self.warmup >= 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to below 1, not {self.warmup!r}")
        if self.grad_clip is not None:
            check_number("grad_clip", self.grad_clip)


def each(value: Any) -> tuple[Any, ...]:
    """The values of a setting that may be per topic."""
    return value if isinstance(value, tuple) else (value,)
