"""From options to measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.robustness.retained.distance import Distance
from wmdp_fast.robustness.retained.judge import JudgedScore, read_judge_prompts
from wmdp_fast.robustness.retained.keyword import KeywordAccuracy
from wmdp_fast.robustness.retained.lm_eval_task import LmEvalTask
from wmdp_fast.robustness.retained.mt_bench import ChatAnswers, read_questions
from wmdp_fast.robustness.retained.writing import Writing
from wmdp_fast.unlearning.budget_request import GENERAL_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from wmdp_fast.robustness.retained.measure import RetainedMeasure
    from wmdp_fast.robustness.utility import Utility
    from wmdp_fast.scoring.server import Server


def distances(general: str | PathLike[str] | None, near: str | PathLike[str] | None) -> list[Distance]:
    """Distances on general text, that of this package unless the user has one, and on neighboring text if there is any.

    Raises:
        DataUnavailableError, DatasetError: As `read_texts`.
    """
    files = {"general text": general or GENERAL_TEXT, "near text": near}
    return [
        # What tables call them, whatever the file is called.
        Distance(replace(text, name=name))
        for name, file in files.items()
        if file is not None
        for text in read_texts(file)
    ]


def keyword_accuracies(keyword: str | None, utility: Utility) -> list[KeywordAccuracy]:
    """Accuracy on the utility questions with a keyword, if there is one.

    Raises:
        ValueError: There are no such questions, or the keyword is empty.
    """
    if keyword is None:
        return []
    if not keyword.strip() or utility.questions is None:
        raise ValueError("utility_keyword is a word that is put into the questions of utility, which needs tasks too")
    return [KeywordAccuracy(keyword, utility.questions)]


def writings(prompts: int, tokens: int, output: str | PathLike[str] | None) -> list[Writing]:
    """Greedy texts from so many documents of each kind, if any are wanted; they are kept below `output`.

    Raises:
        ValueError: A number is impossible.
    """
    if prompts < 0 or tokens < 1:
        raise ValueError(f"write and write_tokens must be whole numbers from 0 and 1, not {prompts} and {tokens}")
    folder = None if output is None else Path(output) / "texts"
    return [Writing(prompts, tokens, folder)] if prompts else []


def lm_eval_tasks(tasks: str | Sequence[str], limit: float | None) -> list[LmEvalTask]:
    """Tasks of lm-eval by name, several of them with commas between."""
    named = [tasks] if isinstance(tasks, str) else tasks
    return [LmEvalTask(task.strip(), limit) for one in named for task in one.split(",") if task.strip()]


def mt_bench(
    questions: str | PathLike[str] | None,
    judge: Server | None,
    prompts: str | PathLike[str] | None,
    references: str | PathLike[str] | None,
    *,
    output: str | PathLike[str] | None,
    seed: int,
) -> list[RetainedMeasure]:
    """Answers to MT-Bench's questions if there are any, and a judge's scores if there is one.

    Raises:
        DatasetError: A file is not FastChat's.
        FileNotFoundError: There is no such file.
        ValueError: Something is missing that another option needs.
    """
    if questions is None:
        if judge is not None:
            raise ValueError("a judge needs answers to MT-Bench's questions: mt_bench_questions")
        return []
    if output is None:
        raise ValueError("answers to MT-Bench are files: mt_bench_questions needs output")
    read, folder = read_questions(Path(questions)), Path(output) / "mt_bench"
    found: list[RetainedMeasure] = [ChatAnswers(read, folder, seed)]
    if judge is not None:
        if prompts is None:
            raise ValueError("a judge needs FastChat's judge_prompts.jsonl: judge_prompts")
        told = read_judge_prompts(Path(prompts), None if references is None else Path(references))
        found.append(JudgedScore(read, folder, judge, told, seed))
    return found
