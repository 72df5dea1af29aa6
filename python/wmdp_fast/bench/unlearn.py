"""How long a step of RMU takes and how much memory, beside the plain algorithm and the same merely truncated."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.bench.rmu_worker import Job, Outcome, config_of
from wmdp_fast.bench.shapes import check_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BASELINES = ("plain", "truncated")

# By so much may a loss of the first step differ from a baseline's: bfloat16 has some three digits.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step by each worker; two for each multiplication and its addition.

    Attributes:
        ours: Of this package.
        plain: Of the plain algorithm.
        truncated: Of the plain algorithm without the layers above the steered one.
    """

    ours: int
    plain: int
    truncated: int


def bench_unlearn(job: Job, against: Sequence[str] = ()) -> BenchReport:
    """Times steps of RMU on random tokens, each worker in a process of its own.

    Args:
        job: What to train, and how.
        against: `plain` and `truncated`.

    Raises:
        ValueError: Neither or both of model and shape are given, or one is unknown.
        WmdpFastError: A worker failed; says how.
    """
    _check(job, against)
    flops = flops_of(job)
    ours = _run(job)
    rate = _run(replace(job, worker="matrices")).matrix_rate
    work = _work(job, ours, flops, rate)
    report = BenchReport(work, _measurement(job, ours, flops.ours, rate))
    for baseline in against:
        theirs = _run(replace(job, worker=baseline))
        work[f"{baseline} computes"] = _arithmetic(getattr(flops, baseline), theirs, rate)
        report.baselines[baseline] = _measurement(job, theirs, getattr(flops, baseline), rate)
        report.ratio[baseline] = {
            phase: report.baselines[baseline].seconds[phase] / report.ours.seconds[phase] for phase in ("load", "step")
        }
        _compare(report, baseline, ours, theirs)
    work["machine"] = machine()
    return report


def _check(job: Job, against: Sequence[str]) -> None:
    check_model(job.model, job.shape, job.dtype)
    if unknown := sorted(set(against) - set(BASELINES)):
        raise ValueError(f"unknown baseline {', '.join(unknown)}; known: {', '.join(BASELINES)}")


def _work(job: Job, ours: Outcome, flops: Flops, rate: float) -> dict[str, Any]:
    """What was run, and on what."""
    size = f"{job.batch_size} x {job.length}"
    return {
        "benchmark": "unlearn",
        "model": job.model if job.shape is None else f"{job.shape}, random weights",
        "step": f"{size} forget and {size} retain tokens, {job.steps} steps timed",
        "steered layer": job.layer_id,
        "mode": job.mode,
        "trained": f"{job.parameters} of layers {', '.join(map(str, job.trained_layers))}",
        "dtype": job.dtype,
        "device": ours.device,
        "threads": ours.threads,
        "matrix products alone": f"{rate / 1e9:,.0f} GFLOP/s at {job.batch_size * job.length:,} rows",
        "memory": "peak of the process beyond importing torch" if ours.gpu_peak_gb is None else "peak of GPU tensors",
        "wmdp-fast computes": _arithmetic(flops.ours, ours, rate),
    }


def _compare(report: BenchReport, baseline: str, ours: Outcome, theirs: Outcome) -> None:
    """Enters how far a baseline's losses are from ours; a failure if those of the first step differ by much."""
    difference = _difference(ours, theirs)
    report.baselines[baseline].notes["largest_relative_difference_of_losses"] = difference
    report.work[f"losses against {baseline}"] = (
        "the same to the last bit" if difference == 0 else f"differ by {difference:.2g}"
    )
    first = _difference(ours, theirs, steps=1)
    if not first <= TOLERANCE:
        report.failures.append(
            f"the first losses differ from {baseline}'s by {first:.2g}, more than {TOLERANCE}: one of the two is wrong"
        )


def flops_of(job: Job) -> Flops:
    """Counts the arithmetic of a step from the shapes of the layers' matrices, without loading the model.

    With f a token's forward pass through a layer, dX and dW those of gradients by inputs and by weights, L layers, of
    which the steered one is l and the lowest trained one is t, k = l + 1, n = k - t, for a forget and a retain token:

        plain      3 (L f + head) + 2 k (dX + dW)      three passes; gradients for all weights up to l
        truncated  3 k f          + 2 k (dX + dW)
        wmdp-fast  2 t f + 2 n f + (n - 1) f + w + 2 ((n - 1) dX + n w)

    w is twice the trained weights of a layer. The frozen branch begins at the first trained matrix if nothing but down
    projections are trained, else at layer t: then it is n f in place of (n - 1) f + w.
    """
    import torch
    from transformers import AutoModel

    from wmdp_fast.models.decoder import decoder_of
    from wmdp_fast.unlearning.parameters import select_parameters

    config = config_of(job)
    with torch.device("meta"):
        decoder = decoder_of(AutoModel.from_config(config))  # type: ignore[no-untyped-call]
    text = config.get_text_config()
    if job.layer_id >= text.num_hidden_layers:
        raise ValueError(
            f"layer {job.layer_id} does not exist: the model has {text.num_hidden_layers} layers; name one with"
            " --layer-id"
        )
    active = _active_share(text)

    def used(name: str, weight: Tensor) -> int:
        return int(weight.numel() * (active if ".experts." in f".{name}" else 1))

    layer = decoder.layers[job.layer_id]
    weights = sum(used(name, one) for name, one in layer.named_parameters() if one.dim() > 1)
    picked = select_parameters(decoder.layers, decoder.prefix, job.trained_layers, job.parameters)
    trained = sum(used(one.name, one.parameter) for one in picked)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * job.length * text.num_attention_heads * head_size  # causal: half of all pairs
    f = 2 * weights + attention
    dx, dw = 2 * weights + 2 * attention, 2 * weights
    head = 2 * text.vocab_size * text.hidden_size
    first = min(job.trained_layers)
    k, n = job.layer_id + 1, job.layer_id + 1 - first
    w = 2 * trained // len(job.trained_layers)
    frozen = (n - 1) * f + w if job.parameters == "mlp.down_proj" else n * f
    pairs = job.batch_size * job.length
    return Flops(
        ours=pairs * (2 * first * f + 2 * n * f + frozen + 2 * ((n - 1) * dx + len(job.trained_layers) * w)),
        plain=pairs * (3 * (text.num_hidden_layers * f + head) + 2 * k * (dx + dw)),
        truncated=pairs * (3 * k * f + 2 * k * (dx + dw)),
    )


def _active_share(config: Any) -> float:
    """The share of a mixture's experts that a token goes to."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    return 1.0 if experts is None else config.num_experts_per_tok / experts


def _run(job: Job) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        return Outcome(**run_worker("wmdp_fast.bench.rmu_worker", job, Path(name)))


def _measurement(job: Job, outcome: Outcome, flop: int, rate: float) -> Measurement:
    step = statistics.median(outcome.step_seconds)
    tokens = 2 * job.batch_size * job.length
    return Measurement(
        seconds={"load": outcome.load_seconds, "step": step},
        units={"steps": len(outcome.step_seconds), "tokens": tokens * len(outcome.step_seconds)},
        per_second={"tokens": tokens / step, "GFLOP": flop / step / 1e9},
        peak_gb=outcome.peak_gb if outcome.gpu_peak_gb is None else outcome.gpu_peak_gb,
        notes={
            "flop_per_step": flop,
            "share_of_matrix_rate": flop / step / rate,
            "step_seconds": outcome.step_seconds,
            "forget_losses": outcome.forget_losses,
            "retain_losses": outcome.retain_losses,
            "peak_process_gb": outcome.peak_gb,
            "gpu_peak_gb": outcome.gpu_peak_gb,
        },
    )


def _arithmetic(flop: int, outcome: Outcome, rate: float) -> str:
    share = flop / statistics.median(outcome.step_seconds) / rate
    return f"{flop / 1e12:.3g} TFLOP a step, at {share:.0%} of the rate of matrix products alone"


def _difference(ours: Outcome, theirs: Outcome, steps: int | None = None) -> float:
    """The largest relative difference between losses of the first steps; below 1e-6 absolute ones count."""
    forget = zip(ours.forget_losses[:steps], theirs.forget_losses[:steps], strict=True)
    retain = zip(ours.retain_losses[:steps], theirs.retain_losses[:steps], strict=True)
    pairs = [*forget, *retain]
    return max((abs(a - b) / max(abs(b), 1e-6) for a, b in pairs), default=0.0)
