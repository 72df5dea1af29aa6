"""`wmdp-fast bench data`: how fast questions become batches, beside lm-eval's own preparation of the same questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import RELEASE_BUILD, Tokenizer
from wmdp_fast.bench.report import BenchReport, Measurement, machine, peak_gb
from wmdp_fast.exceptions import TokenizerError
from wmdp_fast.prompts.prepare import DEFAULT_TOKEN_BUDGET, plan, read_tasks, render
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.tasks.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from wmdp_fast._rust import Requests
    from wmdp_fast.tasks.task import Task

# Longer than any prompt here, so that nothing is cut off.
_MAX_LENGTH = 1 << 20


def bench_data(
    *,
    tasks: str | Sequence[str],
    tokenizer: Path,
    data: str | PathLike[str] | None = None,
    num_fewshot: int = 0,
    against: Sequence[str] = (),
    sample: int = 200,
) -> BenchReport:
    """Reads, renders, tokenizes and plans every question of some tasks, from cold, and times each phase.

    Args:
        tasks: Task names.
        tokenizer: A `tokenizer.json`, or a folder that holds one.
        data: Folder with the datasets, in place of the hub.
        num_fewshot: Few-shot examples before each question.
        against: Baselines to run in the same process afterwards; `lm-eval` is the only one.
        sample: How many questions a baseline prepares; its figures are given for that many, ratios per question.

    Raises:
        TokenizerError: There is no tokenizer at that path.
        ValueError: A baseline is unknown.
    """
    if unknown := set(against) - {"lm-eval"}:
        raise ValueError(f"unknown baseline {', '.join(sorted(unknown))}; known: lm-eval")
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise TokenizerError(f"{path} does not exist; --tokenizer takes a tokenizer.json or a folder with one")
    selection = resolve(tasks, num_fewshot=num_fewshot)

    ours, requests = _ours(selection.tasks, path, data)
    work: dict[str, Any] = {
        "benchmark": "data",
        "tasks": tasks if isinstance(tasks, str) else ",".join(tasks),
        "num_fewshot": num_fewshot,
        "questions": requests.num_questions,
        "tokens": requests.num_tokens,
        "token_budget": DEFAULT_TOKEN_BUDGET,
        "tokenizer engine": requests.engine,
        "machine": machine(),
    }
    if not against:
        return BenchReport(work, ours)
    baseline = _lm_eval(selection.tasks, path, data, sample)
    work["baseline sample"] = f"{baseline.units['questions']} questions"
    return BenchReport(work, ours, {"lm-eval": baseline}, {"lm-eval": _ratios(ours, baseline)})


def _ours(tasks: Sequence[Task], tokenizer: Path, data: str | PathLike[str] | None) -> tuple[Measurement, Requests]:
    """This package's own phases, and the requests that come out."""
    clock = PhaseClock()
    with clock("load tokenizer"):
        description = tokenizer.read_text(encoding="utf-8")
        loaded = Tokenizer(description, add_special_tokens=True, prefix_token_id=0, prefix_text="\0")
    with clock("read"):
        read = read_tasks(tasks, data=data)
    with clock("render"):
        prompts = [render(one) for one in read]
    with clock("tokenize"):
        requests = loaded.encode_requests(prompts, _MAX_LENGTH)
    with clock("plan"):
        batches = sum(1 for _ in plan(requests))
    total = sum(clock.seconds.values())
    measured = Measurement(
        seconds=clock.seconds | {"total": total},
        units={"questions": requests.num_questions, "tokens": requests.num_tokens, "batches": batches},
        per_second={"questions": requests.num_questions / total, "tokens": requests.num_tokens / total},
        peak_gb=peak_gb(),
        notes={
            "tokenizer engine": requests.engine,
            "why not fastokens": requests.why_not_fast,
            "why no shared prefixes": requests.why_no_cuts,
            "release build": RELEASE_BUILD,
        },
    )
    return measured, requests


def _ratios(ours: Measurement, baseline: Measurement) -> dict[str, float]:
    """How many times as long the baseline takes for a question, phase by phase."""
    phases = {"render": ["render"], "tokenize": ["tokenize"], "render + tokenize": ["render", "tokenize"]}
    return {
        phase: (baseline.seconds[phase] / baseline.units["questions"])
        / (sum(ours.seconds[part] for part in parts) / ours.units["questions"])
        for phase, parts in phases.items()
    }


def _lm_eval(tasks: Sequence[Task], tokenizer: Path, data: str | PathLike[str] | None, sample: int) -> Measurement:
    """lm-eval's context building and tokenization, as `simple_evaluate` does them, on questions of up to 8 tasks."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from wmdp_fast.bench.lm_eval_baseline import quiet_lm_eval, task_configs

    chosen = tasks[:: max(1, len(tasks) // 8)][:8]
    with quiet_lm_eval():
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager, get_task_dict

        loaded = get_task_dict(task_configs(chosen, data), TaskManager(include_defaults=False))
        # lm-eval tokenizes inside its model class; the model itself is never run.
        slow: Any = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))  # type: ignore[no-untyped-call]
        special = {"eos_token": slow.convert_ids_to_tokens(0), "pad_token": slow.convert_ids_to_tokens(0)}
        slow.add_special_tokens({key: value for key, value in special.items() if isinstance(value, str)})
        tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        model = HFLM(pretrained=LlamaForCausalLM(tiny), tokenizer=slow, backend="causal", device="cpu")

        clock = PhaseClock()
        pairs = []
        questions = 0
        with clock("render"):
            for one in loaded.values():
                one.set_config(key="num_fewshot", value=one.config.num_fewshot or 0)
                one.build_all_requests(limit=-(-sample // len(loaded)), rank=0, world_size=1)
                pairs += [request.args for request in one.instances]
                questions += len({request.doc_id for request in one.instances})
        with clock("tokenize"):
            for context, continuation in pairs:
                model._encode_pair(context, continuation)
    seconds = clock.seconds | {"render + tokenize": sum(clock.seconds.values())}
    return Measurement(
        seconds=seconds,
        units={"questions": questions},
        per_second={"questions": questions / seconds["render + tokenize"]},
        notes={"tasks": [task.name for task in chosen]},
    )
