"""How long a step of RMU takes and how much memory, beside the plain algorithm and the same merely truncated."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.bench.report import BenchReport, Measurement, machine
from wmdp_fast.bench.rmu_worker import Job, Outcome, config_of
from wmdp_fast.bench.shapes import SHAPES
from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from wmdp_fast.unlearning.rmu.config import Mode

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


def bench_unlearn(
    *,
    model: str | PathLike[str] | None = None,
    shape: str | None = None,
    against: Sequence[str] = (),
    layer_id: int = 7,
    update_layer_ids: Sequence[int] | None = None,
    parameters: str = "mlp.down_proj",
    mode: Mode = "reference",
    batch_size: int = 4,
    length: int = 512,
    steps: int = 4,
    dtype: str = "bfloat16",
    device: str = "auto",
) -> BenchReport:
    """Times steps of RMU on random tokens, each worker in a process of its own.

    Args:
        model: Folder of a model; or else `shape`.
        shape: A model of one of `shapes.SHAPES` with random weights.
        against: `plain` and `truncated`.
        layer_id: The steered layer.
        update_layer_ids: The trained layers; None is that layer and the two below it.
        parameters: Which of their parameters, as `RMUConfig` takes them.
        mode: `reference`, whose bits are the plain algorithm's, or `masked`.
        batch_size: Documents of each kind in a step.
        length: Tokens of a document.
        steps: Timed steps. One more is run before them.
        dtype: `float32`, `bfloat16` or `float16`; with a model also `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: Neither or both of model and shape are given, or one is unknown.
        WmdpFastError: A worker failed; says how.
    """
    if (model is None) == (shape is None):
        raise ValueError("give either a model's folder or a shape")
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"there is no shape {shape!r}; known: {', '.join(SHAPES)}")
    if shape is not None and dtype == "auto":
        raise ValueError("a shape has no dtype of its own: give float32, bfloat16 or float16")
    if unknown := sorted(set(against) - set(BASELINES)):
        raise ValueError(f"unknown baseline {', '.join(unknown)}; known: {', '.join(BASELINES)}")
    job = Job(
        worker="wmdp-fast",
        model=None if model is None else str(model),
        shape=shape,
        layer_id=layer_id,
        update_layer_ids=sorted(update_layer_ids or range(max(0, layer_id - 2), layer_id + 1)),
        parameters=parameters,
        mode=mode,
        batch_size=batch_size,
        length=length,
        steps=steps + 1,
        dtype=dtype,
        device=device,
    )
    flops = flops_of(job)
    ours = _run(job)
    rate = _run(replace(job, worker="matrices")).matrix_rate
    work: dict[str, Any] = {
        "benchmark": "unlearn",
        "model": model if shape is None else f"{shape}, random weights",
        "step": f"{batch_size} x {length} forget and {batch_size} x {length} retain tokens, {steps} steps timed",
        "steered layer": layer_id,
        "mode": mode,
        "trained": f"{parameters} of layers {', '.join(map(str, job.update_layer_ids))}",
        "dtype": dtype,
        "device": ours.device,
        "threads": ours.threads,
        "matrix products alone": f"{rate / 1e9:,.0f} GFLOP/s at {batch_size * length:,} rows",
        "memory": "peak of the process beyond importing torch" if ours.gpu_peak_gb is None else "peak of GPU tensors",
        "wmdp-fast computes": _arithmetic(flops.ours, ours, rate),
    }
    report = BenchReport(work, _measurement(job, ours, flops.ours, rate))
    for baseline in against:
        theirs = _run(replace(job, worker=baseline))
        work[f"{baseline} computes"] = _arithmetic(getattr(flops, baseline), theirs, rate)
        report.baselines[baseline] = _measurement(job, theirs, getattr(flops, baseline), rate)
        report.ratio[baseline] = {
            phase: report.baselines[baseline].seconds[phase] / report.ours.seconds[phase] for phase in ("load", "step")
        }
        difference = _difference(ours, theirs)
        report.baselines[baseline].notes["largest_relative_difference_of_losses"] = difference
        work[f"losses against {baseline}"] = (
            "the same to the last bit" if difference == 0 else f"differ by {difference:.2g}"
        )
        first = _difference(ours, theirs, steps=1)
        if not first <= TOLERANCE:
            report.failures.append(
                f"the first losses differ from {baseline}'s by {first:.2g}, more than {TOLERANCE}: one of the two is"
                " wrong"
            )
    work["machine"] = machine()
    return report


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
        raise ValueError(f"layer {job.layer_id} does not exist: the model has {text.num_hidden_layers} layers")
    active = _active_share(text)
    layer = decoder.layers[job.layer_id]
    weights = sum(
        int(one.numel() * (active if ".experts." in f".{name}" else 1))
        for name, one in layer.named_parameters()
        if one.dim() > 1
    )
    picked = select_parameters(decoder.layers, decoder.prefix, job.update_layer_ids, job.parameters)
    trained = sum(int(one.parameter.numel() * (active if ".experts." in one.name else 1)) for one in picked)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * job.length * text.num_attention_heads * head_size  # causal: half of all pairs
    f = 2 * weights + attention
    dx, dw = 2 * weights + 2 * attention, 2 * weights
    head = 2 * text.vocab_size * text.hidden_size
    first = min(job.update_layer_ids)
    k, n = job.layer_id + 1, job.layer_id + 1 - first
    w = 2 * trained // len(job.update_layer_ids)
    frozen = (n - 1) * f + w if job.parameters == "mlp.down_proj" else n * f
    pairs = job.batch_size * job.length
    return Flops(
        ours=pairs * (2 * first * f + 2 * n * f + frozen + 2 * ((n - 1) * dx + len(job.update_layer_ids) * w)),
        plain=pairs * (3 * (text.num_hidden_layers * f + head) + 2 * k * (dx + dw)),
        truncated=pairs * (3 * k * f + 2 * k * (dx + dw)),
    )


def _active_share(config: Any) -> float:
    """The share of a mixture's experts that a token goes to."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    return 1.0 if experts is None else config.num_experts_per_tok / experts


def _run(job: Job) -> Outcome:
    """Runs a worker in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "wmdp_fast.bench.rmu_worker", name]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)  # noqa: S603 (our own module)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise WmdpFastError(
                f"{job.worker} failed with exit code {done.returncode}: {said[-1] if said else 'it said nothing'}"
            )
        return Outcome(**json.loads((folder / "outcome.json").read_text(encoding="utf-8")))


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
