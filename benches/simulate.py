"""What an evaluation takes by arithmetic alone: seconds, bytes read and memory, for models of any size.

    python benches/simulate.py

prints the tables of docs/scale.md: first how far the formulas are from what was measured, then what they say. A model
that fits is read and then run; of one that does not, each layer is read once for a chunk of tokens, while the layer
before it computes. What is marked as a guess in `MACHINES` was never measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WMDP, MMLU = 542_594, 1_563_773
"""Tokens that each runs through a model of Mistral's tokenizer: WMDP at 0 shots, MMLU at 5, what prompts share once."""

CHECKPOINTS = 100
"""Of a training run."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder, as large as its matrices; `active` is what a token uses of `experts`."""

    name: str
    layers: int
    width: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    experts: int = 1
    active: int = 1
    stored: int = 2

    @property
    def attention(self) -> int:
        """Weights of a layer's attention: queries and output, keys and values."""
        return 2 * self.width * self.queries + 2 * self.width * self.keys

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return self.attention + self.experts * 3 * self.width * self.inner

    @property
    def used(self) -> int:
        """Weights of a layer that a token is multiplied with."""
        return self.attention + self.active * 3 * self.width * self.inner

    @property
    def layer_bytes(self) -> int:
        """A layer on the disk."""
        return self.stored * self.layer

    @property
    def ends_bytes(self) -> int:
        """Embedding and head on the disk."""
        return 2 * self.stored * self.vocabulary * self.width

    @property
    def all_bytes(self) -> int:
        """The checkpoint."""
        return self.layers * self.layer_bytes + self.ends_bytes

    def operations(self, tokens: int) -> float:
        """Of all layers; attention's own, a few percent, is left out."""
        return 2.0 * self.used * tokens * self.layers

    def batch_bytes(self, tokens: int, size: int) -> int:
        """What a layer makes of a batch, by the rule that the token budget goes by."""
        return tokens * size * (8 * self.width + 3 * self.active * self.inner)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it runs.

    Attributes:
        dense: Operations a second of dense models.
        sparse: The same of experts.
        disk: Bytes a second.
        device: Memory for weights and batches.
        host: Memory beside it, for hidden states that do not fit there; on a CPU there is none beside.
        size: Bytes of a number in the arithmetic.
        batch: Tokens.
        start: Seconds until the first batch, without reading weights.
    """

    name: str
    dense: float
    sparse: float
    disk: float
    device: float
    host: float
    size: int
    batch: int
    start: float


MACHINES = (
    # Measured: 552 and 594 TFLOP/s, batches, start. Guesses: experts at 60 % of that, the disk, the host's memory.
    Machine(
        name="H100 80 GB", dense=580e12, sparse=350e12, disk=3e9, device=76e9, host=100e9, size=2, batch=32768, start=10
    ),
    # All guesses: 80 % and 43 % of the 165 TFLOP/s that it does in bfloat16 by its data sheet.
    Machine(
        name="RTX 4090", dense=130e12, sparse=70e12, disk=3e9, device=22e9, host=48e9, size=2, batch=16384, start=10
    ),
    # Guesses: twice and a half of the 0.37 TFLOP/s in float32 that were measured on two cores; 8 of 16 GB are free.
    Machine(name="laptop", dense=0.9e12, sparse=0.5e12, disk=2e9, device=8e9, host=0, size=4, batch=1024, start=10),
)

MISTRAL = Model(name="Mistral-7B", layers=32, width=4096, queries=4096, keys=1024, inner=14336, vocabulary=32000)
MODELS = (
    MISTRAL,
    Model(name="Qwen3-32B", layers=64, width=5120, queries=8192, keys=1024, inner=25600, vocabulary=151936),
    Model(name="Llama-70B", layers=80, width=8192, queries=8192, keys=1024, inner=28672, vocabulary=128256),
    Model(name="Llama-405B", layers=126, width=16384, queries=16384, keys=1024, inner=53248, vocabulary=128256),
    Model(
        name="Qwen3-235B-A22B", layers=94, width=4096, queries=8192, keys=512, inner=1536, vocabulary=151936,
        experts=128, active=8,
    ),
)  # fmt: skip

# Of benches/streamed.py and of SmolLM2-135M, for the checks.
STREAMED = Model(name="made up", layers=47, width=1152, queries=1152, keys=1152, inner=3072, vocabulary=257, stored=4)
SMOLLM2 = Model(name="SmolLM2-135M", layers=30, width=576, queries=576, keys=192, inner=1536, vocabulary=49152)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one evaluation takes: `chunks` is None for a model that fits."""

    seconds: float
    read: float
    device: float
    host: float
    chunks: int | None
    waits: bool


def streamed_bytes(model: Model, size: int, batch: int) -> float:
    """Device memory of streaming without hidden states: a layer that arrives, one that computes, a batch."""
    return model.layer_bytes + size * model.layer + model.batch_bytes(batch, size)


def cost(model: Model, machine: Machine, tokens: int) -> Cost | None:
    """What an evaluation of so many tokens takes on a machine; None if not even streaming fits."""
    size = machine.size
    rate = machine.dense if model.experts == 1 else machine.sparse
    compute = model.operations(tokens) / rate
    batch = model.batch_bytes(machine.batch, size)
    resident = size * model.all_bytes / model.stored + batch
    if resident <= machine.device:
        read = model.all_bytes
        seconds = machine.start + read / machine.disk + compute
        return Cost(seconds=seconds, read=read, device=resident, host=0, chunks=None, waits=False)
    # Smaller batches where a layer's take more than there is; the time is taken to be the same.
    fitting = [count for count in (machine.batch, 8192, 4096, 1024) if count <= machine.batch]
    sizes = [streamed_bytes(model, size, count) for count in fitting]
    layers = next((one for one in sizes if one < 0.9 * machine.device), None)
    if layers is None:
        return None
    room = machine.device - layers
    hidden = tokens * model.width * size
    in_host = hidden > room and machine.host > room
    chunks = math.ceil(hidden / (machine.host if in_host else room))
    read = chunks * model.all_bytes
    seconds = machine.start + model.layer_bytes / machine.disk + max(compute, read / machine.disk)
    return Cost(
        seconds=seconds,
        read=read,
        device=layers + (0 if in_host else hidden / chunks),
        host=2 * model.layer_bytes * (machine.host > 0) + (hidden / chunks if in_host else 0),
        chunks=chunks,
        waits=read / machine.disk > compute,
    )


def checks() -> list[tuple[str, float, float, str]]:
    """Each formula beside a measured point: what, by the formula, measured, unit."""
    seconds = {tokens: MISTRAL.operations(tokens) / MACHINES[0].dense for tokens in (WMDP, MMLU)}
    weights = MISTRAL.all_bytes + MISTRAL.batch_bytes(32768, 2)
    # What Python, torch and transformers take before the run was measured in the same place.
    before, tokens = 0.93e9, 8 * 330
    streamed = before + streamed_bytes(STREAMED, 4, 1024) + tokens * STREAMED.width * 4
    whole = before + STREAMED.all_bytes + STREAMED.batch_bytes(1024, 4)
    return [
        ("operations, Mistral-7B on WMDP", MISTRAL.operations(WMDP) / 1e15, 7.60, "PFLOP"),
        ("operations, Mistral-7B on MMLU", MISTRAL.operations(MMLU) / 1e15, 22.7, "PFLOP"),
        ("operations, SmolLM2-135M, 26,324 tokens", SMOLLM2.operations(26_324) / 1e12, 5.72, "TFLOP"),
        ("forward, Mistral-7B on WMDP, H100", seconds[WMDP], 13.772, "s"),
        ("forward, Mistral-7B on MMLU, H100", seconds[MMLU], 38.126, "s"),
        ("GPU memory, Mistral-7B, 32,768 tokens a batch", weights / 1e9, 18.70, "GB"),
        ("memory in all, 3 GB streamed on a CPU", streamed / 1e9, 1.16, "GB"),
        ("memory in all, 3 GB in memory on a CPU", whole / 1e9, 4.00, "GB"),
        ("bytes read, 3 GB streamed on a CPU", STREAMED.all_bytes / 1e9, 3.6, "GB"),
    ]


def check_table() -> list[str]:
    """The checks as Markdown."""
    rows = ["| formula | by it | measured | off by |", "|---|---:|---:|---:|"]
    for what, found, measured, unit in checks():
        rows.append(f"| {what} | {found:.3g} {unit} | {measured:.3g} {unit} | {found / measured - 1:+.1%} |")
    return rows


def table() -> list[str]:
    """What the formulas say, as Markdown."""
    rows = [
        "| machine | model | GB stored | how | WMDP | MMLU | GB read | device GB | host GB"
        f" | {CHECKPOINTS} checkpoints, both |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for machine in MACHINES:
        for model in MODELS:
            wmdp, mmlu, both = (cost(model, machine, tokens) for tokens in (WMDP, MMLU, WMDP + MMLU))
            head = f"| {machine.name} | {model.name} | {model.all_bytes / 1e9:.0f} |"
            if wmdp is None or mmlu is None or both is None:
                rows.append(f"{head} two layers do not fit | | | | | | |")
                continue
            # One process for all of them starts once.
            run = CHECKPOINTS * (both.seconds - machine.start) + machine.start
            how = "in memory" if mmlu.chunks is None else f"streamed, chunks: {wmdp.chunks} / {mmlu.chunks}"
            rows.append(
                f"{head} {how} | {_seconds(wmdp)} | {_seconds(mmlu)} | {wmdp.read / 1e9:,.0f} / {mmlu.read / 1e9:,.0f}"
                f" | {mmlu.device / 1e9:.0f} | {mmlu.host / 1e9:.0f} | {_time(run)} |"
            )
    return rows


def _seconds(found: Cost) -> str:
    return _time(found.seconds) + (" *" if found.waits else "")


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


if __name__ == "__main__":
    print("\n".join([*check_table(), "", *table()]))
