"""`wmdp-fast bench eval`: how fast a model is scored, beside other engines on the same questions in the same run.

Each worker runs in a process of its own, one after the other, so that the time of a whole process and its peak
memory are its own. All score the same; if their numbers differ, the report says so and counts as failed.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast.bench.agreement import tolerance
from wmdp_fast.bench.peers import PEERS, check_peers
from wmdp_fast.bench.process import run_peer, run_worker
from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.bench.shapes import WORKLOADS, check_model
from wmdp_fast.bench.worker import Job, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

BASELINES = ("lm-eval", "padded", *PEERS)


def bench_eval(
    job: Job,
    against: Sequence[str] = (),
    *,
    batch_sizes: Sequence[int | Literal["auto"]] = (),
    pythons: Sequence[tuple[str, str]] = (),
) -> BenchReport:
    """Scores questions with this package, then with each baseline, and compares times, memory and numbers.

    Args:
        job: What to score, and by which of this package's engines.
        against: Baselines, of `BASELINES`.
        batch_sizes: Rows in a batch of lm-eval's. With several it is run with each, under names like `lm-eval, 64`, and
            the report says which was the fastest. Without any, that of the job.
        pythons: Pairs of one of `peers.PEERS` and the Python of the environment it is in; else it is in this one.

    Raises:
        ValueError: Options exclude each other, or one is unknown; or an interpreter is not there.
        WmdpFastError: A worker failed; says what it said.
    """
    _check(job, against)
    check_peers(job, against, pythons)
    import torch  # noqa: F401 (so that `machine` sees GPUs: workers alone have needed it so far)

    with tempfile.TemporaryDirectory() as folder:
        if set(against) & set(PEERS):
            job = replace(job, requests=os.path.join(folder, "requests.npz"))  # noqa: PTH118 (a text, for JSON)
        return _contest(job, _baselines(job, against, batch_sizes, dict(pythons)))


def _contest(job: Job, baselines: Iterable[tuple[str, Job]]) -> BenchReport:
    ours, scores = _run(replace(job, matrix_rate=True))
    report = BenchReport(_work(job, ours), _measurement(ours, ours.notes))
    for baseline, peer in baselines:
        if peer.worker in PEERS:
            # Where this package ran, whatever was asked for.
            device = "cpu" if ours.notes["device"] == "cpu" else peer.device.replace("auto", "cuda")
            peer = replace(peer, device=device)
            report.work[f"prompts of {baseline}"] = "given as tokens: reading and tokenizing are not in its time"
        theirs, their_scores = _run(peer)
        report.baselines[baseline] = _measurement(theirs, ours.notes)
        report.ratio[baseline] = {
            phase: theirs.seconds[phase] / seconds
            for phase, seconds in ours.seconds.items()
            if phase in theirs.seconds and seconds > 0 and phase not in ("read", "make up", "aggregate")
        }
        _compare(report, baseline, scores, their_scores)
    _name_best(report)
    return report


def _baselines(
    job: Job, against: Sequence[str], batch_sizes: Sequence[int | Literal["auto"]], pythons: Mapping[str, str]
) -> Iterator[tuple[str, Job]]:
    """Each baseline's name in the report and its job."""
    job, requests = replace(job, requests=None), job.requests
    for baseline in against:
        if baseline in PEERS:
            yield baseline, replace(job, worker=baseline, requests=requests, python=pythons.get(baseline))
            continue
        if baseline != "lm-eval" or not batch_sizes:
            yield baseline, replace(job, worker=baseline)
            continue
        for size in batch_sizes:
            name = baseline if len(batch_sizes) == 1 else f"{baseline}, {size}"
            yield name, replace(job, worker=baseline, batch_size=size)


def _name_best(report: BenchReport) -> None:
    """Enters which of several batch sizes lm-eval was fastest with: that is what to be compared with."""
    totals = {
        name: measured.seconds["total"] for name, measured in report.baselines.items() if name.startswith("lm-eval, ")
    }
    if totals:
        best = min(totals, key=totals.__getitem__)
        ratio = report.ratio[best]["total"]
        report.work["lm-eval's best batch size"] = (
            f"{report.baselines[best].notes['batch_size']}, {totals[best]:.2f} s in all; ratio {ratio:.1f}x"
        )


def _check(job: Job, against: Sequence[str]) -> None:
    check_model(job.model, job.shape, job.dtype)
    if (job.tasks is None) == (job.workload is None):
        raise ValueError("give either tasks or a workload")
    if job.workload is not None and job.workload not in WORKLOADS:
        raise ValueError(f"there is no workload {job.workload!r}; known: {', '.join(WORKLOADS)}")
    if job.shape is not None and job.tasks is not None and job.tokenizer is None:
        raise ValueError("a shape has no tokenizer: give one to answer tasks with, or a workload in place of tasks")
    if unknown := sorted(set(against) - set(BASELINES)):
        raise ValueError(f"unknown baseline {', '.join(unknown)}; known: {', '.join(BASELINES)}")


def _run(job: Job) -> tuple[Outcome, NDArray[np.float64]]:
    """Runs a worker: what it measured, its process's end included, and the log-likelihoods."""
    with tempfile.TemporaryDirectory() as name:
        folder, job = Path(name), replace(job, started=time.time())
        outcome = Outcome(
            **(run_peer(job, folder) if job.worker in PEERS else run_worker("wmdp_fast.bench.worker", job, folder))
        )
        # What it did last was to write this.
        ended = max(0.0, time.time() - (folder / "outcome.json").stat().st_mtime)
        total = outcome.seconds.pop("total")
        outcome.seconds |= {"exit": ended, "total": total + ended}
        return outcome, np.load(folder / "scores.npy")


def _work(job: Job, ours: Outcome) -> dict[str, Any]:
    """What was run, on what, and what else is worth saying of it."""
    notes = ours.notes
    work: dict[str, Any] = {
        "benchmark": "eval",
        "model": job.model if job.shape is None else f"{job.shape}, random weights",
        "questions": f"{job.tasks or job.workload}, {ours.questions}",
        **({"num_fewshot": job.num_fewshot} if job.workload is None else {}),
        "dtype": notes["dtype"],
        "device": notes["device"],
        "threads": notes["threads"],
        "engine": notes["engine"],
        "compiled": job.compiled,
        "token_budget": notes["token_budget"],
        "machine": machine(),
    }
    if warned := notes["warnings"]:
        work["warnings"] = "; ".join(warned)
    return work | _facts(ours)


def _compare(report: BenchReport, baseline: str, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
    """Enters how far a baseline's log-likelihoods are from ours; in float32 it is a failure if rounding is not why."""
    difference = np.abs(ours - theirs)
    largest = float(difference.max(initial=0.0))
    report.work[f"largest difference to {baseline}"] = f"{largest:.2g} nats in a choice's log-likelihood"
    report.baselines[baseline].notes["largest_difference"] = largest
    # Not `>`: NaN is not fine.
    if report.work["dtype"] == "float32" and not (difference <= tolerance(theirs)).all():
        report.failures.append(
            f"the log-likelihood of a choice differs from {baseline}'s by {largest:.2g}, more than rounding"
            " explains: one of the two is wrong"
        )


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
