"""One worker of `wmdp-fast bench unlearn --method`, in a process of its own so that its time and memory are its own.

`python -m wmdp_fast.bench.methods_worker FOLDER` reads `job.json` there and leaves `outcome.json`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.bench.report import peak_gb
from wmdp_fast.bench.rmu_worker import Outcome, config_of, device_name, resident_gb, whole_model

if TYPE_CHECKING:
    import torch

    from wmdp_fast.prompts.documents import CorpusTokens
    from wmdp_fast.unlearning.methods.config import ForgetRetainConfig

LEARNING_RATE = 1e-5
BETA = 0.1

# The shortest document is so small a part of the longest.
_SHORTEST = 8


@dataclass(frozen=True, kw_only=True)
class MethodJob:
    """What to train, and how.

    Attributes:
        method: `graddiff` or `npo`.
        model: Folder of a model; or else `shape`.
        shape: A model of one of `shapes.SHAPES` with random weights.
        parameters: Which parameters of all layers are trained.
        batch_size: Documents of each kind in a step.
        length: Most tokens of a document; the least is an eighth of that, and all in between are as likely.
        steps: Timed steps. One more is run before them.
        dtype: `float32`, `bfloat16` or `float16`; with a model also `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        worker: `wmdp-fast` or `plain`.
    """

    method: str
    model: str | None = None
    shape: str | None = None
    parameters: str = "mlp.down_proj"
    batch_size: int = 4
    length: int = 512
    steps: int = 4
    dtype: str = "float32"
    device: str = "auto"
    worker: str = "wmdp-fast"

    @property
    def all_steps(self) -> int:
        """Steps with the one that is not timed."""
        return self.steps + 1

    def lengths(self, kind: int) -> list[int]:
        """Tokens of each forget (0) or retain (1) document of the run."""
        rng = np.random.default_rng(kind)
        shortest = max(2, self.length // _SHORTEST)
        drawn: list[int] = rng.integers(shortest, self.length + 1, self.all_steps * self.batch_size).tolist()
        return drawn


def main(folder: Path) -> None:
    """Runs the job in a folder."""
    job = MethodJob(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    import torch

    before = resident_gb()
    # So that the time of importing them is no worker's.
    from transformers import AutoModelForCausalLM  # noqa: F401

    from wmdp_fast.models.load import parse_device
    from wmdp_fast.unlearning.api import unlearn  # noqa: F401

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
    model = whole_model(job, device)
    outcome.load_seconds = time.perf_counter() - begun
    forget, retain = _corpora(job)
    result = unlearn(model, forget=forget, retain=retain, config=_settings(job), progress=False)
    outcome.step_seconds = [row["seconds"] for row in result.metrics[1:]]
    outcome.forget_losses = [row["forget_loss"] for row in result.metrics]
    outcome.retain_losses = [row["retain_loss"] for row in result.metrics]


def _settings(job: MethodJob) -> ForgetRetainConfig:
    from wmdp_fast.unlearning.methods.graddiff import GradDiffConfig
    from wmdp_fast.unlearning.methods.npo import NPOConfig

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
    return NPOConfig(**common, beta=BETA) if job.method == "npo" else GradDiffConfig(**common)


def _run_plain(job: MethodJob, device: torch.device, outcome: Outcome) -> None:
    """What an ordinary trainer does."""
    import torch

    from wmdp_fast.bench.arithmetic import synchronize
    from wmdp_fast.bench.methods_baseline import PlainMethod

    begun = time.perf_counter()
    model = whole_model(job, device)
    reference = whole_model(job, device).requires_grad_(False) if job.method == "npo" else None
    plain = PlainMethod(model, reference, parameters=job.parameters, learning_rate=LEARNING_RATE, beta=BETA)
    outcome.load_seconds = time.perf_counter() - begun
    forget, retain = (
        [torch.from_numpy(corpus.document(index)).to(device) for index in range(len(corpus))]
        for corpus in _corpora(job)
    )
    for step in range(job.all_steps):
        batch = slice(step * job.batch_size, (step + 1) * job.batch_size)
        synchronize(device)
        begun = time.perf_counter()
        losses = plain.step(forget[batch], retain[batch])
        synchronize(device)
        seconds = time.perf_counter() - begun
        outcome.forget_losses.append(losses[0])
        outcome.retain_losses.append(losses[1])
        if step > 0:
            outcome.step_seconds.append(seconds)


def _corpora(job: MethodJob) -> list[CorpusTokens]:
    """Random documents of uneven length, forget and retain."""
    from wmdp_fast.prompts.documents import CorpusTokens

    rng = np.random.default_rng(0)
    # The first few ids are often special tokens.
    vocab_size = config_of(job).get_text_config().vocab_size
    corpora = []
    for kind, name in enumerate(("forget", "retain")):
        lengths = job.lengths(kind)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        corpora.append(CorpusTokens(name, rng.integers(8, vocab_size, sum(lengths)), offsets, ""))
    return corpora


if __name__ == "__main__":
    main(Path(sys.argv[1]))
