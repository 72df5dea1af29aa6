"""How long a step of a method takes and how much memory, beside what an ordinary trainer does."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.bench.method_job import MethodJob, corpora_of
from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.bench.rmu_worker import Outcome
from wmdp_fast.bench.shapes import check_model

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS = ("graddiff", "npo", "rr")
BASELINES = ("plain",)

# By so much may a loss of the first step differ from a baseline's, relatively: of float32, and of narrower types.
_TOLERANCE, _NARROW_TOLERANCE = 1e-4, 0.02


def bench_method(job: MethodJob, against: Sequence[str] = ()) -> BenchReport:
    """Times steps of a method, each worker in a process of its own.

    Args:
        job: What to train, and how.
        against: `plain`, or nothing.

    Raises:
        ValueError: Neither or both of model and shape are given, something is unknown, or there is too little text.
        DatasetError: A text cannot be read.
        WmdpFastError: A worker failed; says how.
    """
    _check(job, against)
    job = replace(job, warm_steps=_warm_steps(job))
    lengths = _lengths(job)
    ours = _run(job)
    report = BenchReport(_work(job, lengths, ours), _measurement(lengths, ours))
    for baseline in against:
        theirs = _run(replace(job, worker=baseline))
        figures = report.baselines[baseline] = _measurement(lengths, theirs)
        report.ratio[baseline] = {
            phase: figures.seconds[phase] / report.ours.seconds[phase] for phase in ("load", "step")
        }
        if report.ours.peak_gb and figures.peak_gb:
            report.work[f"memory against {baseline}"] = f"{report.ours.peak_gb / figures.peak_gb:.0%}"
        _compare(report, baseline, job, ours, theirs)
    report.work["machine"] = machine()
    return report


def _check(job: MethodJob, against: Sequence[str]) -> None:
    if job.method not in METHODS:
        raise ValueError(f"there is no benchmark of {job.method}; there are rmu, {', '.join(METHODS)}")
    check_model(job.model, job.shape, job.dtype)
    if unknown := sorted(set(against) - set(BASELINES)):
        raise ValueError(f"unknown baseline {', '.join(unknown)} of {job.method}; known: {', '.join(BASELINES)}")


def _warm_steps(job: MethodJob) -> int:
    """On a CPU the first step is like the others; of RR it has half a gradient."""
    from wmdp_fast.models.load import parse_device

    return 0 if parse_device(job.device).type == "cpu" and job.method != "rr" else 1


def _lengths(job: MethodJob) -> list[int]:
    """Tokens of each document of the timed steps."""
    timed = range(job.warm_steps * job.batch_size, job.num_documents)
    return [len(corpus.document(index)) for corpus in corpora_of(job) for index in timed]


def _work(job: MethodJob, lengths: list[int], ours: Outcome) -> dict[str, object]:
    """What was run, and on what."""
    tokens = statistics.mean(lengths) * job.batch_size
    trained = f"layers 0 to {max(job.target_layers)}" if job.method == "rr" else "all layers"
    return {
        "benchmark": "unlearn",
        "method": job.method,
        "model": job.model if job.shape is None else f"{job.shape}, random weights",
        "step": f"{job.batch_size} forget and {job.batch_size} retain documents of {min(lengths)} to {max(lengths)}"
        f" tokens, {tokens:,.0f} tokens of each kind on average; {job.steps} steps timed",
        "text": job.text or "random tokens",
        "trained": f"{job.parameters} of {trained}",
        **({"rerouted": f"layers {', '.join(map(str, job.target_layers))}"} if job.method == "rr" else {}),
        "dtype": job.dtype,
        "device": ours.device,
        "threads": ours.threads,
        "memory": "peak of the process beyond importing torch" if ours.gpu_peak_gb is None else "peak of GPU tensors",
    }


def _measurement(lengths: list[int], outcome: Outcome) -> Measurement:
    tokens = sum(lengths)
    return Measurement(
        seconds={"load": outcome.load_seconds, "step": statistics.median(outcome.step_seconds)},
        units={"steps": len(outcome.step_seconds), "tokens": tokens},
        per_second={"tokens": tokens / sum(outcome.step_seconds)},
        peak_gb=outcome.peak_gb if outcome.gpu_peak_gb is None else outcome.gpu_peak_gb,
        notes={
            "step_seconds": outcome.step_seconds,
            "forget_losses": outcome.forget_losses,
            "retain_losses": outcome.retain_losses,
            "peak_process_gb": outcome.peak_gb,
            "gpu_peak_gb": outcome.gpu_peak_gb,
        },
    )


def _compare(report: BenchReport, baseline: str, job: MethodJob, ours: Outcome, theirs: Outcome) -> None:
    """Enters how far a baseline's losses are from ours; a failure if those of the first step differ by much."""
    rows = zip(ours.forget_losses, theirs.forget_losses, ours.retain_losses, theirs.retain_losses, strict=True)
    differences = [max(_difference(*row[:2]), _difference(*row[2:])) for row in rows]
    report.baselines[baseline].notes["largest_relative_difference_of_losses"] = max(differences)
    report.work[f"losses against {baseline}"] = f"differ by {max(differences):.2g}"
    allowed = _TOLERANCE if job.dtype == "float32" else _NARROW_TOLERANCE
    if not differences[0] <= allowed:
        report.failures.append(
            f"the first losses differ from {baseline}'s by {differences[0]:.2g}, more than {allowed}: one of the two is"
            " wrong"
        )


def _difference(mine: float, other: float) -> float:
    return abs(mine - other) / max(abs(other), 1e-6)


def _run(job: MethodJob) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        return Outcome(**run_worker("wmdp_fast.bench.methods_worker", job, Path(name)))
