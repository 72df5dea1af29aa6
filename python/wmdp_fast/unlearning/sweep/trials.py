"""The runs of a sweep on a model that is loaded once: each trained, measured in place, and taken back.

What there is to do comes as jobs, and what comes of it goes out as messages, for a process may do it for another one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast import _rust
from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.exceptions import DivergedError
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.memory import in_gigabytes
from wmdp_fast.unlearning import evaluations
from wmdp_fast.unlearning.activation_cache import CacheUse, TrunkCache
from wmdp_fast.unlearning.memory_plan import streaming_of
from wmdp_fast.unlearning.one_run import work_folder
from wmdp_fast.unlearning.parameters import trained_parameters
from wmdp_fast.unlearning.source import open_source
from wmdp_fast.unlearning.sweep import identity as sweep_identity
from wmdp_fast.unlearning.sweep.points import folder_name, full
from wmdp_fast.unlearning.sweep.result import Accuracy, SweepRun
from wmdp_fast.unlearning.trainer import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.results.result import TaskResult
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.result import UnlearnResult
    from wmdp_fast.unlearning.source import Corpora
    from wmdp_fast.unlearning.sweep.identity import Extent
    from wmdp_fast.unlearning.training_config import TrainingConfig

Message = str | SweepRun | CacheUse
"""A line for the user, the result of a point, or what the trunk cache did."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep before its model is loaded.

    Attributes:
        base: The settings that are not swept.
        request: What was asked for, besides model and output.
        model: A folder, a name on the hub, or a model in memory.
        tokenizer: Its tokenizer, if it is not the folder's own.
        revision: Of the model on the hub.
        trust_remote_code: Whether code that comes with it may run.
        corpora: The tokens.
        extent: How far it goes.
        tasks: What is measured, by the names that the user gave.
        leaves: The tasks that these stand for.
        folder: Of the results.
        trunk: Of the trunk cache.
        limit: Most bytes in there, or None.
        processes: How many share the cache.
        configs: Settings at the bounds of all that will be run.
        memory: As in `unlearn`: of all processes together, if they are on the CPU.
        stream: As in `unlearn`.
    """

    base: TrainingConfig
    request: Request
    model: str | PathLike[str] | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    revision: str | None
    trust_remote_code: bool
    corpora: Corpora
    extent: Extent
    tasks: Mapping[str, list[str]]
    leaves: Mapping[str, list[str]]
    folder: Path
    trunk: Path
    limit: int | None
    processes: int
    configs: Sequence[TrainingConfig]
    memory: str | int | None
    stream: bool


@dataclass(frozen=True)
class Check:
    """Compares with the sweep that is in the folder, and writes down what this one is."""


@dataclass(frozen=True)
class Before:
    """Measures the model as it is."""


@dataclass(frozen=True)
class Train:
    """One run, measured at each of its points.

    Attributes:
        points: Differ in the number of steps only.
        params: What Optuna drew, or None.
        label: What the user is told as it begins.
    """

    points: tuple[dict[str, Any], ...]
    params: dict[str, Any] | None
    label: str


@dataclass(frozen=True)
class Keep:
    """Writes the checkpoint of a run, unless it is there already.

    Attributes:
        config: All of its settings.
        target: The folder.
        resume: Whether there may be one.
    """

    config: TrainingConfig
    target: Path
    resume: bool


Job = Check | Before | Train | Keep


def begin(plan: Plan, device: str) -> Callable[[Job, Callable[[Message], None]], None]:
    """Loads the model, and returns what does jobs with it.

    Raises:
        ModelError: It cannot be loaded.
        ValueError: It has no tokenizer.
    """
    return _Trials(plan, device).work


class _Trials:
    """The model of a sweep, and what is done with it."""

    def __init__(self, plan: Plan, device: str) -> None:
        self._plan = plan
        streaming = streaming_of(
            plan.model,
            plan.request,
            plan.configs,
            memory=plan.memory,
            stream=plan.stream,
            revision=plan.revision,
            device=device,
            trust_remote_code=plan.trust_remote_code,
            whole=True,
            sharers=plan.processes,
        )
        self._source = open_source(
            plan.model,
            plan.request.config,
            plan.tokenizer,
            plan.revision,
            device,
            plan.trust_remote_code,
            whole=True,
            streaming=streaming,
        )
        if self._source.tokenizer is None:
            raise ValueError("a sweep needs the model's tokenizer; pass tokenizer=...")
        streamed = self._source.streamed
        self._cache = TrunkCache(
            plan.trunk,
            self._source.decoder,
            limit=plan.limit,
            processes=plan.processes,
            weights_of=None if streamed is None else streamed.weights_of,
        )

    def work(self, job: Job, tell: Callable[[Message], None]) -> None:
        """Does a job."""
        match job:
            case Check():
                self._check()
            case Before():
                if self._source.streamed is not None:
                    tell(_about(self._source.streamed))
                tell(self._measured(SweepRun(settings={}, steps=0, forget=None, retain=None)))
            case Train():
                self._train(job, tell)
            case Keep():
                self._keep(job, tell)
        done, self._cache.use = self._cache.use, CacheUse()
        tell(done)

    def _check(self) -> None:
        plan, streamed = self._plan, self._source.streamed
        # Of a sweep that went further, layers are hashed that are not in memory.
        with contextlib.nullcontext() if streamed is None else streamed.dropping():
            sweep_identity.check(
                plan.folder,
                plan.base,
                plan.extent,
                self._source,
                plan.corpora,
                self._cache,
                plan.tasks,
                plan.leaves,
                plan.request,
            )

    def _train(self, job: Train, tell: Callable[[Message], None]) -> None:
        """One run, measured after the steps of each point."""
        points, params = job.points, job.params
        tell(job.label)
        by_steps = {dataclasses.replace(self._plan.base, **point).max_steps: point for point in points}
        config = dataclasses.replace(self._plan.base, **{**points[0], "max_steps": max(by_steps)})
        request = dataclasses.replace(self._plan.request, config=config)
        clock = PhaseClock()
        left = dict(by_steps)
        run: Run

        def measure(wanted: int, steps: int, kl: float | None = None) -> None:
            point = left[wanted]
            result = SweepRun(
                settings=full(self._plan.base, point),
                steps=steps,
                forget=None,
                retain=None,
                measures=run.last_measures,
                seconds={"steps": round(clock.seconds.get("steps", 0.0), 3)},
                params=params,
                kl=kl,
            )
            with run.as_saved():
                found = run.findings(steps).record
                result = dataclasses.replace(
                    result,
                    steering_coeffs=tuple(found.get("steering_coeffs", ())),
                    effects=found.get("effects", []),
                )
                tell(self._measured(result))

            del left[wanted]

        def after_step(steps: int) -> None:
            # What counts within a budget is known at the end only. What is measured there needs no layers twice.
            if steps in left and steps < run.total_steps and request.budget is None:
                measure(steps, steps)

        def at_end(result: UnlearnResult) -> None:
            # Also what the corpora are too short for.
            for wanted in sorted(left):
                measure(wanted, result.best_step, (result.budget or {}).get("kl"))

        with self._restored(config):
            run = Run(request, self._source, self._plan.corpora, clock, None, None, self._cache, after_step, at_end)
            try:
                run.result(resume=False)
            except DivergedError as error:
                for wanted in sorted(left):
                    tell(_failed(full(self._plan.base, left[wanted]), error, params))

    @contextlib.contextmanager
    def _restored(self, config: TrainingConfig) -> Iterator[None]:
        """Afterwards the tensors that a run trains are as they were before."""
        before = [(one.parameter, one.parameter.detach().clone()) for one in self._picked(config)]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values in before:
                    parameter.copy_(values)

    def _picked(self, config: TrainingConfig) -> Any:
        source = self._source
        return trained_parameters(config, source.decoder, source.whole, source.num_layers)

    def _measured(self, run: SweepRun) -> SweepRun:
        """The run with what the model gets right now."""
        begun = time.perf_counter()
        place = f"{checkpoint.EVALUATIONS}/{folder_name(run.settings)}"
        result = evaluations.measure(
            self._source,
            [name for names in self._plan.tasks.values() for name in names],
            self._plan.request.eval_options,
            steps=run.steps,
            folder=self._plan.folder / place,
            samples=self._plan.request.log_samples,
            texts=self._plan.request.eval_text,
            progress=self._plan.request.progress,
        )
        leaves = self._plan.leaves
        accuracies = {kind: _pooled([result.tasks[name] for name in names]) for kind, names in leaves.items()}
        return dataclasses.replace(
            run,
            forget=accuracies["forget"],
            retain=accuracies["retain"],
            scores={name: dict(result[name].metrics) for name in result},
            results=place,
            seconds={**run.seconds, "evaluate": round(time.perf_counter() - begun, 3)},
        )

    def _keep(self, job: Keep, tell: Callable[[Message], None]) -> None:
        """Writes the checkpoint of a run, unless it is there already."""
        target, config = job.target, job.config
        if job.resume and (target / checkpoint.RECORD).is_file():
            record = json.loads((target / checkpoint.RECORD).read_text(encoding="utf-8"))
            if record.get("settings") == json.loads(json.dumps(config.to_json())):
                return
        checkpoint.refuse_existing(target)
        tell(f"writing the best run to {target}")
        plan = self._plan
        request = dataclasses.replace(
            plan.request, config=config, eval_tasks=[*plan.tasks["forget"], *plan.tasks["retain"]]
        )
        with self._restored(config), work_folder(target) as work:
            run = Run(request, self._source, plan.corpora, PhaseClock(), target, work, self._cache)
            run.result(resume=job.resume)


def _about(streamed: StreamedModel) -> str:
    """What a sweep says of layers that are not in memory."""
    kept = sorted(streamed.resident)
    return (
        f"layers {kept[0]} to {kept[-1]} stay in memory of {in_gigabytes(streamed.memory)}; the others are streamed:"
        f" {in_gigabytes(streamed.stored_bytes)} to read for each evaluation, or for each chunk of one, and those below"
        " the trained ones for each window of batches that the trunk cache does not have"
    )


def _pooled(tasks: Sequence[TaskResult]) -> Accuracy:
    """The accuracy over all questions of some tasks."""
    right = sum(int(task.outcome.correct.sum()) for task in tasks)
    choices = [
        int(count) for task in tasks for count in task.outcome.choice_offsets[1:] - task.outcome.choice_offsets[:-1]
    ]
    low, high = _rust.wilson(right, len(choices))
    chance = sum(1 / count for count in choices) / len(choices)
    return Accuracy(value=right / len(choices), low=low, high=high, n=len(choices), chance=chance)


def _failed(settings: dict[str, Any], error: DivergedError, params: dict[str, Any] | None) -> SweepRun:
    return SweepRun(settings=settings, steps=error.step, forget=None, retain=None, failed=str(error), params=params)
