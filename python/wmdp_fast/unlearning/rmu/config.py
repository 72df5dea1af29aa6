"""The settings of RMU, and what is wrong with them before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from wmdp_fast.unlearning.rmu.topic import RMUTopic
from wmdp_fast.unlearning.training_config import SearchAxis, TrainingConfig, check_number, check_whole, each

if TYPE_CHECKING:
    from wmdp_fast.unlearning.method import Setup
    from wmdp_fast.unlearning.rmu.method import RMU

Mode = Literal["reference", "masked"]

# Factor of Adaptive RMU (arXiv:2408.06223): the steering coefficient is so many times the mean activation norm.
AUTO_FACTOR = 5.0


@dataclass(frozen=True, kw_only=True)
class RMUConfig(TrainingConfig):
    """The settings of an unlearning run. What is per topic is one value for all topics, or a sequence of one for each.

    Loss of a step: `mse(h, c * u) + alpha * mse(h', h'_frozen)`, with h the output of layer `layer_id` on forget data
    and h' on retain data, u a random unit vector with positive entries, fixed for each topic.

    Attributes:
        layer_id: The layer, counted from 0, whose output is steered.
        update_layer_ids: Layers whose parameters are trained; None is `layer_id` and the two below it, or of RR all up
            to the highest target.
        parameters: Which of their parameters: a role (`mlp.down_proj`, `self_attn.o_proj`, `mlp`, ...) or a regular
            expression that is searched in names such as `mlp.up_proj.weight`.
        steering_coeff: c, per topic: a number, or `"auto"` or `"auto:FACTOR"` for so many times (5 times) the mean norm
            of the topic's first activations.
        alpha: Weight of the retain loss, per topic.
        learning_rate: Of AdamW: the largest one of the run.
        schedule: What becomes of the learning rate after the warm-up: `"constant"`, or `"linear"` to fall to 0. The
            published runs had neither.
        warmup: Share of the steps in which the learning rate rises from 0, the first step's.
        weight_decay: Of AdamW, decoupled; on matrices, not on norms and biases.
        batch_size: Documents of each kind in a forward pass.
        max_steps: Optimizer steps over all topics; fewer if the corpora end before.
        epochs: How many times the corpora may be gone through.
        max_length: Maximum tokens of a forget document, per topic.
        retain_max_length: Maximum tokens of a retain document.
        mode: `"reference"` takes the mean over padding too, as the original program does; `"masked"` over real tokens.
        retain_noise: Standard deviation of Gaussian noise on the retain target (RNA); 0 for none.
        seed: Of the control vectors and the noise.
        grad_accum: Batches of each kind whose mean loss makes one step.
        grad_clip: Largest norm of the gradient over all trained parameters; None to leave it.
        master_weights: Whether the optimizer keeps weights and moments in float32. The published runs did not.
        dtype: To compute in: `"auto"` (the checkpoint's), `"float32"`, `"bfloat16"` or `"float16"`.
        save_dtype: Of the changed tensors on disk: `"checkpoint"` (that of the checkpoint), a type as in `dtype`, or
            `"auto"`: the checkpoint's, unless rounding to it would change weights by more than a tenth of what training
            did; then the type that they were trained in.
        save_every: Steps between saved states, from which `resume` goes on; 0 for none.
        min_chars: Documents of at most so many characters are left out of the corpora.
        raw_lines: Whether forget corpora are read as raw JSON lines, per topic; the published cyber runs were.
        field: Key of the text in a corpus record.
        chat_template: For corpora of prompts and responses, which RMU does not take.

    Example:
        >>> from wmdp_fast import RMUConfig
        >>> config = RMUConfig(layer_id=7, steering_coeff="auto", alpha=1200.0)
        >>> config.to_json()["learning_rate"]
        5e-05
    """

    method_name: ClassVar[str] = "rmu"
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("layer_id", whole=True, zero_allowed=True),
        SearchAxis("steering_coeff", automatic=True),
        SearchAxis("alpha"),
        *TrainingConfig.search_axes,
    )
    per_topic: ClassVar[tuple[str, ...]] = ("steering_coeff", "alpha", *TrainingConfig.per_topic)
    activation_metrics: ClassVar[tuple[str, ...]] = ("forget_norm", "retain_norm", "forget_cosine", "retain_cosine")
    why_kinds: ClassVar[str] = "its loss is of the activations of all tokens"

    layer_id: int = 7
    update_layer_ids: tuple[int, ...] | None = None
    steering_coeff: float | str | tuple[float | str, ...] = "auto"
    alpha: float | tuple[float, ...] = 1200.0
    mode: Mode = "reference"
    retain_noise: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.update_layer_ids, list):
            object.__setattr__(self, "update_layer_ids", tuple(self.update_layer_ids))
        super().__post_init__()
        self._check_layers()
        for value in each(self.steering_coeff):
            parse_steering_coeff(value)
        for value in each(self.alpha):
            check_number("alpha", value, zero_allowed=True)
        check_number("retain_noise", self.retain_noise, zero_allowed=True)
        if self.mode not in ("reference", "masked"):
            raise ValueError(f"mode must be reference or masked, not {self.mode!r}")

    def method(self, setup: Setup) -> RMU:
        """RMU on a model."""
        from wmdp_fast.unlearning.rmu.method import RMU

        return RMU(
            setup,
            self.topics(setup.batches.num_topics),
            self.layer_id,
            masked=self.mode == "masked",
            noise=self.retain_noise,
            seed=self.seed,
        )

    def trained_layers(self, _num_layers: int, /) -> tuple[int, ...]:
        """`updated_layers`, whatever the model."""
        return self.updated_layers

    @property
    def depth(self) -> int:
        """The layers up to the steered one."""
        return self.layer_id + 1

    @property
    def reference(self) -> bool:
        """Whether the run is to do as the original program does."""
        return self.mode == "reference"

    @property
    def updated_layers(self) -> tuple[int, ...]:
        """The layers that are trained, in ascending order."""
        if self.update_layer_ids is not None:
            return tuple(sorted(set(self.update_layer_ids)))
        return tuple(range(max(0, self.layer_id - 2), self.layer_id + 1))

    def topics(self, count: int) -> list[RMUTopic]:
        """The settings of each of `count` topics.

        Raises:
            ValueError: A sequence of settings is not as long as there are topics.
        """
        columns = self.columns(count)
        topics = []
        for coefficient, alpha, length, raw in zip(*(columns[name] for name in self.per_topic), strict=True):
            fixed, factor = parse_steering_coeff(coefficient)
            topics.append(RMUTopic(length, raw, fixed, factor, float(alpha)))
        return topics

    def what_to_lower(self, *, losses_alone: bool) -> list[str]:
        """The learning rate, and what the losses grow with."""
        alpha, coefficient = _shown(self.alpha), _shown(self.steering_coeff)
        losses = f"alpha (now {alpha}) or the steering coefficient (now {coefficient})"
        if losses_alone:
            return [f"lower {losses}"]
        return [*super().what_to_lower(losses_alone=False), f"then {losses}"]

    def _check_layers(self) -> None:
        check_whole("layer_id", self.layer_id, least=0)
        if self.update_layer_ids is None:
            return
        if not self.update_layer_ids:
            raise ValueError("update_layer_ids is empty, so nothing would be trained; name at least one layer")
        for layer in self.update_layer_ids:
            check_whole("update_layer_ids", layer, least=0)
            if layer > self.layer_id:
                raise ValueError(
                    f"update_layer_ids has layer {layer}, which lies above layer_id {self.layer_id}: the loss is taken"
                    " there, so it would never be trained; name others (--update-layer-ids; a preset has its own), or"
                    " raise layer_id"
                )


def parse_steering_coeff(value: float | str) -> tuple[float | None, float]:
    """Reads a steering coefficient: (its value, 0), or (None, the factor) for `auto`.

    Raises:
        ValueError: It is neither.
    """
    text = str(value).strip()
    automatic = text == "auto" or text.startswith("auto:")
    number = text.partition(":")[2] or str(AUTO_FACTOR) if automatic else text
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount > 0) or isinstance(value, bool):
        raise ValueError(
            f"steering_coeff must be a number above 0, `auto` or `auto:FACTOR` such as auto:5, not {value!r}"
        )
    return (None, amount) if automatic else (amount, 0.0)


def _shown(value: object) -> str:
    return ", ".join(map(_shown, value)) if isinstance(value, tuple) else str(value)
