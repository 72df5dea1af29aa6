"""The scores of a run, cut into the results of its tasks."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from wmdp_fast._rust import OrderAnswers, aggregate
from wmdp_fast.results.result import TaskResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast._rust import Prompts
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.scoring.scores import Scores


def task_results(
    read: Sequence[TaskQuestions],
    prompts: Sequence[Prompts],
    scores: Scores,
    *,
    near_tie: float,
    others: Sequence[TaskQuestions] = (),
    orders: str | None = None,
) -> dict[str, TaskResult]:
    """Aggregates the scores of a run by task.

    Args:
        read: The questions of each task.
        prompts: The prompts of each, then those of `others`.
        scores: Of all choices of all these prompts, one after the other.
        near_tie: Margin in nats up to which a prediction counts as a near-tie.
        others: Questions of these tasks with their choices in other orders.
        orders: Which orders those are, as `permute_choices` names them.

    Returns:
        The results by the task's name, in order.

    Raises:
        ValueError: A score is NaN; names the question.
    """
    ends = list(accumulate((asked.num_choices for asked in prompts), initial=0))
    own = [(scores.loglikelihood[slice(*pair)], scores.is_greedy[slice(*pair)]) for pair in pairwise(ends)]
    results = {
        one.task.name: TaskResult.from_scores(
            one.task,
            one.questions,
            asked,
            *of_task,
            near_tie=near_tie,
            num_available=one.available,
            dataset_revision=one.revision,
        )
        for one, asked, of_task in zip(read, prompts, own, strict=False)
    }
    for other, asked, of_task in zip(others, prompts[len(read) :], own[len(read) :], strict=True):
        result = results[other.task.name]
        outcome = aggregate(asked, *of_task, near_tie=near_tie)
        answers = OrderAnswers(result.questions, orders or "", result.outcome, outcome)
        results[other.task.name] = replace(result, order_answers=answers)
    return results
