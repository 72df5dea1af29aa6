"""Evaluation within a run of PyTorch Lightning: a callback for its `Trainer`.

`wmdp_fast.integrations.training` has the same for transformers' `Trainer`, and the plain function that both call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

from wmdp_fast.exceptions import ModelError
from wmdp_fast.integrations.training import QuestionSample, shared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from lightning.pytorch import LightningModule, Trainer
    from transformers import PreTrainedTokenizerBase


class EvalCallback(Callback):
    """Evaluates the model in place during training with Lightning's `Trainer`.

    Numbers go to the trainer's loggers as `eval_<task>_<metric>`, and to `trainer.callback_metrics`, which
    `ModelCheckpoint` and `EarlyStopping` look at. Training is what it would be without: the losses are the same to the
    last bit. With several processes each of which holds the whole model (DDP), the first evaluates and the others wait.

    ::

        trainer = Trainer(callbacks=[EvalCallback(tokenizer, tasks="wmdp_bio,mmlu_virology", limit=100, every=50)])

    Args:
        tokenizer: The model's tokenizer.
        tasks: As in `wmdp_fast.evaluate`.
        every: Evaluate after so many optimizer steps.
        at_start: Whether to evaluate before the first step too.
        at_end: Whether to evaluate after the last step too.
        attribute: Where the `LightningModule` keeps the causal language model of transformers.
        metrics: What the names of numbers begin with.
        **options: What `QuestionSample` takes: `limit`, `num_fewshot`, `data` and so on.

    Attributes:
        history: The numbers of each evaluation, and its `step`.

    Raises:
        ValueError: `every` is less than 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
        every: int,
        at_start: bool = True,
        at_end: bool = True,
        attribute: str = "model",
        metrics: str = "eval",
        **options: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.every = every
        self.at_start = at_start
        self.at_end = at_end
        self.attribute = attribute
        self.metrics = metrics
        self.history: list[dict[str, float]] = []
        # Read now, so that what is wrong with the questions shows before training.
        self._sample = QuestionSample(tokenizer, tasks=tasks, **options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the model as it is before the first step."""
        if self.at_start and trainer.global_step == 0:
            self._evaluate(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Evaluates every so many optimizer steps; batches whose gradients are only gathered count for none."""
        if trainer.global_step > 0 and trainer.global_step % self.every == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates what the last step made."""
        if self.at_end:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluates once a step.

        Raises:
            ModelError: The module has no model at `attribute`, or this process holds a part of it only.
        """
        step = trainer.global_step
        if self.history and self.history[-1]["step"] == step:
            return
        model = getattr(module, self.attribute, None)
        if not isinstance(model, torch.nn.Module):
            raise ModelError(
                f"{type(module).__name__} has no model at {self.attribute!r}: say where it keeps the language model"
                " with EvalCallback(..., attribute=...)"
            )
        found = self._sample(model) if trainer.is_global_zero else {}
        numbers = {f"{self.metrics}_{name}": value for name, value in shared(found).items()}
        self.history.append({"step": step, **numbers})
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
