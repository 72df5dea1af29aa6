"""One worker of `wmdp-fast bench eval`, in a process of its own so that its time and memory are its own.

`python -m wmdp_fast.bench.worker FOLDER` reads `job.json` there and leaves `outcome.json` and `scores.npy`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wmdp_fast.bench.peer_tokens import save_tokens
from wmdp_fast.bench.report import peak_gb
from wmdp_fast.runtime.leaving import leave

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.prompts.prepare import TaskQuestions


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to score, and how.

    Attributes:
        model: Folder of a model; or else `shape`.
        shape: A model of one of `shapes.SHAPES` with random weights.
        tokenizer: Folder of a tokenizer for a shape that is to answer `tasks`.
        tasks: Task names, comma-separated; or else `workload`.
        workload: Made-up questions, one of `shapes.WORKLOADS`.
        data: Folder with the datasets, in place of the hub.
        num_fewshot: Few-shot examples before each question of `tasks`.
        limit: Only so many questions of each task or subject.
        dtype: `float32`, `bfloat16` or `float16`; for a folder also `auto`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        worker: `auto`, `trie` or `padded`, which are this package's engines; or `lm-eval`; or one of
            `peers.PEERS`, which another script runs.
        token_budget: Maximum tokens per batch of this package's, or `auto`.
        compiled: Whether this package's engine compiles parts of the model first.
        batch_size: Rows in a batch of lm-eval's, or `auto`: as many as it finds to fit, up to 64.
        matrix_rate: Whether to measure the machine's matrix products too.
        requests: File for all prompts as tokens: this package's worker writes it, peers read it.
        python: Interpreter of the environment that a peer is in; the running one by default.
        started: Time at which the process was started.
    """

    model: str | None = None
    shape: str | None = None
    tokenizer: str | None = None
    tasks: str | None = None
    workload: str | None = None
    data: str | None = None
    num_fewshot: int = 0
    limit: int | None = None
    dtype: str = "float32"
    device: str = "auto"
    worker: str = "auto"
    token_budget: int | Literal["auto"] = "auto"
    compiled: bool = False
    batch_size: int | Literal["auto"] = 16
    matrix_rate: bool = False
    requests: str | None = None
    python: str | None = None
    started: float = 0.0


@dataclass
class Outcome:
    """What a worker measured.

    Attributes:
        seconds: By phase; `prepare` is what came between the model's files and its forward passes.
        questions: Questions scored.
        tokens_run: Tokens that went through the model.
        peak_gb: Peak resident memory of the process, in 10^9 bytes.
        gpu_peak_gb: Peak memory of tensors on the GPU, in 10^9 bytes; None on a CPU.
        notes: Anything else.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    questions: int = 0
    tokens_run: int = 0
    peak_gb: float = 0.0
    gpu_peak_gb: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class _Phases:
    """Wall time by phase, from the start of the process on."""

    def __init__(self, started: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = started

    def end(self, phase: str) -> None:
        """What has passed since the last phase ended was this one."""
        now = time.time()
        self.seconds[phase] = now - self._last
        self._last = now


def main(folder: Path) -> Job:
    """Runs the job in a folder, and returns it."""
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    outcome, scores = _run_lm_eval(job) if job.worker == "lm-eval" else _run_ours(job)
    np.save(folder / "scores.npy", scores)
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return job


def _run_ours(job: Job) -> tuple[Outcome, NDArray[np.float64]]:
    """This package, the way `evaluate` goes."""
    phases = _Phases(job.started)
    import torch

    from wmdp_fast.prompts import prepare, tokenizer  # noqa: F401 (to import them is part of the start)
    from wmdp_fast.results.by_task import task_results
    from wmdp_fast.results.near_tie import NEAR_TIE
    from wmdp_fast.scoring.trie import score

    phases.end("start")
    loaded = _load(job)
    phases.end("load")
    read, prompts, requests = _ask(job, loaded, phases)
    engine: Any = job.worker
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = score(loaded, requests, engine=engine, token_budget=job.token_budget, compiled=job.compiled)
    phases.end("forward")
    task_results(read, prompts, scores, near_tie=NEAR_TIE["float32"])
    phases.end("aggregate")
    notes = {
        "engine": scores.engine,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": _device_name(loaded),
        "threads": torch.get_num_threads(),
        "token_budget": scores.token_budget,
        "batches": scores.batches,
        "device_wait_seconds": scores.seconds_waiting,
        "warnings": [str(warning.message) for warning in caught],
    }
    outcome = _outcome(phases, requests.num_questions, scores.tokens_run, notes)
    if job.requests is not None:
        save_tokens(requests, Path(job.requests))
    if job.matrix_rate:
        outcome.notes |= _arithmetic(loaded, requests, scores.token_budget, scores.batches)
    return outcome, scores.loglikelihood


def _ask(job: Job, loaded: LoadedModel, phases: _Phases) -> tuple[list[TaskQuestions], list[Prompts], Requests]:
    """The questions and prompts of tasks, of which a workload has none, and all prompts as tokens."""
    from wmdp_fast.prompts import prepare
    from wmdp_fast.prompts.tokenizer import load_tokenizer

    if job.workload is not None:
        requests = _made_up(job, loaded)
        phases.end("make up")
        return [], [], requests
    read = _read(job)
    phases.end("read")
    prompts = [prepare.render(one) for one in read]
    phases.end("render")
    encoder = load_tokenizer(loaded.tokenizer, prefix_token_id=loaded.prefix_token_id)
    requests = encoder.encode_requests(prompts, loaded.max_length)
    phases.end("tokenize")
    return read, prompts, requests


def _outcome(phases: _Phases, questions: int, tokens_run: int, notes: dict[str, Any]) -> Outcome:
    return Outcome(
        seconds=_summed(phases.seconds),
        questions=questions,
        tokens_run=tokens_run,
        peak_gb=peak_gb(),
        gpu_peak_gb=_gpu_peak_gb(),
        notes=notes,
    )


def _run_lm_eval(job: Job) -> tuple[Outcome, NDArray[np.float64]]:
    """lm-eval's `hf` model and `simple_evaluate`; its own code, with clocks between its steps."""
    phases = _Phases(job.started)
    from wmdp_fast.bench.lm_eval_baseline import quiet_lm_eval

    with quiet_lm_eval() as lm_eval:
        import torch
        from lm_eval.tasks import TaskManager  # noqa: F401 (to import it is part of the start)

        from wmdp_fast.tasks import resolve  # noqa: F401 (likewise)

        harness_class = _timed_harness(phases)
        phases.end("start")
        model: Any = job.model
        given: dict[str, Any] = {"dtype": job.dtype}
        if job.shape is not None:
            loaded = _load(job)
            model, given = loaded.model, {"tokenizer": loaded.tokenizer, "backend": "causal"}
        device = _torch_device(job.device)
        harness = harness_class(pretrained=model, device=str(device), batch_size=job.batch_size, **given)
        phases.end("load")
        scores, questions = (_evaluate if job.workload is None else _score_made_up)(job, harness, phases)
        notes = {"batch_size": job.batch_size, "threads": torch.get_num_threads(), "version": lm_eval.__version__}
        outcome = _outcome(phases, questions, harness.tokens_run, notes)
    return outcome, np.array(scores)


def _timed_harness(phases: _Phases) -> Any:
    """lm-eval's `hf` as a class that says when it begins to tokenize and to run the model, and counts its tokens."""
    from lm_eval.models.huggingface import HFLM

    class TimedHFLM(HFLM):  # type: ignore[misc]
        tokens_run = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            phases.end("render")
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **options: Any) -> Any:
            phases.end("tokenize")
            scores = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, **options)
            phases.end("forward")
            return scores

        def _model_call(self, inps: Any, *arguments: Any, **options: Any) -> Any:
            self.tokens_run += inps.numel()
            return super()._model_call(inps, *arguments, **options)

    return TimedHFLM


def _evaluate(job: Job, harness: Any, phases: _Phases) -> tuple[list[float], int]:
    """Lets lm-eval answer tasks: the log-likelihoods of all choices, and how many questions there were."""
    import lm_eval
    from lm_eval.tasks import TaskManager, get_task_dict

    from wmdp_fast.bench.lm_eval_baseline import task_configs
    from wmdp_fast.tasks.resolve import resolve

    selection = resolve(job.tasks or "", num_fewshot=job.num_fewshot)
    manager = TaskManager(include_defaults=False)
    tasks = list(get_task_dict(task_configs(selection.tasks, job.data), manager).values())
    phases.end("read")
    found = lm_eval.simple_evaluate(
        model=harness,
        tasks=tasks,
        num_fewshot=job.num_fewshot,
        limit=job.limit,
        task_manager=manager,
        bootstrap_iters=0,
    )
    phases.end("aggregate")
    samples = [line for task in selection.tasks for line in _in_order(found["samples"][task.name])]
    return [float(answer[0][0]) for line in samples for answer in line["resps"]], len(samples)


def _score_made_up(job: Job, harness: Any, phases: _Phases) -> tuple[list[float], int]:
    """Lets lm-eval score a workload: the log-likelihoods of all choices, and how many questions there were."""
    requests = _made_up(job, _load_description(harness))
    pairs = [
        (("", ""), requests.context(question).tolist(), requests.continuation(choice).tolist())
        for question in range(requests.num_questions)
        for choice in range(*requests.choice_offsets[question : question + 2].tolist())
    ]
    phases.end("make up")
    scores = [answer[0] for answer in harness._loglikelihood_tokens(pairs)]
    phases.seconds["make up"] += phases.seconds.pop("tokenize")
    phases.end("aggregate")
    return scores, requests.num_questions


def _load(job: Job) -> LoadedModel:
    from wmdp_fast.bench.shapes import build_model
    from wmdp_fast.models.load import load_model, parse_dtype, wrap_model

    if job.model is not None:
        return load_model(job.model, dtype=job.dtype, device=job.device)
    tokenizer: Any = None
    if job.tokenizer is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    dtype = parse_dtype(job.dtype)
    if job.shape is None or dtype is None:
        raise ValueError("a shape has no dtype of its own; give one")
    device = _torch_device(job.device)
    model, tokenizer = build_model(job.shape, dtype=dtype, device=device, tokenizer=tokenizer)
    return wrap_model(model, tokenizer, name=job.shape)


def _load_description(harness: Any) -> LoadedModel:
    from wmdp_fast.models.load import wrap_model

    return wrap_model(harness.model, harness.tokenizer, name="baseline")


def _read(job: Job) -> list[TaskQuestions]:
    from wmdp_fast.prompts import prepare
    from wmdp_fast.tasks.resolve import resolve

    selection = resolve(job.tasks or "", num_fewshot=job.num_fewshot)
    return prepare.read_tasks(selection.tasks, data=job.data, limit=job.limit)


def _made_up(job: Job, loaded: LoadedModel) -> Requests:
    from wmdp_fast.bench.shapes import build_requests

    config: Any = loaded.model.config
    vocab_size = config.get_text_config().vocab_size
    return build_requests(job.workload or "", vocab_size=vocab_size, max_length=loaded.max_length, limit=job.limit)


def _in_order(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(samples, key=lambda line: line["doc_id"])


def _summed(seconds: dict[str, float]) -> dict[str, float]:
    """Phases in order, with preparation and the whole summed up."""
    parts = ("read", "render", "tokenize")
    found: dict[str, float] = {}
    for phase in ("start", "load", *parts, "make up"):
        if phase in seconds:
            found[phase] = seconds[phase]
    if "tokenize" in seconds:
        found["prepare"] = sum(seconds[part] for part in parts)
    found |= {phase: seconds[phase] for phase in ("forward", "aggregate")}
    # Made-up questions are the benchmark's own doing.
    found["total"] = sum(seconds.values()) - seconds.get("make up", 0.0)
    return found


def _arithmetic(loaded: LoadedModel, requests: Requests, budget: int, batches: int) -> dict[str, Any]:
    """Operations that the useful tokens need, and the rate at which the machine does nothing else."""
    from wmdp_fast._rust import Trie
    from wmdp_fast.bench.arithmetic import arithmetic, matrix_rate, visible_pairs

    trie = Trie(requests)
    useful = trie.num_tokens
    config: Any = loaded.model.config
    window = getattr(config.get_text_config(), "sliding_window", None)
    pairs = readouts = 0
    for batch in trie.batches(max(budget, 1), 1 << 30):
        pairs += visible_pairs([batch], window)
        readouts += len(batch.readouts)
    notes: dict[str, Any] = {"useful_tokens": useful}
    try:
        cost = arithmetic(loaded.model)
        rows = max(1, min(budget, trie.num_tokens // max(1, batches)))
        rate = matrix_rate(loaded.model, tokens=rows, readouts=max(1, readouts // max(1, batches)))
    except ValueError as error:
        return notes | {"why_no_matrix_rate": str(error)}
    return notes | {
        "useful_flop": cost.per_token * useful + cost.per_readout * readouts,
        "attention_flop": round(cost.per_pair * pairs * useful / max(1, trie.num_tokens)),
        "matrix_flop_per_second": rate,
        "matrix_rows": rows,
    }


def _torch_device(device: str) -> Any:
    from wmdp_fast.models.load import parse_device

    return parse_device(device)


def _device_name(loaded: LoadedModel) -> str:
    import torch

    if loaded.device.type != "cuda":
        return str(loaded.device)
    return torch.cuda.get_device_name(loaded.device)


def _gpu_peak_gb() -> float | None:
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


if __name__ == "__main__":
    # Each ends as its command line does: lm-eval's leaves that to the interpreter.
    if main(Path(sys.argv[1])).worker != "lm-eval":
        leave(0)
