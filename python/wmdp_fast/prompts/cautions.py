"""What is unusual about the questions and prompts of a run, in words for the user and as numbers for the results."""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.tasks.typed_text import typed_line_breaks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import QuestionSet, Requests
    from wmdp_fast.prompts.chat import ChatPrompts
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.prompts.tokenizer import ReadsTokens


# A tag at the end of a prompt behind which a model thinks; one that ends thinking has a slash or the word in it.
_THINKS = re.compile(r"[<\[](?!\S*(?:/|end))[^\s<>\[\]]*(?:think|reason)[^\s<>\[\]]*[>\]]\s*\Z", re.IGNORECASE)


# Prompts that are looked at for what all have in common.
_LOOKED_AT = 8


class Cautions:
    """Warns of what is unusual about a run's questions and prompts, and keeps it for the results."""

    def __init__(self, read: Sequence[TaskQuestions], system_instruction: str | None, *, log_samples: bool) -> None:
        columns = columns_without_json(read)
        self.details: dict[str, Any] = {"columns_without_json": columns}
        self._sentences: list[str] = []
        self._warn(typed_line_breaks({"system_instruction": system_instruction}))
        self._warn(repeated_examples(read))
        if log_samples:
            self._warn(about_columns(columns))

    def add_prompts(self, requests: Requests | None, asked: Sequence[QuestionSet], model: ReadsTokens) -> None:
        """Adds what the prompts are as a model's tokens; nothing if its server makes those."""
        if requests is None:
            return
        if model.tokenizer is not None:
            self._warn(ended_prompts(requests, model.tokenizer))
        self._warn(overlong_prompts(requests, model.max_length))
        self.details["truncated"], sentences = cut_prompts(requests, asked)
        self._warn(sentences)
        self.details["joined_choices"], sentences = joined_choices(requests)
        self._warn(sentences)

    def add_chat(self, task: str, chat: ChatPrompts) -> None:
        """Adds how the chat template took a task's prompts; once, if they are asked in several orders."""
        sentences = [f"{task}: {sentence}" for sentence in about_chat(chat)]
        self._warn([sentence for sentence in sentences if sentence not in self._sentences])

    def added_to(self, details: dict[str, Any]) -> dict[str, Any]:
        """A run's details with these, its own warnings first."""
        return details | self.details | {"warnings": [*details["warnings"], *self._sentences]}

    def _warn(self, sentences: Sequence[str]) -> None:
        self._sentences += sentences
        for sentence in sentences:
            warnings.warn(sentence, WmdpFastWarning, stacklevel=4)


def repeated_examples(read: Sequence[TaskQuestions]) -> list[str]:
    """A sentence for each task that asks a question which stands with its answer among its own few-shot examples."""
    sentences = []
    for one in read:
        if one.fewshot is None or not one.task.num_fewshot:
            continue
        shared = one.questions.shared_with(one.fewshot.head(one.task.num_fewshot))
        if shared:
            sentences.append(
                f"{one.task.name}: {_count(len(shared), 'question')} of {len(one.questions)} also"
                f" {'is a few-shot example' if len(shared) == 1 else 'are few-shot examples'}, so that the"
                f" prompt gives the answer away; the first is row {shared[0] + 1} of {one.questions.file}"
            )
    return sentences


def columns_without_json(read: Sequence[TaskQuestions]) -> dict[str, dict[str, str]]:
    """For each task with such columns, those whose values JSON has no form for, and what they hold."""
    return {one.task.name: columns for one in read if (columns := one.questions.foreign_columns)}


def about_columns(columns: dict[str, dict[str, str]]) -> list[str]:
    """A sentence for each task about what its samples file cannot show."""
    return [
        f"{name}: {', '.join(f'the column {column} holds {what}' for column, what in found.items())}; samples show it"
        " as null or as text, so that their doc_hash may not be lm-eval's"
        for name, found in columns.items()
    ]


def about_chat(chat: ChatPrompts) -> list[str]:
    """A sentence for each way in which a chat template did not take the prompts as they are."""
    sentences = []
    if chat.without_system:
        sentences.append("the chat template refuses a system message, so the description was left out, as in lm-eval")
    if chat.in_parts:
        sentences.append(
            "the chat template drops a content that is plain text, and with it the question; it was given lists of"
            " parts, which lm-eval does not do: its numbers are those of prompts without a question"
        )
    sentences += [f"the chat template leaves out the {what}, or changes the text" for what in chat.left_out]
    if chat.contexts and (opened := _THINKS.search(chat.contexts[0])) is not None:
        sentences.append(
            f"the chat template ends prompts in {opened[0].strip()}, so that answers are scored where the model would"
            " begin to think, as in lm-eval: a low accuracy does not say that it does not know; ask without the"
            " template, or with one that ends its thinking"
        )
    return sentences


def cut_prompts(requests: Requests, asked: Sequence[QuestionSet]) -> tuple[dict[str, Any], list[str]]:
    """How much of the prompts the model cannot read, as lm-eval warns of it.

    Args:
        requests: The tokens of a run.
        asked: The questions of each of its tasks.

    Returns:
        The key `truncated` of the results, and a sentence if something is cut.
    """
    questions, choices, most, worst = requests.truncation()
    details: dict[str, Any] = {"questions": questions, "choices": choices, "most_tokens_lost": most}
    if not questions:
        return details, []
    ends = list(accumulate(map(len, asked)))
    place = bisect_right(ends, worst)
    row = worst - (ends[place - 1] if place else 0) + 1
    details["worst"] = f"{asked[place].file}, row {row}"
    return details, [
        f"{questions} of {_count(requests.num_questions, 'prompt')} {'is' if questions == 1 else 'are'} longer than the"
        f" {requests.max_length} tokens that the model reads at once, and cut off at the beginning, as in lm-eval:"
        f" at most {_count(most, 'token')} ({details['worst']})"
    ]


def overlong_prompts(requests: Requests, own: int | None) -> list[str]:
    """A sentence if prompts are longer than a model's own maximum of tokens, which `max_length` may let through."""
    first = requests.padded_batch(0, 1)
    longest = 0 if first is None else int(first.lengths[0])
    if own is None or longest <= own:
        return []
    return [
        f"prompts have up to {longest} tokens, and the model reads {own} at once: max_length ({requests.max_length})"
        " lets them through, but the model may not have been trained for so many, or fail at them"
    ]


def ended_prompts(requests: Requests, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A sentence if prompts end in a token that ends texts, as some tokenizers put EOS behind every text."""
    special = tokenizer.special_tokens_map
    ends = {tokenizer.convert_tokens_to_ids(special[name]) for name in ("eos_token", "sep_token") if name in special}
    last = [requests.context(one).tolist()[1:][-1:] for one in range(min(requests.num_questions, _LOOKED_AT))]
    if not last or not all(one and one[0] in ends for one in last):
        return []
    named = tokenizer.convert_ids_to_tokens(last[0][0])
    return [
        f"prompts end in {named}, which the tokenizer puts behind every text: by lm-eval's rule choices then lose their"
        f" first token, and what is scored is what follows {named}, the same for all choices of one token; take it out"
        " of the tokenizer (add_eos_token, or the post-processor in tokenizer.json)"
    ]


def joined_choices(requests: Requests) -> tuple[dict[str, Any], list[str]]:
    """Choices that begin inside a token of their prompt, so that only their rest is scored.

    Returns:
        The key `joined_choices` of the results, and a sentence if there are any.
    """
    count = requests.joined_choices
    details = {"choices": count, "first": requests.first_joined}
    if not count:
        return details, []
    return details, [
        f"{count} of {_count(requests.num_choices, 'choice')} {'begins' if count == 1 else 'begin'} inside a token of"
        f" the prompt's end, so that only the rest is scored, as in lm-eval (first {requests.first_joined}); to score"
        " choices whole, end prompts in another way or put another delimiter between"
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
