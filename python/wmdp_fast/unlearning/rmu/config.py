"""The settings of RMU, and what is wrong with them before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["reference", "masked"]

# Factor of Adaptive RMU (arXiv:2408.06223): the steering coefficient is so many times the mean activation norm.
AUTO_FACTOR = 5.0

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Topic:
    """The settings of one forget corpus and its retain corpus.

    Attributes:
        steering_coeff: Length of the control vector, or None where it follows from activations.
        auto_factor: With None above, the control vector is so many times as long as an activation.
        alpha: Weight of the retain loss.
        max_length: Most tokens of a forget document.
        raw_lines: Whether the forget corpus is read as raw lines.
    """

    steering_coeff: float | None
    auto_factor: float
    alpha: float
    max_length: int
    raw_lines: bool


@dataclass(frozen=True)
class RMUConfig:
    """The settings of an unlearning run. What is per topic is one value for all topics, or a sequence of one for each.

    Loss of a step: `mse(h, c * u) + alpha * mse(h', h'_frozen)`, with h the output of layer `layer_id` on forget data
    and h' on retain data, u a random unit vector with positive entries, fixed for each topic.

    Attributes:
        layer_id: The layer, counted from 0, whose output is steered.
        update_layer_ids: Layers whose parameters are trained; None is `layer_id` and the two below it.
        parameters: Which of their parameters: a role (`mlp.down_proj`, `self_attn.o_proj`, `mlp`, ...) or a regular
            expression that is searched in names such as `mlp.up_proj.weight`.
        steering_coeff: c, per topic: a number, or `"auto"` or `"auto:FACTOR"` for so many times (5 times) the mean norm
            of the topic's first activations.
        alpha: Weight of the retain loss, per topic.
        learning_rate: Of AdamW, constant.
        batch_size: Documents of each kind in a forward pass.
        max_steps: Optimizer steps over all topics; fewer if the corpora end before.
        epochs: How many times the corpora may be gone through.
        max_length: Most tokens of a forget document, per topic.
        retain_max_length: Most tokens of a retain document.
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
    """

    layer_id: int = 7
    update_layer_ids: tuple[int, ...] | None = None
    parameters: str = "mlp.down_proj"
    steering_coeff: float | str | tuple[float | str, ...] = "auto"
    alpha: float | tuple[float, ...] = 1200.0
    learning_rate: float = 5e-5
    batch_size: int = 4
    max_steps: int = 150
    epochs: int = 1
    max_length: int | tuple[int, ...] = 512
    retain_max_length: int = 512
    mode: Mode = "reference"
    retain_noise: float = 0.0
    seed: int = 42
    grad_accum: int = 1
    grad_clip: float | None = None
    master_weights: bool = False
    dtype: str = "auto"
    save_dtype: str = "auto"
    save_every: int = 50
    min_chars: int = 0
    raw_lines: bool | tuple[bool, ...] = False
    field: str = "text"

    def __post_init__(self) -> None:
        for name in ("update_layer_ids", "steering_coeff", "alpha", "max_length", "raw_lines"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        self._check_layers()
        self._check_numbers()
        if self.mode not in ("reference", "masked"):
            raise ValueError(f"mode must be reference or masked, not {self.mode!r}")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {self.dtype!r}")
        if self.save_dtype not in (*_DTYPES, "checkpoint"):
            raise ValueError(f"save_dtype must be checkpoint or one of {', '.join(_DTYPES)}, not {self.save_dtype!r}")
        if not self.parameters:
            raise ValueError("parameters must name a role such as mlp.down_proj, or be a regular expression")

    def _check_numbers(self) -> None:
        for name in ("batch_size", "max_steps", "epochs", "retain_max_length", "grad_accum"):
            _check_whole(name, getattr(self, name), least=1)
        for name in ("save_every", "min_chars"):
            _check_whole(name, getattr(self, name), least=0)
        for value in _each(self.max_length):
            _check_whole("max_length", value, least=1)
        for value in _each(self.steering_coeff):
            parse_steering_coeff(value)
        for value in _each(self.alpha):
            _check_number("alpha", value, zero_allowed=True)
        _check_number("learning_rate", self.learning_rate)
        _check_number("retain_noise", self.retain_noise, zero_allowed=True)
        if self.grad_clip is not None:
            _check_number("grad_clip", self.grad_clip)

    @property
    def updated_layers(self) -> tuple[int, ...]:
        """The layers that are trained, in ascending order."""
        if self.update_layer_ids is not None:
            return tuple(sorted(set(self.update_layer_ids)))
        return tuple(range(max(0, self.layer_id - 2), self.layer_id + 1))

    def topics(self, count: int) -> list[Topic]:
        """The settings of each of `count` topics.

        Raises:
            ValueError: A sequence of settings is not as long as there are topics.
        """
        columns = {}
        for name in ("steering_coeff", "alpha", "max_length", "raw_lines"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != count:
                raise ValueError(
                    f"{name} has {len(value)} values for {count} forget corpora; give one for all, or one for each"
                )
            columns[name] = value if isinstance(value, tuple) else (value,) * count
        topics = []
        for coefficient, alpha, length, raw in zip(*columns.values(), strict=True):
            fixed, factor = parse_steering_coeff(coefficient)
            topics.append(Topic(fixed, factor, float(alpha), length, raw))
        return topics

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        return asdict(self)

    def _check_layers(self) -> None:
        _check_whole("layer_id", self.layer_id, least=0)
        if self.update_layer_ids is None:
            return
        if not self.update_layer_ids:
            raise ValueError("update_layer_ids is empty, so nothing would be trained; name at least one layer")
        for layer in self.update_layer_ids:
            _check_whole("update_layer_ids", layer, least=0)
            if layer > self.layer_id:
                raise ValueError(
                    f"update_layer_ids has layer {layer}, which lies above layer_id {self.layer_id}: the loss is taken"
                    f" there, so it would never be trained; leave it out, or raise layer_id"
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


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_number(name: str, value: object, *, zero_allowed: bool = False) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < 0 or (value == 0 and not zero_allowed):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number {'of at least' if zero_allowed else 'above'} 0, not {value!r}")
