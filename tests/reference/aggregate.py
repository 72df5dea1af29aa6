"""lm-eval's rules for multiple-choice scores, groups and samples files, written out plainly."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Outcome:
    predicted: list[int]
    predicted_norm: list[int]
    margin: list[float]
    acc: float
    acc_stderr: float | None
    acc_norm: float
    acc_norm_stderr: float | None


def aggregate(scores: Sequence[Sequence[float]], choices: Sequence[Sequence[str]], answers: Sequence[int]) -> Outcome:
    """Scores and choices by question."""
    with np.errstate(divide="ignore", invalid="ignore"):
        predicted = [int(np.argmax(of)) for of in scores]
        predicted_norm = [
            int(np.argmax(np.array(of) / np.array([float(len(choice)) for choice in texts])))
            for of, texts in zip(scores, choices, strict=True)
        ]
    margin = []
    for of in scores:
        best, runner_up = sorted(of, reverse=True)[:2]
        margin.append(0.0 if best == runner_up else best - runner_up)
    correct = [float(guess == answer) for guess, answer in zip(predicted, answers, strict=True)]
    correct_norm = [float(guess == answer) for guess, answer in zip(predicted_norm, answers, strict=True)]
    return Outcome(
        predicted, predicted_norm, margin, mean(correct), stderr(correct), mean(correct_norm), stderr(correct_norm)
    )


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def stderr(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def pool(means: Sequence[float], stderrs: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """Weighted by size: variances within the tasks (their stderr squared times n), pooled with n - 1 as weights."""
    variances = [error**2 * size for error, size in zip(stderrs, sizes, strict=True)]
    degrees = [size - 1 for size in sizes]
    pooled = sum(d * v for d, v in zip(degrees, variances, strict=True)) / sum(degrees)
    return float(np.average(means, weights=sizes)), math.sqrt(pooled / sum(sizes))


def pool_unweighted(means: Sequence[float], stderrs: Sequence[float]) -> tuple[float, float]:
    """Variance of a mean of independent values."""
    return float(np.mean(means)), math.sqrt(sum(error**2 for error in stderrs)) / len(means)


def sample(
    doc_id: int,
    doc: dict[str, Any],
    context: str,
    continuations: Sequence[str],
    scores: Sequence[tuple[float, bool]],
    answer: int,
    metrics: dict[str, float],
    ours: dict[str, Any],
) -> dict[str, Any]:
    """One line of a samples file."""
    responses = [[str(loglikelihood), str(greedy)] for loglikelihood, greedy in scores]
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": str(answer),
        "arguments": {f"gen_args_{j}": {"arg_0": context, "arg_1": text} for j, text in enumerate(continuations)},
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(context),
        "target_hash": sha256(str(answer)),
        **metrics,
        "wmdp_fast": ours,
    }


def task_hash(samples: Sequence[dict[str, Any]]) -> str:
    return sha256("".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in samples))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
