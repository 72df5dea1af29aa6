"""One worker of `wmdp-fast bench unlearn --method`, in a process of its own so that its time and memory are its own.

`python -m wmdp_fast.bench.methods_worker FOLDER` reads `job.json` there and leaves `outcome.json`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.bench.method_job import MethodJob, corpora_of
from wmdp_fast.bench.report import peak_gb
from wmdp_fast.bench.rmu_worker import SEED, Outcome, device_name, first_layers, resident_gb, whole_model

if TYPE_CHECKING:
    import torch

    from wmdp_fast.bench.methods_baseline import PlainTrainer
    from wmdp_fast.unlearning.training_config import TrainingConfig

LEARNING_RATE = 1e-5
BETA = 0.1
REROUTING = 10.0


def main(folder: Path) -> None:
    """Runs the job in a folder."""
    job = MethodJob(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    import torch

    before = resident_gb()
    # So that the time of importing them is no worker's.
    from transformers import AutoModelForCausalLM  # noqa: F401

    from wmdp_fast.models.load import parse_device
    from wmdp_fast.unlearning.one_run import one_run  # noqa: F401

    device = parse_device(job.device)
    outcome = Outcome(device=device_name(device), threads=torch.get_num_threads())
    run = _run_ours if job.worker == "wmdp-fast" else _run_plain
    run(job, device, outcome)
    outcome.peak_gb = peak_gb() - before
    if device.type == "cuda":
        outcome.gpu_peak_gb = torch.cuda.max_memory_allocated(device) / 1e9
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")


def _run_ours(job: MethodJob, device: torch.device, outcome: Outcome) -> None:
    """This package, by its public function."""
    from wmdp_fast.unlearning.api import unlearn

    begun = time.perf_counter()
    # What is not needed is not loaded.
    depth = max(job.target_layers) + 1 if job.method == "rr" else None
    model = whole_model(job, device) if depth is None else first_layers(job, depth, device)
    outcome.load_seconds = time.perf_counter() - begun
    forget, retain = corpora_of(job)
    result = unlearn(model, forget=forget, retain=retain, config=_settings(job), progress=False)
    outcome.step_seconds = [row["seconds"] for row in result.metrics[job.warm_steps :]]
    outcome.forget_losses = [row["forget_loss"] for row in result.metrics]
    outcome.retain_losses = [row["retain_loss"] for row in result.metrics]


def _settings(job: MethodJob) -> TrainingConfig:
    from wmdp_fast.unlearning.methods.graddiff import GradDiffConfig
    from wmdp_fast.unlearning.methods.npo import NPOConfig
    from wmdp_fast.unlearning.methods.rr import RRConfig

    common: dict[str, Any] = {
        "parameters": job.parameters,
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "warmup": 0.0,
        "batch_size": job.batch_size,
        "max_steps": job.all_steps,
        "max_length": job.length,
        "retain_max_length": job.length,
    }
    if job.method == "rr":
        return RRConfig(**common, target_layers=job.target_layers, rerouting_coeff=REROUTING, seed=SEED)
    return NPOConfig(**common, beta=BETA) if job.method == "npo" else GradDiffConfig(**common)


def _run_plain(job: MethodJob, device: torch.device, outcome: Outcome) -> None:
    """What an ordinary trainer does."""
    import torch

    from wmdp_fast.bench.arithmetic import synchronize

    begun = time.perf_counter()
    plain = _plain_trainer(job, device)
    outcome.load_seconds = time.perf_counter() - begun
    forget, retain = (
        [torch.from_numpy(corpus.document(index)).to(device) for index in range(len(corpus))]
        for corpus in corpora_of(job)
    )
    # Before the first step the other side tries documents in several ways.
    plain.warm_up(forget[job.num_documents :], retain[job.num_documents :])
    for step in range(job.all_steps):
        batch = slice(step * job.batch_size, (step + 1) * job.batch_size)
        synchronize(device)
        begun = time.perf_counter()
        losses = plain.step(forget[batch], retain[batch])
        synchronize(device)
        seconds = time.perf_counter() - begun
        outcome.forget_losses.append(losses[0])
        outcome.retain_losses.append(losses[1])
        if step >= job.warm_steps:
            outcome.step_seconds.append(seconds)


def _plain_trainer(job: MethodJob, device: torch.device) -> PlainTrainer:
    from wmdp_fast.bench.methods_baseline import PlainLogits, PlainRerouting

    model = whole_model(job, device)
    reference = None if job.method == "graddiff" else whole_model(job, device).requires_grad_(False)
    common: dict[str, Any] = {"parameters": job.parameters, "learning_rate": LEARNING_RATE}
    if job.method != "rr":
        return PlainLogits(model, reference, **common, beta=BETA)
    layers, steps = job.target_layers, job.all_steps
    return PlainRerouting(
        model, reference, **common, target_layers=layers, coefficient=REROUTING, steps=steps, seed=SEED
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
