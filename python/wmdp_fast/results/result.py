"""Results of an evaluation: numbers by task and group, the table that shows them, and lm-eval's files.

Names, keys, their order and the formulas are those of lm-eval 0.4.13, so that whatever reads its results reads these.
What lm-eval does not write stands under one more key, `wmdp_fast`: at the end of the results file, and of every line of
a samples file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.results import letters
from wmdp_fast.results.lm_eval_files import NOT_AVAILABLE, sha256
from wmdp_fast.results.near_tie import near_tie_notes
from wmdp_fast.results.paths import names_a_file, next_time, output_folder, sanitize_model_name
from wmdp_fast.results.saved import SavedResults, look_up, saved_results
from wmdp_fast.runtime import environment, strict_json
from wmdp_fast.runtime.files import explain_full_disk, write_whole
from wmdp_fast.runtime.tables import aligned, html_table, number_text

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    import pandas as pd
    from matplotlib.axes import Axes

    from wmdp_fast.results.perplexity import TextResult
    from wmdp_fast.tasks.task import Group, Task


# To which side the table's columns are moved.
_SIDES = "lrrlrl"

# Most orders of the choices whose accuracies are all in the table; of more, the lowest and the highest.
_ORDERS_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's numbers, and for each question what was asked and scored.

    Attributes:
        task: The task as it was run.
        questions: The questions asked.
        prompts: What the model read.
        outcome: For each question prediction, margin and log-likelihoods; `wmdp_fast.Outcome` describes its arrays.
        num_available: Questions in the file; more than were asked if a limit was set.
        dataset_revision: Commit of the dataset on the hub, or None for a local file.
        order_answers: The answers in other orders of the choices, if the questions were asked in those.

    Example:
        >>> from wmdp_fast import demo, evaluate
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> [task] = result.tasks.values()
        >>> task.outcome.loglikelihood.shape, task.metrics["acc"] == task["acc"]
        ((32,), True)
    """

    task: Task
    questions: _rust.QuestionSet = field(repr=False)
    prompts: _rust.Prompts = field(repr=False)
    outcome: _rust.Outcome = field(repr=False)
    num_available: int
    dataset_revision: str | None = None
    order_answers: _rust.OrderAnswers | None = field(default=None, repr=False)

    @classmethod
    def from_scores(
        cls,
        task: Task,
        questions: _rust.QuestionSet,
        prompts: _rust.Prompts,
        loglikelihood: npt.NDArray[np.float64],
        is_greedy: npt.NDArray[np.bool_],
        *,
        near_tie: float,
        num_available: int,
        dataset_revision: str | None = None,
    ) -> TaskResult:
        """Aggregates the scores of a task's choices, question after question.

        Args:
            task: The task as it was run, `num_fewshot` included.
            questions: The questions asked.
            prompts: What the model read, one prompt a question.
            loglikelihood: Of each choice, in nats, `[num_choices]`.
            is_greedy: Whether each choice is what greedy decoding gives, `[num_choices]`.
            near_tie: Margin in nats up to which a prediction counts as a near-tie.
            num_available: Questions in the file.
            dataset_revision: Commit of the dataset on the hub, or None for a local file.

        Raises:
            ValueError: If the scores do not fit the prompts, or one is NaN; names the question.
        """
        return cls(
            task=task,
            questions=questions,
            prompts=prompts,
            outcome=_rust.aggregate(prompts, loglikelihood, is_greedy, near_tie=near_tie),
            num_available=num_available,
            dataset_revision=dataset_revision,
        )

    def __getitem__(self, metric: str) -> float | None:
        """A metric (`acc`) or its standard error (`acc_stderr`); lm-eval's longer names (`acc,none`) work too."""
        return look_up(self, metric)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def alias(self) -> str:
        """The name shown in tables."""
        return self.task.alias

    @property
    def metrics(self) -> dict[str, float]:
        """The task's metrics, `acc` before `acc_norm`."""
        values = {"acc": self.outcome.acc, "acc_norm": self.outcome.acc_norm}
        return {metric: value for metric, value in values.items() if metric in self.task.metrics}

    @property
    def stderr(self) -> dict[str, float | None]:
        """For each metric its standard error (sample standard deviation over the root of n); None for one question."""
        values = {"acc": self.outcome.acc_stderr, "acc_norm": self.outcome.acc_norm_stderr}
        return {metric: value for metric, value in values.items() if metric in self.task.metrics}

    @property
    def sample_len(self) -> int:
        """Number of questions asked."""
        return len(self.outcome)

    @property
    def numbers_of_choices(self) -> tuple[int, ...]:
        """The numbers of choices that questions have, each once."""
        return tuple(np.unique(np.diff(self.outcome.choice_offsets)).tolist())

    @property
    def collapse(self) -> letters.Collapse | None:
        """The choice that is answered to more than 90 % of the questions, if there is one."""
        return letters.collapse(self.outcome.predicted, self.outcome.answers)

    @property
    def num_fewshot(self) -> int:
        """Number of examples before each question."""
        return self.task.num_fewshot or 0

    @property
    def num_near_ties(self) -> int:
        """Number of questions whose two best choices are so close that rounding may have decided."""
        return int(self.outcome.near_tie.sum())


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """A group's numbers over all tasks below it.

    Attributes:
        group: The group's definition.
        metrics: Means over all questions (lm-eval's `weight_by_size`), by metric.
        stderr: Their standard errors, pooled over the tasks; None if one of the tasks has none.
        sample_len: Number of questions in all tasks below.
        sample_count: For each metric the number of questions it was taken over.
        num_fewshot: Number of examples before each question, or None if the tasks differ.
        num_near_ties: Near-ties in all tasks below.

    Example:
        >>> from wmdp_fast import GroupResult, demo, evaluate
        >>> from wmdp_fast.tasks.task import Group
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> [task] = result.tasks.values()
        >>> group = GroupResult.from_tasks(Group("ours", "ours", (task.name,), version="1"), [task])
        >>> group["acc"] == task["acc"]
        True
    """

    group: Group
    metrics: dict[str, float]
    stderr: dict[str, float | None]
    sample_len: int
    sample_count: dict[str, int]
    num_fewshot: int | None
    num_near_ties: int

    @classmethod
    def from_tasks(cls, group: Group, tasks: Sequence[TaskResult]) -> GroupResult:
        """Pools the tasks below a group, at any depth, in order."""
        metrics: dict[str, float] = {}
        stderr: dict[str, float | None] = {}
        sample_count: dict[str, int] = {}
        for metric in group.metrics:
            having = [task for task in tasks if metric in task.metrics]
            if having:
                sizes = [task.sample_len for task in having]
                metrics[metric], stderr[metric] = _rust.pool(
                    [task.metrics[metric] for task in having], [task.stderr[metric] for task in having], sizes
                )
                sample_count[metric] = sum(sizes)
        shots = {task.num_fewshot for task in tasks}
        return cls(
            group=group,
            metrics=metrics,
            stderr=stderr,
            sample_len=sum(task.sample_len for task in tasks),
            sample_count=sample_count,
            num_fewshot=shots.pop() if len(shots) == 1 else None,
            num_near_ties=sum(task.num_near_ties for task in tasks),
        )

    def __getitem__(self, metric: str) -> float | None:
        """A metric (`acc`) or its standard error (`acc_stderr`); lm-eval's longer names (`acc,none`) work too."""
        return look_up(self, metric)

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def alias(self) -> str:
        """The name shown in tables."""
        return self.group.alias

    def _to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"alias": self.alias, "name": self.name}
        if self.group.metrics:
            found |= {"sample_len": self.sample_len, **_lm_eval_metrics(self)}
        if self.sample_count:
            found["sample_count"] = {f"{metric},none": count for metric, count in self.sample_count.items()}
        return found


@dataclass(frozen=True, kw_only=True, repr=False)
class EvalResult:
    """Everything about one evaluation.

    `result["wmdp_bio"]["acc"]` is a number, `print(result)` a table, `result.save(folder)` writes lm-eval's files.

    Attributes:
        tasks: Results by task, in the order they ran.
        groups: Results by group, parents before the groups below them.
        texts: Results by text, in the order they were given.
        model_name: Name or path of the model; names the folder of the files.
        model_source: lm-eval's name for the kind of model (`hf`).
        config: How the model was run; `config_section` makes it.
        timings: Seconds by phase: read (questions), import (torch, transformers), tokenizer, render, load (weights),
            tokenize (what of it was not done meanwhile), forward, aggregate, texts.
        num_tokens: Tokens that went through the model, padding excluded.
        started: When the run began, seconds since 1970.
        total_seconds: How long it took.
        score_mode: `float32`, or `model` for lm-eval's rounding of log-probabilities.
        near_tie: Margin in nats up to which a prediction counts as a near-tie.
        choice_orders: Which other orders of their choices the questions were asked in: `cyclic`, `all` or None.
        tokenizer: The tokenizer's special tokens and the longest input; `tokenizer_info` makes it.
        system_instruction: System message of the prompts.
        chat_template: Source of the chat template the prompts were put in.
        fewshot_as_multiturn: Whether examples were turns of a conversation.
        details: More to record, for instance which tokenizer and attention code ran.
        saved_to: The results file, if `evaluate` has saved it.
        versions: Versions of what numbers depend on.
        hardware: What the run ran on.

    Example:
        >>> from wmdp_fast import demo, evaluate
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> [name] = result
        >>> result[name]["acc"] == result.to_json()["results"][name]["acc,none"]
        True
        >>> result.save("runs", log_samples=True).name.startswith("results_")
        True
        >>> "acc" in result.table()
        True
    """

    tasks: Mapping[str, TaskResult]
    groups: Mapping[str, GroupResult]
    model_name: str
    model_source: str
    config: Mapping[str, Any]
    timings: Mapping[str, float]
    num_tokens: int
    started: float
    total_seconds: float
    score_mode: str
    near_tie: float
    texts: Mapping[str, TextResult] = field(default_factory=dict)
    choice_orders: str | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    system_instruction: str | None = None
    chat_template: str | None = None
    fewshot_as_multiturn: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    saved_to: Path | None = None
    versions: dict[str, str | None] = field(default_factory=environment.versions)
    hardware: dict[str, Any] = field(default_factory=environment.hardware)

    def __getitem__(self, name: str) -> TaskResult | GroupResult | TextResult:
        """The result of a task, a group or a text."""
        for results in (self.tasks, self.groups, self.texts):
            if name in results:
                return results[name]
        import difflib  # Only an error needs it.

        names = [*self.tasks, *self.groups, *self.texts]
        close = difflib.get_close_matches(name, names, n=1) or names
        raise KeyError(f"{name!r} was not evaluated; did you mean {', '.join(close[:5])}?")

    def __contains__(self, name: object) -> bool:
        return name in self.tasks or name in self.groups or name in self.texts

    def __iter__(self) -> Iterator[str]:
        return iter((*self.tasks, *self.groups, *self.texts))

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self._rows(), _SIDES, self._remarks())

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame with a row for each task or group and metric; `value` and `stderr` are shares.

        Raises:
            WmdpFastError: pandas is not installed.
        """
        return self._saved().to_frame()

    def samples_frame(self) -> pd.DataFrame:
        """A pandas frame with a row for each question; `SavedResults.samples_frame` describes its columns.

        Raises:
            WmdpFastError: pandas is not installed.
        """
        return self._saved().samples_frame()

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the accuracy of each task and group with Wilson's 95 % interval, and what guessing gives.

        Args:
            axes: matplotlib axes to draw on; None makes a figure, which `pyplot.show()` and notebooks show.

        Returns:
            The axes.

        Raises:
            ValueError: Nothing has an accuracy.
            WmdpFastError: matplotlib is not installed.
        """
        from wmdp_fast.results.plot import plot_accuracies

        rows = [
            ("  " * depth + one.alias, one.metrics["acc"], one.sample_len, self.chance(one.name))
            for one, depth in self._hierarchy()
            if isinstance(one, (TaskResult, GroupResult)) and "acc" in one.metrics
        ]
        return plot_accuracies(rows, axes, self.model_name)

    def chance(self, name: str) -> float | None:
        """The accuracy that guessing gives in a task or group; None of a text, and where numbers of choices differ."""
        if name in self.texts:
            return None
        numbers = {number for task in self._tasks_below(name) for number in task.numbers_of_choices}
        return 1 / numbers.pop() if len(numbers) == 1 else None

    def _saved(self) -> SavedResults:
        return from_evaluation(self)

    @property
    def group_subtasks(self) -> dict[str, list[str]]:
        """For each group the tasks and groups directly below it."""
        return {name: list(result.group.children) for name, result in self.groups.items()}

    def order_effects(self, name: str) -> _rust.OrderEffects:
        """What the order of the choices does to a task's answers, or to those of all tasks below a group.

        Raises:
            ValueError: The questions were asked in one order only.
        """
        answers = [task.order_answers for task in self._tasks_below(name) if task.order_answers is not None]
        return _rust.order_effects(answers)

    def table(self) -> str:
        """The numbers as aligned text, tasks indented below their groups."""
        return "\n".join([*aligned(self._rows(), _SIDES), *self._remarks()])

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("task", "n", "shots", "metric", "value", "stderr")]
        for result, depth in self._hierarchy():
            shots = "" if result.num_fewshot is None else str(result.num_fewshot)
            lead = ("  " * depth + result.alias, str(result.sample_len), shots)
            for metric, value in result.metrics.items():
                error = result.stderr[metric]
                stderr = NOT_AVAILABLE if error is None else number_text(error)
                rows.append((*lead, metric, number_text(value), f"± {stderr}"))
                lead = ("", "", "")
        return rows

    def _remarks(self) -> list[str]:
        """What stands below the table."""
        lines: list[str] = []
        if self.choice_orders is not None:
            lines += [line for name in self._topmost() for line in self._about_orders(name)]
        near_ties = sum(task.num_near_ties for task in self.tasks.values())
        lines += near_tie_notes(near_ties, sum(task.sample_len for task in self.tasks.values()), self.near_tie)
        if ranks := self.details.get("ranks"):
            lines.append(f"Scored by {len(ranks)} process{'es' * (len(ranks) > 1)} in {self.details['shards']} shards.")
        return [*lines, *self.letter_notes(), *(text.remark for text in self.texts.values())]

    def letter_notes(self) -> list[str]:
        """What to be told of tasks to nearly all of whose questions one letter is answered; usually nothing."""
        found = {name: task.collapse for name, task in self.tasks.items()}
        return letters.letter_notes({name: collapse for name, collapse in found.items() if collapse is not None})

    def to_json(self, task_hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The results file's contents: lm-eval's keys in lm-eval's order, then `wmdp_fast`.

        Args:
            task_hashes: For each task the hash over its samples; only known once they were written.
        """
        bottom_up = {name: self.groups[name]._to_json() for name in self._groups_bottom_up()}
        aggregated = {name: entry for name, entry in bottom_up.items() if self.groups[name].group.metrics}
        tasks = {
            name: {"name": name, "alias": task.alias, "sample_len": task.sample_len, **_lm_eval_metrics(task)}
            for name, task in self.tasks.items()
        }
        versions: dict[str, Any] = {name: task.task.version for name, task in self.tasks.items()}
        versions |= {name: group.group.version for name, group in self.groups.items()}
        versions |= dict.fromkeys(self.texts, 1.0)
        texts = {name: text.lm_eval_entry() for name, text in self.texts.items()}
        return {
            "results": tasks | texts | bottom_up,
            **({"groups": aggregated} if aggregated else {}),
            "group_subtasks": self.group_subtasks,
            "configs": dict(sorted(self._configs().items())),
            "versions": dict(sorted(versions.items())),
            "n-shot": dict(sorted(self._num_fewshot().items())),
            "higher_is_better": dict(sorted(self._higher_is_better().items())),
            "n-samples": self._num_samples(),
            "config": dict(self.config),
            "git_hash": environment.git_commit(),
            "date": self.started,
            "pretty_env_info": environment.summary(self.versions, self.hardware),
            "transformers_version": self.versions["transformers"],
            "lm_eval_version": self.versions["lm_eval"],
            "upper_git_hash": None,
            **self.tokenizer,
            "task_hashes": dict(task_hashes or {}),
            "model_source": self.model_source,
            "model_name": self.model_name,
            "model_name_sanitized": sanitize_model_name(self.model_name),
            "system_instruction": self.system_instruction,
            "system_instruction_sha": sha256(self.system_instruction),
            "fewshot_as_multiturn": self.fewshot_as_multiturn,
            "chat_template": self.chat_template,
            "chat_template_sha": sha256(self.chat_template),
            "total_evaluation_time_seconds": str(self.total_seconds),
            "wmdp_fast": self._own_fields(),
        }

    def _num_samples(self) -> dict[str, dict[str, int]]:
        """For each task and text, how many questions or documents there are and how many were asked."""
        available = {name: task.num_available for name, task in self.tasks.items()}
        available |= {name: text.text.available for name, text in self.texts.items()}
        return {name: {"original": n, "effective": self[name].sample_len} for name, n in available.items()}

    def _own_fields(self) -> dict[str, Any]:
        """What lm-eval does not record."""
        return {
            "score_mode": self.score_mode,
            "near_tie": self.near_tie,
            **({"choice_orders": self._choice_orders()} if self.choice_orders else {}),
            "tasks": {
                name: {
                    "near_ties": task.num_near_ties,
                    "file": task.questions.file,
                    "dataset_revision": task.dataset_revision,
                    "content_hash": task.questions.content_hash,
                    **({} if (one := task.collapse) is None else {"one_letter": vars(one)}),
                }
                for name, task in self.tasks.items()
            },
            **({"texts": {name: text.details() for name, text in self.texts.items()}} if self.texts else {}),
            "seconds": dict(self.timings),
            "tokens": self.num_tokens,
            "versions": self.versions,
            "hardware": self.hardware,
            **self.details,
            "warnings": [*self.details.get("warnings", []), *self.letter_notes()],
        }

    def save(self, output_path: str | os.PathLike[str], *, log_samples: bool = False) -> Path:
        """Writes the results file and, if asked, one samples file a task, named as lm-eval names them.

        In a folder: `{output_path}/{model}/results_{time}.json` and `samples_{task}_{time}.jsonl` beside it. If
        `output_path` ends in `.json`, results go to that name with the time added, samples beside it. Each file appears
        whole; if one cannot be written, those of this call are removed again.

        Args:
            output_path: A folder, made if missing, or a name ending in `.json`.
            log_samples: Whether to write each question with its prompt and scores. MMLU with five examples takes
                170 MB, for lm-eval's format repeats a prompt for each choice.

        Returns:
            The path of the results file.

        Raises:
            OSError: A file cannot be written; names it.
        """
        folder = output_folder(output_path, self.model_name)
        stem = Path(output_path).stem if names_a_file(output_path) else "results"
        folder.mkdir(parents=True, exist_ok=True)
        time = next_time(folder, datetime.now())  # Local time, as lm-eval has it.
        results_file = folder / f"{stem}_{time}.json"

        written: list[Path] = []
        task_hashes: dict[str, str] = {}
        try:
            for name, task in (self.tasks if log_samples else {}).items():
                samples_file = folder / f"samples_{name}_{time}.jsonl"
                task_hashes[name] = _rust.write_samples(
                    samples_file,
                    task.questions,
                    task.prompts,
                    task.outcome,
                    list(task.metrics),
                    task.order_answers,
                )
                written.append(samples_file)
            for name, text in (self.texts if log_samples else {}).items():
                samples_file = folder / f"samples_{name}_{time}.jsonl"
                task_hashes[name] = text.write_samples(samples_file)
                written.append(samples_file)
            # Last, so that a results file never tells of samples that are not there.
            content = strict_json.dumps(self.to_json(task_hashes), indent=2, ensure_ascii=False, default=str)
            write_whole(results_file, content)
        except BaseException as error:
            for samples_file in written:
                samples_file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                explained = explain_full_disk(error, Path(error.filename or results_file))
                if explained is not error:
                    raise explained from error
            raise
        return results_file

    def _configs(self) -> dict[str, dict[str, Any]]:
        """What was asked of each task and text, as lm-eval writes it."""
        of_tasks = {name: task.task.lm_eval_config(task.numbers_of_choices) for name, task in self.tasks.items()}
        return of_tasks | {name: text.lm_eval_config() for name, text in self.texts.items()}

    def _hierarchy(self) -> Iterator[tuple[TaskResult | GroupResult | TextResult, int]]:
        """Groups, each followed by what is below it and how deep, then the tasks that are in none, then texts."""

        def walk(name: str, depth: int) -> Iterator[tuple[TaskResult | GroupResult | TextResult, int]]:
            result = self[name]
            yield result, depth
            if isinstance(result, GroupResult):
                for child in result.group.children:
                    yield from walk(child, depth + 1)

        for name in (*self._topmost(), *self.texts):
            yield from walk(name, 0)

    def _topmost(self) -> list[str]:
        """The groups and tasks that are in no group."""
        below = {child for group in self.groups.values() for child in group.group.children}
        return [name for name in (*self.groups, *self.tasks) if name not in below]

    def _tasks_below(self, name: str) -> list[TaskResult]:
        if name in self.tasks:
            return [self.tasks[name]]
        return [task for child in self.groups[name].group.children for task in self._tasks_below(child)]

    def _about_orders(self, name: str) -> list[str]:
        """What the order of the choices does, in words."""
        effects = self.order_effects(name)
        accuracies = [f"{order} {acc:.4f}" for order, _, acc in effects.orders]
        if len(accuracies) > _ORDERS_SHOWN:
            ranked = sorted(effects.orders, key=lambda order: order[2])
            accuracies = [f"from {ranked[0][0]} {ranked[0][2]:.4f} to {ranked[-1][0]} {ranked[-1][2]:.4f}"]
        spread = "" if effects.sd is None else f", sd {effects.sd:.4f}"

        def shares(column: int) -> str:
            return " ".join(f"{letters[0]} {letters[column]:.1%}" for letters in effects.letters)

        return [
            f"{self[name].alias} in {len(effects.orders)} orders of the choices: mean acc {effects.mean:.4f}{spread}"
            f" ({', '.join(accuracies)})",
            f"  another order changes {effects.changed:.1%} of the answers;"
            f" {effects.consistent:.1%} of questions get the same answer in every order",
            f"  answers by letter: {shares(2)} in the original order (right are {shares(1)}), {shares(3)} over all",
        ]

    def _choice_orders(self) -> dict[str, Any]:
        """What the order of the choices does to each task and group, for the results file."""

        def entry(name: str) -> dict[str, Any]:
            effects = self.order_effects(name)
            return {
                "orders": {order: {"n": n, "acc": acc} for order, n, acc in effects.orders},
                "acc_mean": effects.mean,
                "acc_sd": effects.sd,
                "changed": effects.changed,
                "consistent": effects.consistent,
                "letters": {
                    letter: {"right": right, "original": original, "all_orders": every}
                    for letter, right, original, every in effects.letters
                },
            }

        return {"asked": self.choice_orders, "results": {name: entry(name) for name in (*self.tasks, *self.groups)}}

    def _groups_bottom_up(self) -> list[str]:
        """Group names, each after the groups below it: the order in which lm-eval adds them to its results."""
        ordered: dict[str, None] = {}

        def visit(name: str) -> None:
            for child in self.groups[name].group.children:
                if child in self.groups and child not in ordered:
                    visit(child)
            ordered[name] = None

        below = {child for group in self.groups.values() for child in group.group.children}
        for name in self.groups:
            if name not in below:
                visit(name)
        return list(ordered)

    def _num_fewshot(self) -> dict[str, int]:
        """For each task, and for groups as lm-eval does it: from what is directly below, parents before their children.

        A group that holds only groups therefore has no entry.
        """
        shots = {name: task.num_fewshot for name, task in self.tasks.items()}
        for name, children in self.group_subtasks.items():
            below = {shots[child] for child in children if child in shots}
            if len(below) == 1:
                shots[name] = below.pop()
        return shots | dict.fromkeys(self.texts, 0)

    def _higher_is_better(self) -> dict[str, dict[str, bool]]:
        """For each task and group and metric; for groups from what is directly below, as `_num_fewshot`."""
        found = {name: dict(task.task.higher_is_better) for name, task in self.tasks.items()}
        for name, children in self.group_subtasks.items():
            below = {metric: better for child in children for metric, better in found.get(child, {}).items()}
            if below:
                found[name] = below
        return found | {name: dict.fromkeys(text.metrics, False) for name, text in self.texts.items()}


def from_evaluation(result: EvalResult) -> SavedResults:
    """An evaluation of this process as `read_results` would read it after `result.save(..., log_samples=True)`."""
    return saved_results(
        json.loads(strict_json.dumps(result.to_json(), default=str)),
        None,
        1,
        lambda name: (
            result.texts[name].documents
            if name in result.texts
            else _rust.Samples.from_outcome(
                result.tasks[name].questions, result.tasks[name].prompts, result.tasks[name].outcome
            )
        ),
    )


def _lm_eval_metrics(result: TaskResult | GroupResult) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for metric, value in result.metrics.items():
        stderr = result.stderr[metric]
        found[f"{metric},none"] = value
        found[f"{metric}_stderr,none"] = NOT_AVAILABLE if stderr is None else stderr
    return found
