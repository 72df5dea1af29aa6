"""What a run of unlearning gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wmdp_fast.unlearning.rmu.method import RMUFindings

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from torch import Tensor
    from transformers import PreTrainedModel

    from wmdp_fast.checkpoints.saved_dtype import Saving
    from wmdp_fast.unlearning.method import Findings
    from wmdp_fast.unlearning.rmu.effect import Effect
    from wmdp_fast.unlearning.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class UnlearnResult:
    """A finished run.

    Attributes:
        config: The settings.
        steps: Optimizer steps done.
        best_step: The step whose weights these are; `steps` unless a later one gave up something it should keep.
        stopped: Why the run ended before its steps were done, or None.
        picked: What was trained, a line for each parameter.
        findings: What the method found, as the weights are saved.
        saving: In what type weights are saved, and what that loses.
        tensors: The changed tensors, by the checkpoint's names; by the model's for one that was in memory.
        metrics: What was measured, a dictionary for each step and each evaluation.
        evaluations: Accuracies by step; before the first step in the first one.
        seconds: Wall time by phase.
        model: The model, if it was in memory or had to be for evaluations. It is updated.
        output: The new checkpoint's folder, or None.
        budget: How far the model was allowed to go from the original and how far it went, as `unlearn.json` has it;
            None without a limit.

    Example:
        >>> from wmdp_fast import RMUConfig, demo, unlearn
        >>> config = RMUConfig(layer_id=2, max_steps=2, max_length=64, retain_max_length=64)
        >>> corpora = {"forget": demo.corpus_path("forget"), "retain": demo.corpus_path("retain")}
        >>> result = unlearn(demo.model_path(), **corpora, config=config, output="unlearned", progress=False)
        >>> sorted(result.tensors)[0], (result.output / "unlearn.json").is_file()
        ('model.layers.0.mlp.down_proj.weight', True)
    """

    config: TrainingConfig
    steps: int
    best_step: int
    stopped: str | None
    picked: tuple[str, ...]
    findings: Findings = field(repr=False)
    saving: Saving
    tensors: dict[str, Tensor] = field(repr=False)
    metrics: list[dict[str, Any]] = field(repr=False)
    evaluations: list[dict[str, Any]]
    seconds: dict[str, float]
    model: PreTrainedModel | None = field(repr=False)
    output: Path | None
    budget: dict[str, Any] | None = None

    def plot(self, *names: str, axes: Axes | None = None) -> Axes:
        """Draws what was measured over the steps.

        Args:
            names: Keys of `metrics`; both terms of the loss unless given.
            axes: matplotlib axes to draw on; None makes a figure, which `pyplot.show()` and notebooks show.

        Returns:
            The axes.

        Raises:
            ValueError: No step has measured that, as of a method without steps; says what there is.
            WmdpFastError: matplotlib is not installed.
        """
        from wmdp_fast.unlearning.plot import DRAWN, plot_metrics

        return plot_metrics(self.metrics, names or DRAWN, axes, self.config.method_name)

    @property
    def steering_coeffs(self) -> tuple[float, ...]:
        """RMU's, of each topic, as given or found; empty for other methods."""
        return self.findings.steering_coeffs if isinstance(self.findings, RMUFindings) else ()

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Of each topic, how activations at RMU's layer differ from those of the model before; else empty."""
        return self.findings.effects if isinstance(self.findings, RMUFindings) else ()

    @property
    def control_vectors(self) -> tuple[Tensor, ...]:
        """RMU's, of each topic, steering coefficient included, [1, 1, d]; empty for other methods."""
        return self.findings.control_vectors if isinstance(self.findings, RMUFindings) else ()
