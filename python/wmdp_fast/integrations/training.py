"""Evaluation within a training loop: the model as it is in memory, left exactly as it was found.

`evaluate_in_place` is for any loop, `QuestionSample` for one that asks again and again, `EvalCallback` for
transformers' `Trainer` and what is built on it, such as TRL's trainers.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import Trainer, TrainerCallback

from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.load import wrap_model
from wmdp_fast.models.threads import only_user
from wmdp_fast.prompts import prepare
from wmdp_fast.prompts.tokenizer import load_tokenizer
from wmdp_fast.results.by_task import task_results
from wmdp_fast.results.result import GroupResult, TaskResult
from wmdp_fast.scoring.trie import score
from wmdp_fast.tasks.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.trie import Engine


def evaluate_in_place(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    **options: Any,
) -> dict[str, float]:
    """Scores a model that is being trained. Mode, gradients and random state are as before afterwards.

    The model is scored in the type of its weights, whatever autocast surrounds the call. `wmdp_fast.evaluate` does more
    (files, chat templates, intervals); this is what a training loop needs of it.

    Args:
        model: A causal language model of transformers; one that PEFT, `DistributedDataParallel`, accelerate or
            `torch.compile` has wrapped will do.
        tokenizer: Its tokenizer.
        tasks: As in `wmdp_fast.evaluate`: names of tasks and groups, and paths of question files.
        **options: What `QuestionSample` takes.

    Returns:
        `{"wmdp_bio_acc": 0.31, "wmdp_bio_acc_stderr": 0.01, ...}` for all tasks and groups.

    Raises:
        ModelError: The model cannot be scored, or this process holds a part of its weights only.
        DataUnavailableError, DatasetError, TaskError, TemplateError, TokenizerError, ValueError: As `evaluate` does.
    """
    return QuestionSample(tokenizer, tasks=tasks, **options)(model)


class QuestionSample:
    """The same questions, asked as often as one likes: read, rendered and tokenized once.

    Args:
        tokenizer: The model's tokenizer.
        tasks: As in `wmdp_fast.evaluate`.
        data: Folder with the datasets, in place of the hub.
        dataset_revision: Commit, branch or tag of the dataset.
        limit: Only the first questions of each task: a number of them, or, below 1, a share.
        num_fewshot: Few-shot examples before each question.
        subjects: Only these MMLU subjects.
        template: How to ask the questions of files given by path.
        choices: Whether those are answered with `"letters"` or `"texts"`.
        description: Text before the prompts of files given by path.
        engine: `"trie"`, `"padded"`, or `"auto"`.
        score_mode: `"float32"` or `"model"`.
        token_budget: Maximum tokens per batch, or `"auto"`.

    Raises:
        DataUnavailableError, DatasetError, TaskError, TemplateError, ValueError: As `evaluate` does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
        data: str | PathLike[str] | None = None,
        dataset_revision: str | Mapping[str, str] | None = None,
        limit: float | None = None,
        num_fewshot: int | None = None,
        subjects: str | Sequence[str] | None = None,
        template: str | None = None,
        choices: Literal["letters", "texts"] | None = None,
        description: str | None = None,
        engine: Engine = "auto",
        score_mode: ScoreMode = "float32",
        token_budget: int | Literal["auto"] = "auto",
    ) -> None:
        self.tokenizer = tokenizer
        self.engine = engine
        self.score_mode = score_mode
        self.token_budget = token_budget
        self._selection = resolve(
            tasks,
            subjects=subjects,
            num_fewshot=num_fewshot,
            template=template,
            choices=choices,
            description=description,
        )
        for warning in self._selection.warnings:
            warnings.warn(warning, WmdpFastWarning, stacklevel=2)
        self._read: list[TaskQuestions] = prepare.read_tasks(
            self._selection.tasks, data=data, dataset_revision=dataset_revision, limit=limit
        )
        self._prompts: list[Prompts] = [prepare.render(one) for one in self._read]
        self._requests: Requests | None = None

    def __len__(self) -> int:
        """Number of questions."""
        return sum(len(one.questions) for one in self._read)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        """Scores a model; see `evaluate_in_place`."""
        begin = time.perf_counter()
        base = _unwrapped(model)
        loaded = wrap_model(base, self.tokenizer)
        requests = self._encoded(loaded)
        with only_user(base), _own_forward(base), torch.autocast(loaded.device.type, enabled=False):
            scores = score(
                loaded, requests, engine=self.engine, score_mode=self.score_mode, token_budget=self.token_budget
            )
        if loaded.device.type == "cuda":
            # What the batches here needed is not what those of training will need.
            torch.cuda.empty_cache()
        tasks = task_results(self._read, self._prompts, scores, near_tie=0.0)
        metrics: dict[str, float] = {}
        for task in tasks.values():
            metrics |= _flat(task)
        for group in self._selection.groups:
            below = [tasks[task.name] for task in self._selection.leaves(group)]
            metrics |= _flat(GroupResult.from_tasks(group, below))
        return {**metrics, "wmdp_fast_seconds": time.perf_counter() - begin}

    def _encoded(self, loaded: LoadedModel) -> Requests:
        if self._requests is None or self._requests.max_length != loaded.max_length:
            encoder = load_tokenizer(self.tokenizer, prefix_token_id=loaded.prefix_token_id)
            self._requests = encoder.encode_requests(self._prompts, loaded.max_length)
        return self._requests


class EvalCallback(TrainerCallback):
    """Evaluates the model in place during training with transformers' `Trainer`, or with TRL's trainers.

    Numbers go to the trainer's own loggers and `state.log_history` as `eval_<task>_<metric>`. Training is what it would
    be without: the losses are the same to the last bit. With several processes each of which holds the whole model, the
    first evaluates and the others wait for it.

    Args:
        trainer: The trainer, for its loggers. Without one, numbers go to `state.log_history` and `history` alone.
        tasks: As in `wmdp_fast.evaluate`.
        every: Evaluate after so many optimizer steps.
        at_start: Whether to evaluate before the first step too.
        at_end: Whether to evaluate after the last step too.
        tokenizer: The model's tokenizer, if the trainer has none as `processing_class`.
        metrics: What the names of numbers begin with.
        **options: What `QuestionSample` takes: `limit`, `num_fewshot`, `data` and so on.

    Attributes:
        history: The numbers of each evaluation, and its `step`.

    Raises:
        ValueError: `every` is less than 1.

    Example:
        >>> from wmdp_fast import EvalCallback, demo
        >>> callback = EvalCallback(None, tasks=demo.questions_path("forget"), limit=8, every=50)
        >>> # trainer.add_callback(callback)
        >>> callback.history  # after `trainer.train()`, the numbers of each evaluation
        []
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        *,
        tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
        every: int,
        at_start: bool = True,
        at_end: bool = True,
        tokenizer: PreTrainedTokenizerBase | None = None,
        metrics: str = "eval",
        **options: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.trainer = trainer
        self.tasks = tasks
        self.every = every
        self.at_start = at_start
        self.at_end = at_end
        self.tokenizer = tokenizer
        self.metrics = metrics
        self.options = options
        self.history: list[dict[str, float]] = []
        self._sample: QuestionSample | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Reads the questions, so that what is wrong with them shows before the first step.

        Raises:
            ModelError: Each process holds a part of the model only (FSDP, DeepSpeed).
            ValueError: There is no tokenizer.
        """
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ModelError(
                "EvalCallback needs the whole model in one process, which FSDP and DeepSpeed do not keep there:"
                " evaluate the checkpoints they save with `wmdp-fast eval`"
            )
        tokenizer = self.tokenizer or getattr(
            kwargs.get("processing_class"), "tokenizer", kwargs.get("processing_class")
        )
        if tokenizer is None:
            raise ValueError("EvalCallback needs the model's tokenizer: EvalCallback(..., tokenizer=...)")
        self._sample = QuestionSample(tokenizer, tasks=self.tasks, **self.options)
        if self.trainer is None:
            warnings.warn(
                "EvalCallback was made without the trainer: its numbers go to `state.log_history`, not to the trainer's"
                " loggers; trainer.add_callback(EvalCallback(trainer, ...)) sends them there",
                WmdpFastWarning,
                stacklevel=2,
            )
        if self.at_start and state.global_step == 0:
            self._evaluate(state, control, kwargs["model"])

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Evaluates every so many steps."""
        if state.global_step % self.every == 0:
            self._evaluate(state, control, kwargs["model"])

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Evaluates what the last step made."""
        if self.at_end and not (self.history and self.history[-1]["step"] == state.global_step):
            self._evaluate(state, control, kwargs["model"])

    def _evaluate(self, state: TrainerState, control: TrainerControl, model: torch.nn.Module) -> None:
        if self._sample is None:
            raise RuntimeError("training has not begun: the questions have not been read")
        found = self._sample(model) if state.is_world_process_zero else {}
        numbers = {f"{self.metrics}_{name}": value for name, value in shared(found).items()}
        self.history.append({"step": state.global_step, **numbers})
        if self.trainer is None:
            state.log_history.append({**numbers, "epoch": state.epoch or 0.0, "step": state.global_step})
        else:
            # That of `Trainer` itself: some trainers' own `log` also reports, and begins anew, what they average.
            # Logging counts as what the trainer wanted to log at this step, which is still to come.
            wanted = control.should_log
            Trainer.log(self.trainer, numbers)
            control.should_log = wanted


def shared(found: dict[str, float]) -> dict[str, float]:
    """The first process's numbers in all processes, which wait for them here."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return found
    box = [found]
    distributed.broadcast_object_list(box)
    return box[0]


def _flat(result: TaskResult | GroupResult) -> dict[str, float]:
    """A result's numbers by name; a standard error that is not defined is left out."""
    numbers = {f"{result.name}_{metric}": value for metric, value in result.metrics.items()}
    errors = {f"{result.name}_{metric}_stderr": error for metric, error in result.stderr.items() if error is not None}
    return numbers | errors


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside `DistributedDataParallel`, `DataParallel` and `torch.compile`.

    Raises:
        ModelError: Its parameters are spread over processes.
    """
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            break
    from torch.distributed.tensor import DTensor

    if any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ModelError(
            "each process holds a part of the model only (FSDP, DeepSpeed or tensor parallelism): evaluate the"
            " checkpoints it saves with `wmdp-fast eval`"
        )
    return model


@contextlib.contextmanager
def _own_forward(model: torch.nn.Module) -> Iterator[None]:
    """Takes off what accelerate puts around `forward` for mixed precision, and puts it back."""
    wrapped, original = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
