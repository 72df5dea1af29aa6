"""A sweep: a method with many settings on one model, each result measured in place, and which of them are worth having.

The model is loaded once. After each run the changed tensors get their old values back. Runs that differ in their number
of steps only are one run that is measured on the way, unless a step depends on how many are to come, as with a schedule
of the learning rate. What training does not change is read from a `TrunkCache`.

Every result is a line in `runs.jsonl`, written when it is there. A sweep that was killed goes on from these lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast import _rust
from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.exceptions import DivergedError, ModelError, TaskError, WmdpFastWarning
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.unlearning import evaluations, preflight
from wmdp_fast.unlearning.activation_cache import TrunkCache
from wmdp_fast.unlearning.api import cache_bytes, listed_corpora, listed_names, refuse_leftovers, work_folder
from wmdp_fast.unlearning.budget import budget_request
from wmdp_fast.unlearning.parameters import trained_parameters
from wmdp_fast.unlearning.request import Request
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.source import open_source
from wmdp_fast.unlearning.sweep import identity as sweep_identity
from wmdp_fast.unlearning.sweep import pareto
from wmdp_fast.unlearning.sweep.identity import Extent
from wmdp_fast.unlearning.sweep.result import MAX_LOSS, Accuracy, SweepResult, SweepRun, cell, check_max_loss
from wmdp_fast.unlearning.sweep.search_space import OptunaSampler, Range, bounds, check_space, grid
from wmdp_fast.unlearning.trainer import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.results.result import TaskResult
    from wmdp_fast.unlearning.result import UnlearnResult
    from wmdp_fast.unlearning.source import Corpora, Source
    from wmdp_fast.unlearning.training_config import TrainingConfig

RUNS = "runs.jsonl"
TRUNK = "trunk"


def sweep(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    forget: Corpus | Sequence[Corpus],
    retain: Corpus | Sequence[Corpus],
    over: Mapping[str, Sequence[Any] | Range],
    forget_tasks: str | Sequence[str],
    retain_tasks: str | Sequence[str],
    output: str | PathLike[str],
    eval_text: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    config: TrainingConfig | None = None,
    trials: int | None = None,
    resume: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    eval_options: Mapping[str, Any] | None = None,
    log_samples: bool = True,
    data: str | PathLike[str] | None = None,
    cache_trunk: str | PathLike[str] | None = None,
    cache_limit: float | None = None,
    keep_best: str | PathLike[str] | None = None,
    max_loss: float = MAX_LOSS,
    max_kl: float | None = None,
    kl_text: str | PathLike[str] | None = None,
    kl_every: int | None = None,
    progress: bool = True,
    note: Callable[[str], None] | None = None,
) -> SweepResult:
    """Unlearns with many settings, measures each, and says which are worth having.

    Args:
        model: A folder or a name on the hub, or a model in memory, which has its own weights again afterwards.
        forget: As in `unlearn`.
        retain: As in `unlearn`.
        over: The settings to sweep, of the method's `search_axes` (of RMU `layer_id`, `steering_coeff`, `alpha`,
            `learning_rate` and `max_steps`): for each the values to try, or with `trials` also a `Range`. What is per
            topic may be a tuple.
        forget_tasks: Tasks and question files on which accuracy should fall.
        retain_tasks: Those on which it should stay.
        output: Folder for the results; no weights.
        eval_text: Held-out texts whose perplexity to measure too, as `text` of `wmdp_fast.evaluate`; it decides about
            nothing.
        config: The settings that are not swept; their type says which method. RMU's `update_layer_ids` None
            follows a swept layer.
        trials: Let Optuna draw so many points; None tries every combination.
        resume: Go on with the sweep in `output`, if there is one. Values may have been added or left out.
        tokenizer: The tokenizer, if it is not the model folder's own.
        revision: Commit, branch or tag of the model on the hub.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: Whether to run code that comes with the model.
        eval_options: Further options of `wmdp_fast.evaluate`, such as `limit`.
        log_samples: Whether the evaluations in `output`, which `wmdp_fast.compare` reads, have each question's scores.
        data: Folder with corpora and datasets that are given by name, in place of the hub.
        cache_trunk: Folder for activations that training does not change; None is one in `output` that is removed when
            the sweep is done.
        cache_limit: Most gigabytes that it may hold; None for no limit.
        keep_best: Folder for the checkpoint of the best run, if there is one.
        max_loss: Most points of accuracy that the best run may lose on the retain tasks.
        max_kl: As in `unlearn`, for every run: it is measured with the weights of the last step within. Runs of
            different lengths then share nothing.
        kl_text: As in `unlearn`.
        kl_every: As in `unlearn`.
        progress: Whether to show progress bars on stderr.
        note: Takes lines meant for the user.

    Returns:
        All runs, and which are on the Pareto front.

    Raises:
        FileExistsError: There is a sweep in `output` and `resume` was not set, or something at `keep_best`.
        ModelError: The model cannot be loaded, lacks a layer or parameters; or `output` has a sweep of another model.
        TaskError: A task is unknown, or has no accuracy.
        ValueError: A setting is impossible.
        WmdpFastError: Optuna is wanted and not installed; and what `unlearn` and `evaluate` raise.

    Example:
        >>> from wmdp_fast import RMUConfig, demo, sweep
        >>> corpora = {"forget": demo.corpus_path("forget"), "retain": demo.corpus_path("retain")}
        >>> tasks = {f"{domain}_tasks": str(demo.questions_path(domain)) for domain in ("forget", "retain")}
        >>> config = RMUConfig(max_steps=2, max_length=64, retain_max_length=64)
        >>> options = {"config": config, "eval_options": {"limit": 8}, "progress": False}
        >>> result = sweep(demo.model_path(), **corpora, **tasks, over={"layer_id": [1, 2]}, output="sweep", **options)
        >>> len(result.runs)
        2
    """
    if trials is not None and trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    check_max_loss(max_loss)
    base = dataclasses.replace(config or RMUConfig(), save_every=0)
    space = check_space(over, drawn=trials is not None, axes=base.search_axes)
    sampler = None if trials is None else OptunaSampler(space, base.seed)
    forgets, retains = listed_corpora(forget), listed_corpora(retain)
    configs = [dataclasses.replace(base, **settings) for settings in bounds(space)]
    for one in configs:
        one.topics(len(forgets))
    tasks = {"forget": listed_names(forget_tasks), "retain": listed_names(retain_tasks)}
    limit = None if cache_limit is None else cache_bytes(cache_limit, "a folder of the sweep's own, at least")
    folder = Path(output)
    _check_folders(folder, cache_trunk, keep_best, resume=resume)
    extent = _extent(configs, sweep_identity.extent_before(folder))
    request = Request(
        config=dataclasses.replace(base, max_steps=extent.max_steps),
        forget=forgets,
        retain=retains,
        eval_text=read_texts(eval_text),
        eval_options=({} if data is None else {"data": data}) | dict(eval_options or {}),
        log_samples=log_samples,
        data=data,
        progress=progress,
        budget=budget_request(max_kl, kl_text, kl_every, field=base.field),
    )
    request.check()
    leaves = _check_tasks(tasks, request.eval_options, request.eval_text)
    tokenizer, corpora = preflight.check(
        request,
        model,
        tokenizer,
        configs=configs,
        revision=revision,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    for sentence in corpora.not_held_out:
        warnings.warn(sentence, WmdpFastWarning, stacklevel=2)
    source = open_source(model, request.config, tokenizer, revision, device, trust_remote_code, whole=True)
    if source.tokenizer is None:
        raise ValueError("a sweep needs the model's tokenizer; pass tokenizer=...")
    say = note or (lambda _line: None)
    with _results_folder(folder), RunsFile(folder / RUNS) as file:
        cache = TrunkCache(folder / TRUNK if cache_trunk is None else Path(cache_trunk), source.decoder, limit=limit)
        sweep_identity.check(folder, base, extent, source, corpora, cache, tasks, leaves, request)
        work = _Sweep(base, request, source, corpora, cache, tasks, leaves, file, folder, say)
        before = work.before()
        runs = work.grid(list(grid(space))) if sampler is None else work.drawn(sampler, trials or 0)
        front, best = _worth_having(before, runs, max_loss)
        kept = None
        if keep_best is not None and best is not None:
            kept = work.keep(dataclasses.replace(base, **runs[best].settings), Path(keep_best), resume=resume)
        say(cache.summary())
        if cache_trunk is None:
            shutil.rmtree(cache.folder)
    return SweepResult(
        base=before,
        runs=runs,
        front=front,
        best=best,
        config=base,
        swept=tuple(space),
        output=folder,
        kept=kept,
        max_loss=max_loss,
        texts=tuple(text.name for text in request.eval_text),
        inputs={
            "model": os.fspath(model) if isinstance(model, (str, os.PathLike)) else None,
            "forget": list(map(_name_of, forgets)),
            "retain": list(map(_name_of, retains)),
            "forget_tasks": tasks["forget"],
            "retain_tasks": tasks["retain"],
            "data": None if data is None else os.fspath(data),
            "revision": revision,
            "device": None if device == "auto" else device,
            "trust_remote_code": trust_remote_code,
            "max_kl": max_kl,
            "kl_text": None if kl_text is None else os.fspath(kl_text),
            "kl_every": kl_every,
        },
    )


def _check_folders(
    folder: Path, cache_trunk: str | PathLike[str] | None, keep_best: str | PathLike[str] | None, *, resume: bool
) -> None:
    """Looks whether everything can be written where it should go, before anything is read.

    Raises:
        FileExistsError: A sweep or a checkpoint is there already, and the sweep is not resumed.
        OSError: A folder cannot be written to.
    """
    if sweep_identity.exists(folder) and not resume:
        raise FileExistsError(
            f"{folder} has a sweep already: pass resume (--resume) to go on, or choose another folder"
        )
    check_folder(folder)
    check_folder(folder if cache_trunk is None else cache_trunk)
    if keep_best is not None and not resume:
        refuse_leftovers(Path(keep_best), resume=False)


@contextlib.contextmanager
def _results_folder(folder: Path) -> Iterator[None]:
    """The folder of a sweep's results. If it ends without a single one, it leaves no trace."""
    is_new = not sweep_identity.exists(folder)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        runs = folder / RUNS
        if is_new and not (runs.exists() and runs.stat().st_size):
            runs.unlink(missing_ok=True)
            sweep_identity.remove(folder)
            for name in (TRUNK, checkpoint.EVALUATIONS):
                shutil.rmtree(folder / name, ignore_errors=True)
            if not existed and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _check_tasks(
    tasks: Mapping[str, list[str]], options: Mapping[str, Any], texts: Sequence[Text]
) -> dict[str, list[str]]:
    """Names of the tasks, without groups, whose accuracy should fall and should stay; reads all questions once."""
    for kind, should in (("forget", "fall"), ("retain", "stay")):
        if not tasks[kind]:
            raise ValueError(f"{kind}_tasks is empty: on what should accuracy {should}?")
    selection = evaluations.check_tasks([name for names in tasks.values() for name in names], options, (), texts)
    if without := [task.name for task in selection.tasks if "acc" not in task.metrics]:
        raise TaskError(f"{without[0]} has no metric acc, which a sweep compares; leave it out")
    return {kind: evaluations.tasks_of(names, selection) for kind, names in tasks.items()}


def _extent(configs: Sequence[TrainingConfig], before: Extent | None) -> Extent:
    """How far a sweep goes, and at least as far as the one that it may continue."""
    depths = [config.depth for config in configs] + ([] if before is None else [before.layers])
    steps = [config.max_steps for config in configs] + ([] if before is None else [before.max_steps])
    known = [depth for depth in depths if depth is not None]
    return Extent(max(known) if len(known) == len(depths) else None, max(steps))


class _Sweep:
    """The sweep itself, once everything is read."""

    def __init__(
        self,
        base: TrainingConfig,
        request: Request,
        source: Source,
        corpora: Corpora,
        cache: TrunkCache,
        tasks: Mapping[str, list[str]],
        leaves: Mapping[str, list[str]],
        file: RunsFile,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._base, self._request, self._source, self._corpora = base, request, source, corpora
        self._cache, self._tasks, self._leaves, self._file, self._say = cache, tasks, leaves, file, say
        self._folder = folder
        self._done = {_key(run.settings): run for run in map(SweepRun.from_json, file.lines)}

    def before(self) -> SweepRun:
        """Measures the model as it is."""
        if (known := self._done.get(_key({}))) is None:
            known = self._measured(SweepRun(settings={}, steps=0, forget=None, retain=None))
            self._add(known)
        return known

    def grid(self, points: Sequence[dict[str, Any]]) -> list[SweepRun]:
        """Runs every point that has no result yet; those that differ in the number of steps only together."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for point in points:
            alone = self._base.depends_on_total or self._request.budget is not None
            shared = {} if alone else {"max_steps": None}
            groups.setdefault(_key({**self._full(point), **shared}), []).append(point)
        for number, group in enumerate(groups.values(), 1):
            missing = [point for point in group if _key(self._full(point)) not in self._done]
            if missing:
                self._say(f"run {number} of {len(groups)}: {_told(missing[0], but='max_steps')}")
                self._train(missing, params=None)
        return [self._of(point) for point in points]

    def drawn(self, sampler: OptunaSampler, trials: int) -> list[SweepRun]:
        """Draws points and runs them; what was drawn before is drawn again and not run again."""
        history: list[tuple[Mapping[str, Any], tuple[float, float] | None]] = []
        runs = []
        for number in range(1, trials + 1):
            params = sampler.draw(history)
            point = sampler.settings(params)
            if _key(self._full(point)) not in self._done:
                self._say(f"run {number} of {trials}: {_told(point)}")
                self._train([point], params)
            run = self._of(point)
            history.append((params, run.objectives))
            runs.append(run)
        return list({_key(run.settings): run for run in runs}.values())

    def keep(self, config: TrainingConfig, target: Path, *, resume: bool) -> Path:
        """Writes the checkpoint of a run, unless it is there already."""
        if resume and (target / checkpoint.RECORD).is_file():
            record = json.loads((target / checkpoint.RECORD).read_text(encoding="utf-8"))
            if record.get("settings") == json.loads(json.dumps(config.to_json())):
                return target
        checkpoint.refuse_existing(target)
        self._say(f"writing the best run to {target}")
        tasks = [*self._tasks["forget"], *self._tasks["retain"]]
        request = dataclasses.replace(self._request, config=config, eval_tasks=tasks)
        with self._restored(config), work_folder(target) as work:
            Run(request, self._source, self._corpora, PhaseClock(), target, work, self._cache).result(resume=resume)
        return target

    def _train(self, points: Sequence[dict[str, Any]], params: dict[str, Any] | None) -> None:
        """One run, measured after the steps of each point."""
        by_steps = {self._config(point).max_steps: point for point in points}
        config = self._config({**points[0], "max_steps": max(by_steps)})
        request = dataclasses.replace(self._request, config=config)
        clock = PhaseClock()
        left = dict(by_steps)
        run: Run

        def measure(wanted: int, steps: int, kl: float | None = None) -> None:
            point = left[wanted]
            result = SweepRun(
                settings=self._full(point),
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
                self._add(self._measured(result))

            del left[wanted]

        def after_step(steps: int) -> None:
            # At the end also what the corpora are too short for. Within a budget, what counts is known at the end only.
            for wanted in sorted(left) if request.budget is None else ():
                if steps == min(wanted, run.total_steps):
                    measure(wanted, steps)

        def at_end(result: UnlearnResult) -> None:
            for wanted in sorted(left):
                measure(wanted, result.best_step, (result.budget or {}).get("kl"))

        with self._restored(config):
            run = Run(request, self._source, self._corpora, clock, None, None, self._cache, after_step, at_end)
            try:
                run.result(resume=False)
            except DivergedError as error:
                for wanted in sorted(left):
                    self._add(_failed(self._full(left[wanted]), error, params))

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
        place = f"{checkpoint.EVALUATIONS}/{_folder_name(run.settings)}"
        result = evaluations.measure(
            self._source,
            [name for names in self._tasks.values() for name in names],
            self._request.eval_options,
            steps=run.steps,
            folder=self._folder / place,
            samples=self._request.log_samples,
            texts=self._request.eval_text,
        )
        accuracies = {kind: _pooled([result.tasks[name] for name in names]) for kind, names in self._leaves.items()}
        return dataclasses.replace(
            run,
            forget=accuracies["forget"],
            retain=accuracies["retain"],
            scores={name: dict(result[name].metrics) for name in result},
            results=place,
            seconds={**run.seconds, "evaluate": round(time.perf_counter() - begun, 3)},
        )

    def _add(self, run: SweepRun) -> None:
        self._file.add(asdict(run))
        self._done[_key(run.settings)] = run
        if run.forget is None or run.retain is None:
            outcome = f"failed: {run.failed}"
        else:
            outcome = f"forget {run.forget.value:.4f}, retain {run.retain.value:.4f}"
        name = f"  after step {run.steps}" if run.settings else "before unlearning"
        self._say(f"{name}: {outcome}")

    def _of(self, point: Mapping[str, Any]) -> SweepRun:
        return self._done[_key(self._full(point))]

    def _config(self, point: Mapping[str, Any]) -> TrainingConfig:
        return dataclasses.replace(self._base, **point)

    def _full(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point with the values of what is not swept, so that it is known again if that is swept later."""
        names = [axis.name for axis in self._base.search_axes]
        return {name: point.get(name, getattr(self._base, name)) for name in names}


def _worth_having(
    before: SweepRun, runs: Sequence[SweepRun], max_loss: float | None = None
) -> tuple[list[int], int | None]:
    """The Pareto front and the best on it; see `SweepResult`.

    Args:
        before: The model before unlearning.
        runs: The runs.
        max_loss: Most points of retain accuracy that the best may lose; None for any number.
    """
    objectives = {index: run.objectives for index, run in enumerate(runs)}
    known = [(index, aim) for index, aim in objectives.items() if aim is not None]
    start = before.objectives
    if start is None:
        raise ModelError("the model before unlearning has no accuracy; is runs.jsonl damaged?")
    # The model before is no run, but what is not better than it is not worth having.
    on_front = pareto.front([aim for _, aim in known] + [start])
    front = [known[place][0] for place in on_front if place < len(known) and known[place][1] != start]

    def gain(index: int) -> float:
        forget, retain = objectives[index] or start
        return (start[0] - forget) - (start[1] - retain)

    def loss(index: int) -> float:
        return 100 * (start[1] - (objectives[index] or start)[1])

    # A hair is allowed, for differences of decimal numbers are not exact.
    meeting = [index for index in front if max_loss is None or loss(index) <= max_loss + 1e-9]
    best = max(meeting, key=gain, default=None)
    return front, best if best is not None and gain(best) > 1e-9 else None


def _pooled(tasks: Sequence[TaskResult]) -> Accuracy:
    """The accuracy over all questions of some tasks."""
    right = sum(int(task.outcome.correct.sum()) for task in tasks)
    choices = [
        int(count) for task in tasks for count in task.outcome.choice_offsets[1:] - task.outcome.choice_offsets[:-1]
    ]
    low, high = _rust.wilson(right, len(choices))
    chance = sum(1 / count for count in choices) / len(choices)
    return Accuracy(value=right / len(choices), low=low, high=high, n=len(choices), chance=chance)


def _name_of(corpus: Corpus) -> str | None:
    return None if isinstance(corpus, CorpusTokens) else os.fspath(corpus)


def _key(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings: 100 and 100.0 are, a tuple and what JSON makes of it."""
    return json.dumps({name: _as_number(value) for name, value in settings.items()}, sort_keys=True)


def _as_number(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_number(one) for one in value]
    return float(value) if isinstance(value, int) else value


def _failed(settings: dict[str, Any], error: DivergedError, params: dict[str, Any] | None) -> SweepRun:
    return SweepRun(settings=settings, steps=error.step, forget=None, retain=None, failed=str(error), params=params)


def _folder_name(settings: Mapping[str, Any]) -> str:
    """Where the evaluation of a point lies: the same for the same settings, and readable."""
    named = (f"{name}={cell(value)}" for name, value in settings.items())
    name = ",".join(named).replace("/", "+") or "before"
    # Of many topics it may be longer than a file system takes.
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _told(point: Mapping[str, Any], but: str = "") -> str:
    return ", ".join(f"{name} {cell(value)}" for name, value in point.items() if name != but) or "one run"
