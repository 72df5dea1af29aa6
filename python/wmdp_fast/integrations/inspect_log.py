"""From a folder of results to logs that inspect_ai reads: `inspect view`, `inspect log dump`, `samples_df`."""

from __future__ import annotations

import json
import re
import string
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import DatasetError, WmdpFastError

if TYPE_CHECKING:
    from os import PathLike

# results_2026-11-24T15-04-05.678901.json, or NAME_<time>.json beside a name that was given.
_RESULTS = re.compile(r"^.+_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json$")


def export(folder: str | PathLike[str], output: str | PathLike[str] | None = None) -> list[Path]:
    """Writes an inspect log for each task of each results file in a folder and the folders below it.

    Results of lm-eval itself do as well as this package's. With samples (`--log-samples`) a log holds every question
    with its prompt, the log-likelihoods of its choices and what was predicted; without, the numbers alone.

    Args:
        folder: Where results were saved.
        output: Where to write; the folder `inspect` beside each results file if None.

    Returns:
        The logs, `<time>_<task>_<id>.eval`.

    Raises:
        DatasetError: A file holds something else; names it.
        FileNotFoundError: There are no results.
        WmdpFastError: inspect_ai is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise WmdpFastError("inspect_ai is not installed; pip install 'wmdp-fast[inspect]'") from error
    found = sorted(path for path in Path(folder).rglob("*.json") if _RESULTS.match(path.name))
    if not found:
        raise FileNotFoundError(f"there are no results in {folder}: no results_<time>.json there or below")
    written = []
    for path in found:
        results = _read_json(path)
        target = Path(output) if output is not None else path.parent / "inspect"
        target.mkdir(parents=True, exist_ok=True)
        for task in results.get("configs") or {}:
            log = _log(task, results, path)
            name = f"{log.eval.created[:19].replace(':', '-')}_{re.sub(r'[^A-Za-z0-9]+', '-', task)}_{log.eval.task_id}"
            written.append(target / f"{name}.eval")
            write_eval_log(log, str(written[-1]), format="eval")
    return written


def _read_json(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(str(path), f"is no JSON: {error}") from error
    if not isinstance(results, dict) or not {"results", "configs", "config"} <= results.keys():
        raise DatasetError(str(path), "is no results file of lm-eval or wmdp-fast: it lacks results, configs or config")
    return results


def _log(task: str, results: dict[str, Any], path: Path) -> Any:
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

    own, config = results["results"][task], results["configs"][task]
    started = datetime.fromtimestamp(float(results.get("date") or 0), tz=UTC)
    seconds = float(results.get("total_evaluation_time_seconds") or 0)
    model = str(results.get("model_name") or results["config"].get("model") or "unknown")
    ended = datetime.fromtimestamp(started.timestamp() + seconds, tz=UTC).isoformat()
    samples = _samples(task, model, path)
    count = int(results.get("n-samples", {}).get(task, {}).get("effective") or len(samples or []))
    scores = []
    for key, value in own.items():
        metric, _, rule = key.partition(",")
        if not rule or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        metrics = {"accuracy": EvalMetric(name="accuracy", value=value)}
        error = own.get(f"{metric}_stderr,{rule}")
        if isinstance(error, int | float):
            metrics["stderr"] = EvalMetric(name="stderr", value=error)
        scores.append(EvalScore(name=metric, scorer=metric, scored_samples=count, metrics=metrics))
    # The same results give the same ids, so that an export that is repeated makes no second log.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{path.name}/{model}/{task}").hex[:22]
    versions = (results.get("wmdp_fast") or {}).get("versions") or {"lm_eval": results.get("lm_eval_version")}
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=uuid.uuid5(uuid.NAMESPACE_URL, path.name).hex[:22],
            task_id=identity,
            created=started.isoformat(),
            task=task,
            task_version=_version(results.get("versions", {}).get(task)),
            dataset=EvalDataset(
                name=str(config.get("dataset_name") or config.get("dataset_path") or task),
                location=config.get("dataset_path"),
                samples=count,
                sample_ids=[sample.id for sample in samples or []] or None,
            ),
            model=model,
            model_args=_plain(results["config"].get("model_args")),
            config=EvalConfig(),
            packages={name: str(version) for name, version in versions.items() if version},
            metadata={"num_fewshot": results.get("n-shot", {}).get(task), "results_file": path.name},
        ),
        plan=EvalPlan(steps=[EvalPlanStep(solver="loglikelihood", params={"prompt": config.get("doc_to_text")})]),
        results=EvalResults(total_samples=count, completed_samples=count, scores=scores),
        stats=EvalStats(started_at=started.isoformat(), completed_at=ended),
        samples=samples,
    )


def _samples(task: str, model: str, path: Path) -> list[Any] | None:
    """The questions of a task, or None if they were not saved."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    matched = _RESULTS.match(path.name)
    file = path.with_name(f"samples_{task}_{matched[1] if matched else ''}.jsonl")
    if not file.is_file():
        return None
    samples = []
    with file.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines, start=1):
            try:
                asked = json.loads(line)
                arguments = [asked["arguments"][key] for key in sorted(asked["arguments"], key=_number)]
                values = [float(response[0]) for response in asked["filtered_resps"]]
                answer = string.ascii_uppercase[values.index(max(values))]
                right = string.ascii_uppercase[int(asked["target"])]
                prompt, texts = arguments[0]["arg_0"], [one["arg_1"].strip() for one in arguments]
                doc_id, metrics = asked["doc_id"], {name: float(asked[name]) for name in asked["metrics"]}
            except (ValueError, KeyError, IndexError, TypeError) as error:
                problem = f"is no sample of a multiple-choice task ({type(error).__name__}: {error})"
                raise DatasetError(str(file), problem, row) from error
            details = {"loglikelihood": dict(zip(texts, values, strict=True)), **asked.get("wmdp_fast", {})}
            samples.append(
                EvalSample(
                    id=doc_id,
                    epoch=1,
                    input=prompt,
                    choices=texts,
                    target=right,
                    output=ModelOutput.from_content(model, texts[values.index(max(values))]),
                    scores={
                        name: Score(value=CORRECT if value == 1 else INCORRECT, answer=answer, metadata=details)
                        for name, value in metrics.items()
                    },
                    metadata={"doc": asked.get("doc")},
                )
            )
    return samples


def _number(key: str) -> int:
    return int(key.rpartition("_")[2])


def _version(version: Any) -> int | str:
    return version if isinstance(version, int | str) else str(version)


def _plain(arguments: Any) -> dict[str, Any]:
    return arguments if isinstance(arguments, dict) else {"model_args": arguments}
