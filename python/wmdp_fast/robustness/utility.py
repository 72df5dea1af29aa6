"""What a model can do besides: an attack that ruins it has not brought knowledge back, and does not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast.prompts.texts import text_requests
from wmdp_fast.prompts.tokenizer import BackgroundTokenizer
from wmdp_fast.results.perplexity import text_results
from wmdp_fast.tasks.resolve import without_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.robustness.questions import Questions
    from wmdp_fast.scoring.local import LocalModel

ACCURACY = "acc"
"""Share of right answers over all questions that utility is measured on."""


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What is measured.

    Attributes:
        questions: Questions on what was to be kept; None if there are none.
        texts: Held-out texts whose perplexity is measured.
    """

    questions: Questions | None = None
    texts: Sequence[Text] = ()

    def __bool__(self) -> bool:
        return self.questions is not None or bool(self.texts)

    def measure(self, model: LocalModel) -> dict[str, float]:
        """Measures a model as it is now.

        Returns:
            `acc` over all questions, `acc TASK` of each task if there are several, `bits_per_byte TEXT` of each text.

        Raises:
            ModelError: Its numbers are none any more.
        """
        found: dict[str, float] = {}
        if self.questions is not None:
            outcomes = self.questions.ask(model)
            found[ACCURACY] = sum(int(one.correct.sum()) for one in outcomes) / len(self.questions)
            if len(outcomes) > 1:
                tasks = [one.task.name for one in self.questions.read]
                found |= {f"{ACCURACY} {name}": float(one.acc) for name, one in zip(tasks, outcomes, strict=True)}
        return found | self._of_texts(model)

    def identity(self) -> list[list[str]]:
        """What tells it from another: hashes of questions and texts."""
        questions = [] if self.questions is None else [["questions", self.questions.content_hash]]
        return [*questions, *([text.name, text.content_hash] for text in self.texts)]

    def _of_texts(self, model: LocalModel) -> dict[str, float]:
        if not self.texts:
            return {}
        from wmdp_fast.scoring.rolling import score_windows

        tokenizer = BackgroundTokenizer(without_tasks()).of(model)
        asked = text_requests(self.texts, tokenizer, model.prefix_token_id, model.max_length)
        scores = score_windows(model.loaded, asked.requests, token_budget=model.options.token_budget)
        results = text_results(asked, scores.loglikelihood)
        return {f"bits_per_byte {name}": result.metrics["bits_per_byte"] for name, result in results.items()}


def is_kept(before: Mapping[str, float], after: Mapping[str, float] | None, slack: float) -> bool:
    """Whether a model is still worth something under an attack.

    Args:
        before: Its utility without the attack.
        after: With it; None if the attack cannot change it.
        slack: The share of it that may be lost: of accuracy, and of bits per byte, which may rise by as much.
    """
    if after is None:
        return True
    if ACCURACY in before:
        return after[ACCURACY] >= (1 - slack) * before[ACCURACY]
    return all(after[name] <= (1 + slack) * value for name, value in before.items())
