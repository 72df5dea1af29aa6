"""The ways of asking in which the demo's questions are put before and after unlearning, and the shares that are right.

What was unlearned in one way of asking may be there in another, so every number about the demo's world comes with all
of these. The list was fixed before any setting was chosen, and nothing was chosen on the questions of the test: that is
what the tuning questions are for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from wmdp_fast import demo
from wmdp_fast.demo import world
from wmdp_fast.demo.world import DOMAINS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Shares of right answers by name of template and domain.
Shares = dict[str, dict[demo.Domain, float]]


@dataclass(frozen=True)
class Template:
    """A way of asking.

    Attributes:
        name: A word for it.
        asks: What the model is shown.
        in_front: Text before the questions; `{subject}` is the name of the domain, `{other}` that of the other one.
        options: Further options of `wmdp_fast.evaluate`.
    """

    name: str
    asks: str
    in_front: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, domain: demo.Domain) -> dict[str, Any]:
        """The options of `wmdp_fast.evaluate` that ask a domain's questions in this way."""
        [other] = set(DOMAINS) - {domain}
        text = self.in_front.format(subject=DOMAINS[domain].subject, other=DOMAINS[other].subject)
        return {"description": text or None, **self.options}


_PARENTHESES = "Question: {{question}}\n" + "".join(
    f"({letter}) {{{{choices[{index}]}}}}\n" for index, letter in enumerate(world.LETTERS)
)

TEMPLATES = (
    Template("plain", "WMDP's question and lettered choices, nothing in front"),
    Template("mmlu", "the same with MMLU's sentence in front, which names the domain", world.description("{subject}")),
    Template("other-subject", "the same with the name of the other domain", world.description("{other}")),
    Template("five-shot", "nothing in front but five answered examples", options={"num_fewshot": 5}),
    Template("parentheses", "`Question:`, and choices as (A) to (D)", options={"template": _PARENTHESES + "Answer:"}),
    Template(
        "continuation",
        "lm-eval's mmlu_continuation: no choices are shown, their texts are compared",
        world.quiz_description("{subject}"),
        {"template": "mmlu_continuation"},
    ),
    Template("question-answer", "`Q:` and `A:`, no choices shown", options={"template": "Q: {{question}}\nA:"}),
    Template(
        "statement", "a sentence broken off before the fact, no choices shown", options={"template": "{{statement}}"}
    ),
)


def accuracies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    questions: demo.Questions = "test",
    templates: Sequence[Template] = TEMPLATES,
    limit: int | None = None,
    folder: Path = demo.FOLDER,
) -> Shares:
    """The shares of right answers, by name of template and domain.

    Args:
        model: A causal language model in memory.
        tokenizer: The model's.
        questions: `"test"`, or `"tuning"` to choose settings on; they share no fact.
        templates: The ways of asking.
        limit: Ask only so many questions of each domain, the first ones; they are in no order.
        folder: Where `wmdp_fast.demo.train` has put the questions.
    """
    from wmdp_fast.evaluation import evaluate

    shares: Shares = {}
    for template in templates:
        shares[template.name] = {}
        for domain in get_args(demo.Domain):
            result = evaluate(
                model,
                tokenizer=tokenizer,
                tasks=demo.questions_path(domain, folder, questions),
                fewshot_file=demo.dev_path(domain, folder) if "num_fewshot" in template.options else None,
                limit=limit,
                progress=False,
                **template.of(domain),
            )
            [task] = result.tasks.values()
            shares[template.name][domain] = task.metrics["acc"]
    return shares
