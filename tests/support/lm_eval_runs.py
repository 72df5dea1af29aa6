"""Runs the installed lm-eval on the same questions as this package, for the tests that compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from wmdp_fast.bench.lm_eval_baseline import quiet_lm_eval, task_configs
from wmdp_fast.tasks.resolve import resolve

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence


@dataclass(frozen=True)
class LmEvalRun:
    """What lm-eval found: its `results` section, and for each task the log-likelihoods `[question][choice]`."""

    results: dict[str, dict[str, Any]]
    loglikelihood: dict[str, list[list[float]]]
    is_greedy: dict[str, list[list[bool]]]
    contexts: dict[str, list[str]]


def run_lm_eval(
    model: Any,
    tasks: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    num_fewshot: int = 0,
    limit: int | None = None,
    model_args: dict[str, Any] | None = None,
    template: str | None = None,
    **options: Any,
) -> LmEvalRun:
    """Evaluates `model` (a path or an HFLM keyword) with lm-eval's `hf` backend."""
    selection = resolve(tasks, num_fewshot=num_fewshot, template=template)
    with quiet_lm_eval() as lm_eval, pytest.MonkeyPatch.context() as patch:
        # Describing the machine takes lm-eval seconds: it runs pip.
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        hflm = HFLM(pretrained=model, device="cpu", **(model_args or {}))
        found = lm_eval.simple_evaluate(
            model=hflm,
            tasks=task_configs(selection.tasks, data),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=TaskManager(include_defaults=False),
            log_samples=True,
            bootstrap_iters=100,
            **options,
        )
    samples: dict[str, Sequence[dict[str, Any]]] = found["samples"]
    ordered = {name: sorted(lines, key=lambda line: line["doc_id"]) for name, lines in samples.items()}
    return LmEvalRun(
        results=found["results"],
        loglikelihood={n: [[float(r[0][0]) for r in line["resps"]] for line in lines] for n, lines in ordered.items()},
        is_greedy={n: [[bool(r[0][1]) for r in line["resps"]] for line in lines] for n, lines in ordered.items()},
        contexts={n: [line["arguments"][0][0] for line in lines] for n, lines in ordered.items()},
    )
