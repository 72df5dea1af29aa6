"""How a run asks: from the parameters of `evaluate` to prompts and their tokens, before a model scores them.

`evaluate` and `rendered_prompts` both go through here, so that what is shown is what is scored.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast.exceptions import TaskError, WmdpFastWarning
from wmdp_fast.prompts import cautions, prepare
from wmdp_fast.prompts.chat import chat_contexts, system_text
from wmdp_fast.prompts.tokenizer import load_tokenizer, prefix_token_id
from wmdp_fast.results.provenance import model_type
from wmdp_fast.tasks.resolve import resolve, without_tasks
from wmdp_fast.tasks.typed_text import typed_line_breaks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from os import PathLike

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, QuestionSet, Requests, Tokenizer
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.tokenizer_only import TokenizerOnly
    from wmdp_fast.prompts.chat import ChatPrompts
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.scoring.served import ServedModel
    from wmdp_fast.tasks.resolve import Selection
    from wmdp_fast.tasks.task import Choices

# Most tokens of a prompt for a served model that nobody knows the limit of: the server refuses what is too long.
_NO_LIMIT = 1 << 20

# Numbers of tokens that Rust can count.
_LARGEST = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The parameters of `evaluate` that decide what is asked and how, described there."""

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

    def requests(
        self, loaded: LoadedModel | ServedModel | TokenizerOnly, encoder: Encoder, prompts: Sequence[Prompts]
    ) -> Requests | None:
        """The prompts as tokens; None if there are none, or for a served model without a tokenizer: it is sent text."""
        if not prompts:
            return None
        if loaded.tokenizer is None or loaded.prefix_token_id is None:
            if self.max_length is not None:
                raise ValueError("max_length needs the served model's tokenizer: name it with tokenizer (--tokenizer)")
            return None
        found = encoder.get(loaded.tokenizer, loaded.prefix_token_id, model_type(loaded))
        return found.encode_requests(prompts, self.max_length or min(loaded.max_length or _NO_LIMIT, _LARGEST))


class Cautions:
    """Warns of what is unusual about a run's questions and prompts, and keeps it for the results."""

    def __init__(self, read: Sequence[TaskQuestions], system_instruction: str | None, *, log_samples: bool) -> None:
        columns = cautions.columns_without_json(read)
        self.details: dict[str, Any] = {"columns_without_json": columns}
        self._sentences: list[str] = []
        self._warn(typed_line_breaks({"system_instruction": system_instruction}))
        self._warn(cautions.repeated_examples(read))
        if log_samples:
            self._warn(cautions.about_columns(columns))

    def add_prompts(self, requests: Requests | None, asked: Sequence[QuestionSet]) -> None:
        """Adds what the prompts are as tokens; nothing if the server makes those."""
        if requests is None:
            return
        self.details["truncated"], sentences = cautions.cut_prompts(requests, asked)
        self._warn(sentences)
        self.details["joined_choices"], sentences = cautions.joined_choices(requests)
        self._warn(sentences)

    def add_chat(self, task: str, chat: ChatPrompts) -> None:
        """Adds how the chat template took a task's prompts; once, if they are asked in several orders."""
        sentences = [f"{task}: {sentence}" for sentence in cautions.about_chat(chat)]
        self._warn([sentence for sentence in sentences if sentence not in self._sentences])

    def added_to(self, details: dict[str, Any]) -> dict[str, Any]:
        """A run's details with these, its own warnings first."""
        return details | self.details | {"warnings": [*details["warnings"], *self._sentences]}

    def _warn(self, sentences: Sequence[str]) -> None:
        self._sentences += sentences
        for sentence in sentences:
            warnings.warn(sentence, WmdpFastWarning, stacklevel=4)


class Encoder:
    """The Rust tokenizer, begun to be loaded while the weights are read: either takes some tenths of a second."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._begun: Future[Tokenizer] | None = None

    def begin(self, tokenizer: PreTrainedTokenizerBase, model_type: str) -> None:
        """Begins to load it on a thread, which takes little of Python's time."""
        if (prefix := prefix_token_id(tokenizer)) is not None:
            threads = ThreadPoolExecutor(max_workers=1)
            self._begun = threads.submit(self._load, tokenizer, prefix, model_type)
            threads.shutdown(wait=False)

    def get(self, tokenizer: PreTrainedTokenizerBase, prefix_token_id: int, model_type: str) -> Tokenizer:
        """Waits for it, or loads it now.

        Raises:
            TokenizerError: As `load_tokenizer`.
        """
        if self._begun is not None:
            return self._begun.result()
        return self._load(tokenizer, prefix_token_id, model_type)

    def _load(self, tokenizer: PreTrainedTokenizerBase, prefix_token_id: int, model_type: str) -> Tokenizer:
        special = self._selection.compat.add_special_tokens(model_type)
        return load_tokenizer(tokenizer, prefix_token_id=prefix_token_id, add_special_tokens=special)


def check_counts(**given: int | None) -> None:
    """Raises for numbers of tokens that Rust cannot count."""
    for name, number in given.items():
        if number is not None and not 1 <= number <= _LARGEST:
            raise ValueError(f"{name} must be a number of tokens from 1 to {_LARGEST}, not {number}")
