"""A sweep: a method with many settings on one model, each result measured in place, and which of them are worth having.

The model is loaded once. After each run the changed tensors get their old values back. Runs that differ in their number
of steps only are one run that is measured on the way, unless a step depends on how many are to come, as with a schedule
of the learning rate. What training does not change is read from a `TrunkCache`.

Every result is a line in `runs.jsonl`, written when it is there. A sweep that was killed goes on from these lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.exceptions import ModelError, TaskError, WmdpFastWarning
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.runtime.devices import shared_devices
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.runtime.memory import amount_of_memory
from wmdp_fast.scoring.journaled import GOES_ON
from wmdp_fast.unlearning import activation_cache, evaluations, preflight
from wmdp_fast.unlearning.api import cache_bytes, checked_config, listed_corpora, listed_names
from wmdp_fast.unlearning.budget_request import budget_request
from wmdp_fast.unlearning.memory_plan import refuse_unstreamed
from wmdp_fast.unlearning.one_run import refuse_leftovers
from wmdp_fast.unlearning.request import Request
from wmdp_fast.unlearning.sweep import identity as sweep_identity
from wmdp_fast.unlearning.sweep import pareto, schedule
from wmdp_fast.unlearning.sweep.identity import Extent
from wmdp_fast.unlearning.sweep.result import MAX_LOSS, SweepResult, SweepRun, check_max_loss
from wmdp_fast.unlearning.sweep.schedule import Results
from wmdp_fast.unlearning.sweep.search_space import OptunaSampler, Range, bounds, check_space, grid
from wmdp_fast.unlearning.sweep.trials import Check, Keep, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.runtime.devices import Devices
    from wmdp_fast.unlearning.sweep.search_space import Space
    from wmdp_fast.unlearning.training_config import TrainingConfig

RUNS = "runs.jsonl"
TRUNK = "trunk"


def sweep(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    forget: Corpus | Sequence[Corpus],
    retain: Corpus | Sequence[Corpus],
    over: Mapping[str, Sequence[Any] | Range],
    forget_tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    retain_tasks: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    eval_text: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    config: TrainingConfig | None = None,
    trials: int | None = None,
    resume: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    device: str = "auto",
    devices: str | None = None,
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
    memory: str | int | None = None,
    stream: bool = False,
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
        devices: Several, with a process on each that takes the next point when it is free: `all` GPUs, a number of
            GPUs, `cuda:0,cuda:1` or `cpu:2`.
        trust_remote_code: Whether to run code that comes with the model.
        eval_options: Further options of `wmdp_fast.evaluate` that say how questions are asked and scored, such as
            `limit` and `token_budget`.
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
        memory: As in `unlearn`: if the whole model does not fit into it, the layers that are trained stay in memory,
            and all others are read when they are run, once for each evaluation or each chunk of one. Of several
            processes on the CPU each takes an even share.
        stream: As in `unlearn`.
        progress: Whether to show progress bars on stderr.
        note: Takes lines meant for the user.

    Returns:
        All runs, and which are on the Pareto front.

    Raises:
        FileExistsError: There is a sweep in `output` and `resume` was not set, or something at `keep_best`.
        ModelError: The model cannot be loaded, lacks a layer or parameters; or `output` has a sweep of another model;
            or the processes on all devices were killed.
        TaskError: A task is unknown, or has no accuracy.
        TypeError: `config` or `over` is something else.
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
    several = shared_devices([model], device, devices)
    kind = device if several is None else several.device
    base = dataclasses.replace(checked_config(config), save_every=0)
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
    if memory is not None or stream:
        refuse_unstreamed(model, request, configs)
    if memory is not None:
        amount_of_memory(memory)
    leaves = _check_tasks(tasks, request.eval_options, request.eval_text)
    tokenizer, corpora = preflight.check(
        request,
        model,
        tokenizer,
        configs=configs,
        revision=revision,
        device=kind,
        trust_remote_code=trust_remote_code,
    )
    for sentence in (*corpora.not_held_out, *corpora.doubts):
        warnings.warn(sentence, WmdpFastWarning, stacklevel=2)
    say = note or (lambda _line: None)
    for sentence in corpora.cut:
        say(sentence)
    trunk = folder / TRUNK if cache_trunk is None else Path(cache_trunk)
    plan = Plan(
        base=base,
        request=request,
        model=model,
        tokenizer=tokenizer,
        revision=revision,
        trust_remote_code=trust_remote_code,
        corpora=corpora,
        extent=extent,
        tasks=tasks,
        leaves=leaves,
        folder=folder,
        trunk=trunk,
        limit=limit,
        processes=1,
        configs=configs,
        memory=memory,
        stream=stream,
    )
    with _results_folder(folder), RunsFile(folder / RUNS) as file:
        results = Results(base, tuple(space), file, say, several=several is not None)
        with schedule.doing(plan, device, several, results) as do:
            do([Check()])
            runs = _run(space, sampler, trials or 0, plan, several, results, do)
            front, best = _worth_having(results.before, runs, max_loss)
            kept = None
            if keep_best is not None and best is not None:
                kept = Path(keep_best)
                do([Keep(dataclasses.replace(base, **runs[best].settings), kept, resume)])
        say(activation_cache.summary_of(results.use, trunk, activation_cache.size_of(trunk)))
        if cache_trunk is None:
            shutil.rmtree(trunk)
    return SweepResult(
        base=results.before,
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
            "device": None if kind == "auto" else kind,
            "trust_remote_code": trust_remote_code,
            "max_kl": max_kl,
            "kl_text": None if kl_text is None else os.fspath(kl_text),
            "kl_every": kl_every,
            "memory": memory,
            "stream": stream,
        },
    )


def _run(
    space: Space,
    sampler: OptunaSampler | None,
    trials: int,
    plan: Plan,
    devices: Devices | None,
    results: Results,
    do: schedule.Do,
) -> list[SweepRun]:
    """Runs what is to be run, and returns the results in the order of the grid or of their drawing."""
    points = list(grid(space)) if sampler is None else []
    shown = plan.request.progress and devices is not None
    with schedule.bar_of(results, len(points) or trials, shown=shown):
        if sampler is None:
            apart = plan.base.depends_on_total or plan.request.budget is not None
            schedule.grid(points, apart=apart, results=results, base=plan.base, do=do)
        else:
            at_once = 1 if devices is None else len(devices.names)
            points = schedule.drawn(sampler, trials, at_once, results=results, do=do)
    return [results.of(point) for point in points]


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
    """The folder of a sweep's results. If it ends without a single one, it leaves no trace; if early, it says so."""
    is_new = not sweep_identity.exists(folder)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    runs = folder / RUNS
    before = _size(runs)
    try:
        yield
    except BaseException as error:
        size = _size(runs)
        if size > before or (size and isinstance(error, (KeyboardInterrupt, OSError))):
            error.add_note(f"what is finished is kept in {folder}: {GOES_ON}")
        elif is_new and not size:
            runs.unlink(missing_ok=True)
            sweep_identity.remove(folder)
            for name in (TRUNK, checkpoint.EVALUATIONS):
                shutil.rmtree(folder / name, ignore_errors=True)
            if not existed and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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


def _name_of(corpus: Corpus) -> str | None:
    return None if isinstance(corpus, CorpusTokens) else os.fspath(corpus)
