"""How long a step of a method over logits takes and how much memory, beside what an ordinary trainer does."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.bench.rmu_worker import Outcome
from wmdp_fast.bench.shapes import check_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.bench.methods_worker import MethodJob

METHODS = ("graddiff", "npo")
BASELINES = ("plain",)

# By so much may a loss of the first step differ from a baseline's, relatively: of float32, and of narrower types.
_TOLERANCE, _NARROW_TOLERANCE = 1e-4, 0.02


def bench_method(job: MethodJob, against: Sequence[str] = ()) -> BenchReport:
    """Times steps of a method on random tokens, each worker in a process of its own.

    Args:
        job: What to train, and how.
        against: `plain`, or nothing.

    Raises:
        ValueError: Neither or both of model and shape are given, or something is unknown.
        WmdpFastError: A worker failed; says how.
    """
    _check(job, against)
    ours = _run(job)
    report = BenchReport(_work(job, ours), _measurement(job, ours))
    for baseline in against:
        theirs = _run(replace(job, worker=baseline))
        figures = report.baselines[baseline] = _measurement(job, theirs)
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


def _work(job: MethodJob, ours: Outcome) -> dict[str, object]:
    """What was run, and on what."""
    lengths = [length for kind in (0, 1) for length in job.lengths(kind)]
    tokens = statistics.mean(lengths) * job.batch_size
    return {
        "benchmark": "unlearn",
        "method": job.method,
        "model": job.model if job.shape is None else f"{job.shape}, random weights",
        "step": f"{job.batch_size} forget and {job.batch_size} retain documents of {min(lengths)} to {max(lengths)}"
        f" tokens, {tokens:,.0f} tokens of each kind on average; {job.steps} steps timed",
        "trained": f"{job.parameters} of all layers",
        "dtype": job.dtype,
        "device": ours.device,
        "threads": ours.threads,
        "memory": "peak of the process beyond importing torch" if ours.gpu_peak_gb is None else "peak of GPU tensors",
    }


def _measurement(job: MethodJob, outcome: Outcome) -> Measurement:
    tokens = sum(sum(job.lengths(kind)[job.batch_size :]) for kind in (0, 1))
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
