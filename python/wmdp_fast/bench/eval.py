"""`wmdp-fast bench eval`: how fast a model is scored, beside lm-eval on the same questions in the same run.

Each worker runs in a process of its own, one after the other, so that the time of a whole process and its peak
memory are its own. All score the same; if their numbers differ, the report says so and counts as failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast.bench.agreement import tolerance
from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.bench.shapes import SHAPES, WORKLOADS
from wmdp_fast.bench.worker import Job, Outcome
from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray

BASELINES = ("lm-eval", "padded")


def bench_eval(
    *,
    model: str | PathLike[str] | None = None,
    shape: str | None = None,
    tokenizer: str | PathLike[str] | None = None,
    tasks: str | Sequence[str] | None = None,
    workload: str | None = None,
    data: str | PathLike[str] | None = None,
    num_fewshot: int = 0,
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    token_budget: int | Literal["auto"] = "auto",
    engine: str = "auto",
    compiled: bool = False,
    against: Sequence[str] = (),
    baseline_batch_size: int = 16,
) -> BenchReport:
    """Scores questions with this package, then with each baseline, and compares times, memory and numbers.

    Args:
        model: Folder of a model; or else `shape`.
        shape: A model of one of `shapes.SHAPES` with random weights.
        tokenizer: Folder of a tokenizer for a shape that is to answer `tasks`.
        tasks: Task names; or else `workload`.
        workload: Made-up questions, one of `shapes.WORKLOADS`.
        data: Folder with the datasets, in place of the hub.
        num_fewshot: Few-shot examples before each question of `tasks`.
        limit: Only so many questions of each task or subject.
        dtype: `float32`, `bfloat16` or `float16`; for a folder also `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        token_budget: Most tokens in a batch of this package's, or `auto`.
        engine: This package's engine: `auto`, `trie` or `padded`.
        compiled: Whether this package's engine compiles parts of the model first.
        against: Baselines, of `BASELINES`.
        baseline_batch_size: Rows in a batch of lm-eval's.

    Raises:
        ValueError: Options exclude each other, or one is unknown.
        WmdpFastError: A worker failed; says what it said.
    """
    _check(model, shape, tokenizer, tasks, workload, dtype, against)
    import torch  # noqa: F401 (so that `machine` sees GPUs: workers alone have needed it so far)

    job = Job(
        worker=engine,
        model=None if model is None else str(model),
        shape=shape,
        tokenizer=None if tokenizer is None else str(tokenizer),
        tasks=tasks if tasks is None or isinstance(tasks, str) else ",".join(tasks),
        workload=workload,
        data=None if data is None else str(data),
        num_fewshot=num_fewshot,
        limit=limit,
        dtype=dtype,
        device=device,
        token_budget=token_budget,
        compiled=compiled,
        batch_size=baseline_batch_size,
        matrix_rate=True,
        started=0.0,
    )
    ours, scores = _run(job)
    notes = ours.notes
    work: dict[str, Any] = {
        "benchmark": "eval",
        "model": model if shape is None else f"{shape}, random weights",
        "questions": f"{job.tasks or workload}, {ours.questions}",
        **({"num_fewshot": num_fewshot} if workload is None else {}),
        "dtype": notes["dtype"],
        "device": notes["device"],
        "threads": notes["threads"],
        "engine": notes["engine"],
        "compiled": compiled,
        "token_budget": notes["token_budget"],
        "machine": machine(),
    }
    report = BenchReport(work, _measurement(ours, notes))
    if warned := notes["warnings"]:
        work["warnings"] = "; ".join(warned)
    work |= _facts(ours)
    for baseline in against:
        theirs, their_scores = _run(replace(job, worker=baseline, matrix_rate=False))
        report.baselines[baseline] = _measurement(theirs, notes)
        report.ratio[baseline] = {
            phase: theirs.seconds[phase] / seconds
            for phase, seconds in ours.seconds.items()
            if phase in theirs.seconds and seconds > 0 and phase not in ("read", "make up", "aggregate")
        }
        difference = np.abs(scores - their_scores)
        largest = float(difference.max(initial=0.0))
        work[f"largest difference to {baseline}"] = f"{largest:.2g} nats in a choice's log-likelihood"
        report.baselines[baseline].notes["largest_difference"] = largest
        # Not `>`: NaN is not fine.
        if notes["dtype"] == "float32" and not (difference <= tolerance(their_scores)).all():
            report.failures.append(
                f"the log-likelihood of a choice differs from {baseline}'s by {largest:.2g}, more than rounding"
                " explains: one of the two is wrong"
            )
    return report


def _check(
    model: object, shape: str | None, tokenizer: object, tasks: object, workload: str | None, dtype: str,
    against: Sequence[str],
) -> None:  # fmt: skip
    if (model is None) == (shape is None):
        raise ValueError("give either a model's folder or a shape")
    if (tasks is None) == (workload is None):
        raise ValueError("give either tasks or a workload")
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"there is no shape {shape!r}; known: {', '.join(SHAPES)}")
    if workload is not None and workload not in WORKLOADS:
        raise ValueError(f"there is no workload {workload!r}; known: {', '.join(WORKLOADS)}")
    if shape is not None and tasks is not None and tokenizer is None:
        raise ValueError("a shape has no tokenizer: give one to answer tasks with, or a workload in place of tasks")
    if shape is not None and dtype == "auto":
        raise ValueError("a shape has no dtype of its own: give float32, bfloat16 or float16")
    if unknown := sorted(set(against) - set(BASELINES)):
        raise ValueError(f"unknown baseline {', '.join(unknown)}; known: {', '.join(BASELINES)}")


def _run(job: Job) -> tuple[Outcome, NDArray[np.float64]]:
    """Runs a worker in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed = replace(job, started=time.time())
        (folder / "job.json").write_text(json.dumps(asdict(timed)), encoding="utf-8")
        command = [sys.executable, "-m", "wmdp_fast.bench.worker", name]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)  # noqa: S603 (our own module)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise WmdpFastError(
                f"{job.worker} failed with exit code {done.returncode}: {said[-1] if said else 'it said nothing'}"
            )
        outcome = Outcome(**json.loads((folder / "outcome.json").read_text(encoding="utf-8")))
        return outcome, np.load(folder / "scores.npy")


def _measurement(outcome: Outcome, ours: dict[str, Any]) -> Measurement:
    """A worker's figures; rates are those of its forward phase."""
    forward = outcome.seconds["forward"]
    rates = {
        "questions": outcome.questions / forward,
        "useful tokens": ours["useful_tokens"] / forward,
        "tokens run": outcome.tokens_run / forward,
    }
    share = {}
    if "useful_flop" in ours:
        flop = (ours["useful_flop"] + ours["attention_flop"]) / forward
        rates["useful GFLOP"] = flop / 1e9
        share = {"share_of_matrix_rate": flop / ours["matrix_flop_per_second"]}
    return Measurement(
        seconds=outcome.seconds,
        units={
            "questions": outcome.questions,
            "tokens_run": outcome.tokens_run,
            "useful_tokens": ours["useful_tokens"],
        },
        per_second=rates,
        peak_gb=outcome.peak_gb,
        gpu_peak_gb=outcome.gpu_peak_gb,
        notes={
            **outcome.notes,
            "tokens_run_per_useful": outcome.tokens_run / max(1, ours["useful_tokens"]),
            **share,
        },
    )


def _facts(ours: Outcome) -> dict[str, Any]:
    """Lines about this package's run that are no times."""
    notes = ours.notes
    forward = ours.seconds["forward"]
    waited = notes["device_wait_seconds"]
    run = ours.tokens_run / max(1, notes["useful_tokens"])
    facts: dict[str, Any] = {
        "useful tokens": f"{notes['useful_tokens']:,}; {run:.3f} run for each",
        "device waited for data": f"{waited:.3f} s, {waited / forward:.2%} of the forward phase",
    }
    if "useful_flop" in notes:
        products, attention = notes["useful_flop"], notes["attention_flop"]
        rate = notes["matrix_flop_per_second"]
        facts["useful arithmetic"] = (
            f"{(products + attention) / 1e12:.3g} TFLOP, of that {attention / (products + attention):.0%} in attention"
        )
        facts["matrix products alone"] = f"{rate / 1e9:,.0f} GFLOP/s at {notes['matrix_rows']:,} rows"
        facts["share of that rate"] = f"{(products + attention) / forward / rate:.0%} on useful tokens"
    else:
        facts["share of the matrix rate"] = f"not known: {notes['why_no_matrix_rate']}"
    return facts
