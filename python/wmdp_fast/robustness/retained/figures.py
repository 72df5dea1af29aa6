"""From records to numbers, and what was not measured because nobody asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.robustness.retained import distance, judge, keyword, lm_eval_task, mt_bench, writing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wmdp_fast.robustness.retained.measure import Figure, Measured

# What there is to measure by kind, of texts and tasks by name too, and the option that asks for it.
_ASKED_BY = {
    "distance general text": ("distance on general text", "--general-text"),
    "distance near text": ("distance on neighboring text", "--near-text"),
    "keyword": ("utility questions with a keyword of what was unlearned", "--utility-keyword"),
    "writing": ("what the model writes", "--write"),
    "mt_bench_answers": ("answers to MT-Bench", "--mt-bench-questions"),
    "mt_bench": ("MT-Bench by a judge", "--judge-url"),
    "lm_eval gsm8k": ("GSM8K", "--lm-eval-tasks gsm8k"),
    "lm_eval ifeval": ("IFEval", "--lm-eval-tasks ifeval"),
}


def figures_of(measured: Measured) -> list[Figure]:
    """The numbers of a record; without a number, and with the reason, those of one that failed.

    Raises:
        ValueError: It is of a kind that this version does not know.
    """
    found, why = measured.found, measured.failed or ""
    match measured.kind:
        case "distance":
            return distance.figures(measured.name, measured.role, found, why)
        case "keyword":
            return keyword.figures(measured.name, measured.identity, found, why)
        case "writing":
            return writing.figures(measured.role, found, why)
        case "mt_bench_answers":
            return mt_bench.figures(found, why)
        case "mt_bench":
            return judge.figures(measured.name, found, why)
        case "lm_eval":
            return lm_eval_task.figures(measured.name, found, why)
        case other:
            raise ValueError(f"this version knows no measure of the kind {other!r}")


def not_asked(measured: Iterable[Measured]) -> list[str]:
    """What was not measured of the unlearned model, since its option was not given, each with that option."""
    mine = [one for one in measured if one.role == "unlearned"]
    there = {one.kind for one in mine} | {f"{one.kind} {one.name}" for one in mine}
    return [f"{what} ({option})" for key, (what, option) in _ASKED_BY.items() if key not in there]
