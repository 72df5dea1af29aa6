"""From the parameters of `evaluate` that say what to ask and how, to prompts and their tokens.

`evaluate` and `rendered_prompts` both go through here, so that what is shown is what is scored.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from wmdp_fast.exceptions import TaskError, WmdpFastWarning
from wmdp_fast.prompts import prepare
from wmdp_fast.prompts.chat import chat_contexts, system_text
from wmdp_fast.tasks.resolve import resolve, without_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.prompts.cautions import Cautions
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.prompts.tokenizer import BackgroundTokenizer, ReadsTokens
    from wmdp_fast.tasks.resolve import Selection
    from wmdp_fast.tasks.task import Choices

# Maximum tokens of a prompt for a served model whose limit is unknown: the server refuses what is too long.
_NO_LIMIT = 1 << 20

# Numbers of tokens that Rust can count.
_LARGEST = 1 << 62


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The parameters of `evaluate` that decide what is asked and how, described there.

    Raises:
        ValueError: `max_length` is not a number of tokens.
    """

    tasks: str | PathLike[str] | Sequence[str | PathLike[str]]
    data: str | PathLike[str] | None = None
    dataset_revision: str | Mapping[str, str] | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    subjects: str | Sequence[str] | None = None
    template: str | None = None
    choices: Choices | None = None
    description: str | None = None
    fewshot_file: str | PathLike[str] | None = None
    permute_choices: Literal["cyclic", "all"] | None = None
    lm_eval_compat: str = "current"
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_counts(max_length=self.max_length)

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples are turns of a chat, by the default of lm-eval if nothing was said."""
        return bool(self.apply_chat_template) if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

    def select(self, *, has_text: bool = False) -> Selection:
        """The tasks that are meant.

        Args:
            has_text: Whether texts are to be read too, so that there may be no tasks; then nothing may say how to ask.

        Warns:
            WmdpFastWarning: An option is ignored, or a text is not what it seems to be.

        Raises:
            TaskError: A name is unknown, or an option does not apply.
        """
        of_tasks = {
            "subjects": self.subjects,
            "num_fewshot": self.num_fewshot,
            "template": self.template,
            "choices": self.choices,
            "description": self.description,
            "fewshot_file": self.fewshot_file,
        }
        if has_text and not self.tasks:
            given = of_tasks | {
                "permute_choices": self.permute_choices,
                "apply_chat_template": self.apply_chat_template or None,
                "system_instruction": self.system_instruction,
            }
            if unfit := [name for name, value in given.items() if value is not None]:
                raise TaskError(
                    f"{', '.join(unfit)}: a text is read as it stands, and there are no tasks to ask in that way"
                )
            return without_tasks(self.lm_eval_compat)
        selection = resolve(self.tasks, **of_tasks, compat=self.lm_eval_compat)  # type: ignore[arg-type]
        for warning in selection.warnings:
            warnings.warn(warning, WmdpFastWarning, stacklevel=3)
        if self.apply_chat_template and not selection.compat.has_chat_templates:
            raise TaskError(f"lm-eval {selection.compat.name} could not apply chat templates; leave one of the two out")
        if self.permute_choices is not None and (
            unordered := [task.name for task in selection.tasks if task.choices == "texts"]
        ):
            raise TaskError(
                f"{', '.join(unordered)}: the prompt shows no choices, each is scored by itself, so they have no order"
                " to change; permute_choices is for tasks that are answered with letters"
            )
        return selection

    def read(self, selection: Selection) -> list[TaskQuestions]:
        """The questions of the tasks; their templates have been tried.

        Raises:
            DataUnavailableError, DatasetError, TaskError, ValueError: As `prepare.read_tasks` does.
            TemplateError: A template does not compile, or fails on its first question.
        """
        read = prepare.read_tasks(
            selection.tasks, data=self.data, dataset_revision=self.dataset_revision, limit=self.limit
        )
        prepare.try_templates(read)
        return read

    def in_other_orders(self, read: Sequence[TaskQuestions]) -> list[TaskQuestions]:
        """The same questions with their choices in other orders, if that was asked for."""
        orders = self.permute_choices
        return [] if orders is None else [replace(one, questions=one.questions.permuted(orders)) for one in read]

    def prompts(
        self,
        read: TaskQuestions,
        tokenizer: PreTrainedTokenizerBase | None,
        about: Cautions,
    ) -> Prompts:
        """The prompts of one task, through the chat template if one is to be applied."""
        task = read.task
        if self.apply_chat_template and tokenizer is None:
            raise ValueError(
                "apply_chat_template needs the served model's tokenizer: name it with tokenizer (--tokenizer)"
            )
        if not self.apply_chat_template or tokenizer is None:
            text = system_text(self.system_instruction, task.description, task.fewshot_delimiter)
            return prepare.render(read, description=text)
        template = prepare.template_of(task)
        examples = read.fewshot.head(task.num_fewshot or 0) if read.fewshot and task.num_fewshot else None
        turns = []
        if examples:
            answered = template.render(examples)
            answers = [answered.choices(index)[answer] for index, answer in enumerate(answered.answers)]
            turns = list(zip(template.question_texts(examples), answers, strict=True))
        # Without examples, and without a description, a context is the question's own text.
        prompts = prepare.template_of(task, description="").render(read.questions)
        chat = chat_contexts(
            tokenizer,
            [prompts.context(index) for index in range(len(prompts))],
            description=task.description,
            system_instruction=self.system_instruction,
            fewshot_turns=turns,
            fewshot_as_multiturn=self.multiturn,
            chat_template=self.apply_chat_template,
            target_delimiter=task.target_delimiter,
            fewshot_delimiter=task.fewshot_delimiter,
        )
        about.add_chat(task.name, chat)
        return prompts.with_contexts(chat.contexts, delimiter=chat.delimiter)

    def requests(self, model: ReadsTokens, encoder: BackgroundTokenizer, prompts: Sequence[Prompts]) -> Requests | None:
        """The prompts as tokens; None if there are none, or for a served model without a tokenizer: it is sent text."""
        if not prompts:
            return None
        if model.tokenizer is None:
            if self.max_length is not None:
                raise ValueError("max_length needs the served model's tokenizer: name it with tokenizer (--tokenizer)")
            return None
        return encoder.encoded(model, prompts, self.length(model))

    def length(self, model: ReadsTokens) -> int:
        """Most tokens of a prompt."""
        return self.max_length or min(model.max_length or _NO_LIMIT, _LARGEST)


def check_counts(**given: int | None) -> None:
    """Raises for numbers of tokens that Rust cannot count."""
    for name, number in given.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        if number is not None and not (whole and 1 <= number <= _LARGEST):
            raise ValueError(f"{name} must be a number of tokens from 1 to {_LARGEST}, not {number!r}")
