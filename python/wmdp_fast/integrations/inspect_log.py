"""From a folder of results to logs that inspect_ai reads: `inspect view`, `inspect log dump`, `samples_df`."""

from __future__ import annotations

import re
import string
import uuid
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.exceptions import DatasetError, WmdpFastError, WmdpFastWarning
from wmdp_fast.results.paths import results_below, sample_lines, samples_file
from wmdp_fast.results.saved import read_results
from wmdp_fast.runtime.files import check_folder, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from wmdp_fast.results.saved import SavedResults, SavedTask


def export(folder: str | PathLike[str], output: str | PathLike[str] | None = None) -> list[Path]:
    """Writes an inspect log for each multiple-choice task of each results file in a folder and the folders below it.

    Results of lm-eval itself do as well as this package's. With samples (`--log-samples`) a log holds every question
    with its prompt, the log-likelihoods of its choices and what was predicted; without, the numbers alone.

    Args:
        folder: Where results were saved.
        output: Where to write; the folder `inspect` beside each results file if None.

    Returns:
        The logs, `<time>_<task>_<id>.eval`.

    Warns:
        WmdpFastWarning: A task is left out, since it is no multiple-choice task or has more choices than there are
            letters; names it and the reason.

    Raises:
        DatasetError: A file holds something else; names it.
        FileNotFoundError: There are no results.
        OSError: A log, or the folder for them, cannot be written; names it.
        WmdpFastError: inspect_ai is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise WmdpFastError("inspect_ai is not installed; pip install 'wmdp-fast[inspect]'") from error
    found = results_below(Path(folder))
    if not found:
        raise FileNotFoundError(f"there are no results in {folder}: no results_<time>.json there or below")
    targets = {path: Path(output) if output is not None else path.parent / "inspect" for path in found}
    for target in targets.values():
        check_folder(target)
    written = []
    for path, target in targets.items():
        results = read_results(path, samples=False)
        for task in results.tasks.values():
            questions = _questions(task, results, path)
            if isinstance(questions, str):
                warnings.warn(f"{path}: {task.name} is left out: {questions}", WmdpFastWarning, stacklevel=2)
                continue
            log = _log(task, results, path, questions)
            stem = re.sub(r"[^A-Za-z0-9]+", "-", task.name)[:100]
            name = f"{log.eval.created[:19].replace(':', '-')}_{stem}_{log.eval.task_id}"
            written.append(target / f"{name}.eval")
            with replacing(written[-1]) as fresh:
                write_eval_log(log, str(fresh), format="eval")
    return written


def _questions(task: SavedTask, saved: SavedResults, path: Path) -> list[Any] | str | None:
    """The questions of a task; None if they were not saved, or why the task cannot be a log."""
    kind = task.config.get("output_type") or "multiple_choice"
    if kind != "multiple_choice":
        return f"it is no multiple-choice task but {kind}"
    file = samples_file(path, task.name, saved.raw)
    if file is None:
        return None
    delimiter = None if saved.raw.get("chat_template") else task.config.get("target_delimiter")
    scored = _rust.read_samples(file, delimiter=delimiter)
    counts = np.diff(scored.choice_offsets)
    if (most := int(counts.max())) > len(string.ascii_uppercase):
        question = int(scored.doc_ids[counts.argmax()])
        return f"question {question} has {most} choices, more than there are letters"
    return _samples(file, scored, task, saved.model_name)


def _log(task: SavedTask, saved: SavedResults, path: Path, samples: list[Any] | None) -> Any:
    """One task's log."""
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalPlan,
        EvalPlanStep,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )

    results, config = saved.raw, task.config
    started = datetime.fromtimestamp(float(results.get("date") or 0), tz=UTC)
    seconds = float(results.get("total_evaluation_time_seconds") or 0)
    model = saved.model_name
    ended = datetime.fromtimestamp(started.timestamp() + seconds, tz=UTC).isoformat()
    count = task.n or len(samples or [])
    scores = []
    for name, value in task.metrics.items():
        metrics = {"accuracy": EvalMetric(name="accuracy", value=value)}
        error = task.stderr[name]
        if error is not None:
            metrics["stderr"] = EvalMetric(name="stderr", value=error)
        scores.append(EvalScore(name=name, scorer=name, scored_samples=count, metrics=metrics))
    # The same results give the same ids, so that an export that is repeated makes no second log.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{path.name}/{model}/{task.name}").hex[:22]
    versions = (results.get("wmdp_fast") or {}).get("versions") or {"lm_eval": results.get("lm_eval_version")}
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=uuid.uuid5(uuid.NAMESPACE_URL, path.name).hex[:22],
            task_id=identity,
            created=started.isoformat(),
            task=task.name,
            task_version=_version((results.get("versions") or {}).get(task.name)),
            dataset=EvalDataset(
                name=str(config.get("dataset_name") or config.get("dataset_path") or task.name),
                location=config.get("dataset_path"),
                samples=count,
                sample_ids=[sample.id for sample in samples or []] or None,
            ),
            model=model,
            model_args=_plain((results.get("config") or {}).get("model_args")),
            config=EvalConfig(),
            packages={name: str(version) for name, version in versions.items() if version},
            metadata={"num_fewshot": task.num_fewshot, "results_file": path.name},
        ),
        plan=EvalPlan(steps=[EvalPlanStep(solver="loglikelihood", params={"prompt": config.get("doc_to_text")})]),
        results=EvalResults(total_samples=count, completed_samples=count, scores=scores),
        stats=EvalStats(started_at=started.isoformat(), completed_at=ended),
        samples=samples,
    )


def _samples(file: Path, scored: _rust.Samples, task: SavedTask, model: str) -> list[Any]:
    """The questions of a task: what was scored as Rust reads it, prompts and documents from the lines themselves."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    offsets, predicted = scored.choice_offsets.tolist(), scored.predicted("acc").tolist()
    correct = {metric: scored.correct(metric) for metric in task.metrics if metric in ("acc", "acc_norm", "acc_bytes")}
    asked = sample_lines(file)
    samples = []
    for question, doc_id in enumerate(scored.doc_ids.tolist()):
        texts = [text.strip() for text in scored.continuations(question)]
        line = asked[doc_id]
        values = scored.loglikelihood[offsets[question] : offsets[question + 1]].tolist()
        right = int(scored.gold[question])
        details = {"loglikelihood": dict(zip(texts, values, strict=True)), **_own(line)}
        samples.append(
            EvalSample(
                id=doc_id,
                epoch=1,
                input=_prompt(file, line),
                choices=texts,
                # Where a target names several choices, or none, it is given as it stands.
                target=string.ascii_uppercase[right] if right >= 0 else str(line["target"]),
                output=ModelOutput.from_content(model, texts[predicted[question]]),
                scores={
                    metric: Score(
                        value=CORRECT if answers[question] else INCORRECT,
                        answer=string.ascii_uppercase[int(scored.predicted(metric)[question])],
                        metadata=details,
                    )
                    for metric, answers in correct.items()
                    if answers is not None
                },
                metadata={"doc": line.get("doc")},
            )
        )
    return samples


def _prompt(file: Path, line: Mapping[str, Any]) -> str:
    arguments = line["arguments"]
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    prompt = first.get("arg_0") if isinstance(first, dict) else first[0]
    if not isinstance(prompt, str):
        raise DatasetError(str(file), f"question {line['doc_id']} has no prompt", field="arguments")
    return prompt


def _own(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """What only this package writes."""
    own = line.get("wmdp_fast")
    return own if isinstance(own, dict) else {}


def _version(version: Any) -> int | str:
    return version if isinstance(version, int | str) else str(version)


def _plain(arguments: Any) -> dict[str, Any]:
    return arguments if isinstance(arguments, dict) else {"model_args": arguments}
