"""One worker of `wmdp-fast bench unlearn`, in a process of its own so that its time and memory are its own.

`python -m wmdp_fast.bench.rmu_worker FOLDER` reads `job.json` there and leaves `outcome.json`.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
import zlib
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wmdp_fast.bench.report import peak_gb

if TYPE_CHECKING:
    import torch

    from wmdp_fast.prompts.documents import CorpusTokens
    from wmdp_fast.unlearning.rmu.config import Mode

STEERING_COEFF = 6.5
ALPHA = 1200.0
LEARNING_RATE = 5e-5
SEED = 42


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train, and how.

    Attributes:
        model: Folder of a model; or else `shape`.
        shape: A model of one of `shapes.SHAPES` with random weights.
        layer_id: The steered layer.
        update_layer_ids: The trained layers; None is that layer and the two below it.
        parameters: Which of their parameters, as `RMUConfig` takes them.
        mode: `reference`, whose bits are the plain algorithm's, or `masked`; of this package only.
        batch_size: Documents of each kind in a step.
        length: Tokens of a document.
        steps: Timed steps. One more is run before them.
        dtype: `float32`, `bfloat16` or `float16`; with a model also `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        worker: `wmdp-fast`, `plain` or `truncated`; or `matrices`, which only multiplies.
    """

    model: str | None = None
    shape: str | None = None
    layer_id: int = 7
    update_layer_ids: list[int] | None = None
    parameters: str = "mlp.down_proj"
    mode: Mode = "reference"
    batch_size: int = 4
    length: int = 512
    steps: int = 4
    dtype: str = "bfloat16"
    device: str = "auto"
    worker: str = "wmdp-fast"

    @property
    def trained_layers(self) -> list[int]:
        """The trained layers, in order."""
        return sorted(self.update_layer_ids or range(max(0, self.layer_id - 2), self.layer_id + 1))

    @property
    def all_steps(self) -> int:
        """Steps with the one that is not timed."""
        return self.steps + 1


class ModelJob(Protocol):
    """What a job says of its model."""

    @property
    def model(self) -> str | None:
        """A folder, or None for a shape."""

    @property
    def shape(self) -> str | None:
        """One of `shapes.SHAPES`, or None."""

    @property
    def dtype(self) -> str:
        """Of the weights."""


@dataclass
class Outcome:
    """What a worker measured.

    Attributes:
        load_seconds: To get the model or models.
        step_seconds: Of each timed step.
        forget_losses: Of all steps.
        retain_losses: Of all steps.
        peak_gb: Peak resident memory beyond what importing torch takes, in 10^9 bytes.
        gpu_peak_gb: Peak memory of tensors on the GPU, or None on a CPU.
        matrix_rate: Operations per second of the model's matrix products alone; of `matrices` only.
        device: What it ran on.
        threads: Torch's threads.
    """

    load_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    forget_losses: list[float] = field(default_factory=list)
    retain_losses: list[float] = field(default_factory=list)
    peak_gb: float = 0.0
    gpu_peak_gb: float | None = None
    matrix_rate: float = 0.0
    device: str = ""
    threads: int = 0


def main(folder: Path) -> None:
    """Runs the job in a folder."""
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    import torch

    before = resident_gb()
    # So that the time of importing them is no worker's.
    from transformers import AutoModel, AutoModelForCausalLM  # noqa: F401

    from wmdp_fast.models.load import parse_device
    from wmdp_fast.unlearning.one_run import one_run  # noqa: F401

    device = parse_device(job.device)
    outcome = Outcome(device=device_name(device), threads=torch.get_num_threads())
    {"wmdp-fast": _run_ours, "matrices": _multiply}.get(job.worker, _run_baseline)(job, device, outcome)
    outcome.peak_gb = peak_gb() - before
    if device.type == "cuda":
        outcome.gpu_peak_gb = torch.cuda.max_memory_allocated(device) / 1e9
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")


def config_of(job: ModelJob, num_layers: int | None = None) -> Any:
    """The configuration of the job's model; for a shape also with fewer layers."""
    from transformers import AutoConfig

    from wmdp_fast.bench.shapes import SHAPES

    if job.model is not None:
        return AutoConfig.from_pretrained(job.model)
    kind, sizes = SHAPES[job.shape or ""]
    sizes = sizes | ({} if num_layers is None else {"num_hidden_layers": num_layers})
    return AutoConfig.for_model(kind, **sizes, bos_token_id=1, eos_token_id=2)


def _run_ours(job: Job, device: torch.device, outcome: Outcome) -> None:
    """This package, by its public function."""
    from wmdp_fast.unlearning.api import unlearn
    from wmdp_fast.unlearning.rmu.config import RMUConfig

    begun = time.perf_counter()
    model: Any = job.model
    if job.shape is not None:
        model = first_layers(job, job.layer_id + 1, device)
    config = RMUConfig(
        layer_id=job.layer_id,
        update_layer_ids=tuple(job.trained_layers),
        parameters=job.parameters,
        mode=job.mode,
        steering_coeff=STEERING_COEFF,
        alpha=ALPHA,
        learning_rate=LEARNING_RATE,
        batch_size=job.batch_size,
        max_steps=job.all_steps,
        max_length=job.length,
        retain_max_length=job.length,
        seed=SEED,
        dtype=job.dtype if job.shape is None else "auto",
    )
    built = time.perf_counter() - begun
    forget, retain = _corpora(job)
    device_name = job.device if job.shape is None else "auto"  # of a model in memory it is where it is
    result = unlearn(model, forget=forget, retain=retain, config=config, device=device_name, progress=False)
    outcome.load_seconds = built + result.seconds["load"]
    outcome.step_seconds = [row["seconds"] for row in result.metrics[1:]]
    outcome.forget_losses = [row["forget_loss"] for row in result.metrics]
    outcome.retain_losses = [row["retain_loss"] for row in result.metrics]


def _run_baseline(job: Job, device: torch.device, outcome: Outcome) -> None:
    """The plain algorithm, or that with the layers above the steered one left away."""
    import torch

    from wmdp_fast.bench.arithmetic import synchronize
    from wmdp_fast.bench.rmu_baseline import PlainRMU

    begun = time.perf_counter()
    truncated = partial(first_layers, job, job.layer_id + 1, device)
    load = truncated if job.worker == "truncated" else partial(whole_model, job, device)
    updated, frozen = load(), load()
    baseline = PlainRMU(
        updated,
        frozen,
        layer_id=job.layer_id,
        update_layer_ids=job.trained_layers,
        parameters=job.parameters,
        learning_rate=LEARNING_RATE,
    )
    outcome.load_seconds = time.perf_counter() - begun
    hidden_size = updated.config.get_text_config().hidden_size
    direction = torch.rand(1, 1, hidden_size, dtype=updated.dtype, generator=torch.Generator().manual_seed(SEED))
    control = (direction / torch.norm(direction) * STEERING_COEFF).to(device)
    forget, retain = (
        torch.from_numpy(corpus.tokens).reshape(job.all_steps, job.batch_size, job.length).to(device)
        for corpus in _corpora(job)
    )
    for step in range(job.all_steps):
        synchronize(device)
        begun = time.perf_counter()
        losses = baseline.step(forget[step], retain[step], control, ALPHA)
        synchronize(device)
        seconds = time.perf_counter() - begun
        outcome.forget_losses.append(losses[0])
        outcome.retain_losses.append(losses[1])
        if step > 0:
            outcome.step_seconds.append(seconds)


def _multiply(job: Job, device: torch.device, outcome: Outcome) -> None:
    """The products of the layers' matrices with as many rows as a batch has tokens, and nothing else."""
    import torch

    from wmdp_fast.bench.arithmetic import synchronize

    model = first_layers(job, job.layer_id + 1, device)
    weights = [one for name, one in model.named_parameters() if one.dim() == 2 and "embed" not in name]
    rows = job.batch_size * job.length
    inputs = {
        width: torch.randn(rows, width, device=device).to(model.dtype) for width in {one.shape[1] for one in weights}
    }
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            synchronize(device)
            begun = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            synchronize(device)
            seconds.append(time.perf_counter() - begun)
    # The first pass warms up.
    outcome.matrix_rate = 2 * rows * sum(one.numel() for one in weights) / statistics.median(seconds[1:])


def whole_model(job: ModelJob, device: torch.device) -> Any:
    """The whole model, as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    from wmdp_fast.models.load import parse_dtype

    dtype = parse_dtype(job.dtype)
    if job.model is not None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype or "auto")
        return loaded.to(device)
    # For a head of its own.
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config_of(job), dtype=dtype)  # type: ignore[no-untyped-call]
    draw_weights(model.base_model)
    return model


def first_layers(job: ModelJob, num_layers: int, device: torch.device) -> Any:
    """The first layers of the model, without its head."""
    from transformers import AutoModel

    from wmdp_fast.models.load import parse_dtype
    from wmdp_fast.models.partial import load_first_layers

    if job.model is not None:
        return load_first_layers(job.model, num_layers, dtype=job.dtype, device=str(device)).decoder.model
    with device:
        model = AutoModel.from_config(config_of(job, num_layers), dtype=parse_dtype(job.dtype))  # type: ignore[no-untyped-call]
    draw_weights(model)
    return model


def draw_weights(base: Any) -> None:
    """Gives a model without its head random matrices that depend on their names alone, not on how many layers it has.

    Then the first layers of a shape are the same whether the others are there or not, and losses can be compared.
    """
    import torch

    scale = base.config.get_text_config().initializer_range
    for name, parameter in base.named_parameters():
        if parameter.dim() > 1:
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            with torch.no_grad():
                parameter.normal_(std=scale, generator=generator)


def _corpora(job: Job) -> tuple[CorpusTokens, CorpusTokens]:
    """Random documents of the same length, so that nothing is padding."""
    from wmdp_fast.prompts.documents import CorpusTokens

    rng = np.random.default_rng(0)
    count = job.all_steps * job.batch_size
    # The first few ids are often special tokens.
    vocab_size = config_of(job).get_text_config().vocab_size
    offsets = np.arange(count + 1, dtype=np.int64) * job.length
    forget, retain = (
        CorpusTokens(name, rng.integers(8, vocab_size, count * job.length), offsets, "")
        for name in ("forget", "retain")
    )
    return forget, retain


def resident_gb() -> float:
    """Resident memory of the process now, in 10^9 bytes; 0 where that cannot be read."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 / 1e9 if found else 0.0


def device_name(device: torch.device) -> str:
    """What a report calls a device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
