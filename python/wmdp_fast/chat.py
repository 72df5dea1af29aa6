"""Prompts through a model's chat template, by lm-eval's rules.

The description (after the system instruction, if there is one) becomes the system message, every few-shot example a
user and an assistant turn, the question the last user turn; the template then opens the assistant's. A template that
refuses a system message is applied without it. The continuation follows without a delimiter. Checked against lm-eval
0.4.13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from wmdp_fast.exceptions import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

    Message = dict[str, str]


@dataclass(frozen=True)
class ChatPrompts:
    """Prompts rendered by a chat template.

    Attributes:
        contexts: One for each question: everything up to where the assistant's answer begins.
        delimiter: Text between a context and its continuation, which lm-eval makes empty here.
        without_system: Whether the template refused a system message, so that the description was left out.
    """

    contexts: list[str]
    delimiter: str
    without_system: bool


def system_text(system_instruction: str | None, description: str, delimiter: str = "\n\n") -> str:
    """The system instruction and the description as one text.

    lm-eval puts this before the prompt, chat template or not. The delimiter goes between the two only if neither has
    white space where they meet.

    Args:
        system_instruction: What the user wants said first, if anything.
        description: The task's description.
        delimiter: The task's delimiter of few-shot examples.
    """
    if not system_instruction or not description:
        return (system_instruction or "") + description
    touching = system_instruction[-1].isspace() or description[0].isspace()
    return system_instruction + ("" if touching else delimiter) + description


def chat_template_source(tokenizer: PreTrainedTokenizerBase, chat_template: bool | str = True) -> str:
    """The Jinja source of a tokenizer's chat template.

    Args:
        tokenizer: A tokenizer of transformers.
        chat_template: Name of the template where the tokenizer has several; True is its default.

    Raises:
        TemplateError: The tokenizer has no template, or none of that name.
    """
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise TemplateError(
            "the tokenizer has no chat template; leave --apply-chat-template out, or use the chat model's own"
        )
    if isinstance(templates, str):
        if isinstance(chat_template, str) and chat_template != "default":
            raise TemplateError(
                f"the tokenizer has one chat template without a name, and none called {chat_template!r}"
            )
        return templates
    name = chat_template if isinstance(chat_template, str) else "default"
    if name not in templates:
        raise TemplateError(
            f"the tokenizer has no chat template called {name!r}; its templates: {', '.join(sorted(templates))}"
        )
    source: str = templates[name]
    return source


def chat_contexts(
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[str],
    *,
    description: str = "",
    system_instruction: str | None = None,
    fewshot_turns: Sequence[tuple[str, str]] = (),
    fewshot_as_multiturn: bool = True,
    chat_template: bool | str = True,
    target_delimiter: str = " ",
    fewshot_delimiter: str = "\n\n",
) -> ChatPrompts:
    r"""Renders questions through a tokenizer's chat template.

    One deviation from lm-eval: it accepts the name of a template, records it with the results, and renders with the
    default one all the same. Here the template named is the one used.

    Args:
        tokenizer: A tokenizer of transformers that has a chat template.
        questions: The questions, each rendered without description, few-shot examples or answer.
        description: The task's description, newlines included.
        system_instruction: Text to say before the description.
        fewshot_turns: The few-shot examples, each the rendered question and its answer.
        fewshot_as_multiturn: Whether each few-shot example is two turns of its own. If not, they are put before the
            question, with the delimiters of a plain prompt.
        chat_template: Name of the template where the tokenizer has several; True is its default.
        target_delimiter: Text between question and answer of few-shot examples that are not turns.
        fewshot_delimiter: Text after few-shot examples that are not turns, and between instruction and description.

    Returns:
        One context for each question.

    Raises:
        TemplateError: The tokenizer has no such template, or the template fails.
    """
    from jinja2 import TemplateError as JinjaError

    source = chat_template_source(tokenizer, chat_template)
    text = system_text(system_instruction, description, fewshot_delimiter)
    system: list[Message] = [{"role": "system", "content": text}] if text else []
    turns: list[Message] = []
    prefix = ""
    if fewshot_as_multiturn:
        for question, answer in fewshot_turns:
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    else:
        prefix = "".join(question + target_delimiter + answer + fewshot_delimiter for question, answer in fewshot_turns)

    def render(messages: list[Message]) -> str:
        rendered = tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True, continue_final_message=False
        )
        return cast("str", rendered)  # what `tokenize=False` makes of one conversation

    contexts: list[str] = []
    without_system = False
    for question in questions:
        messages = [*turns, {"role": "user", "content": prefix + question}]
        try:
            try:
                contexts.append(render(system + messages))
            except JinjaError:
                # Templates refuse by raising; which message they refuse, they don't say.
                contexts.append(render(messages))
                without_system = without_system or bool(system)
        except JinjaError as error:
            raise TemplateError(f"the tokenizer's chat template fails: {error}") from error
    return ChatPrompts(contexts, delimiter="", without_system=without_system)
