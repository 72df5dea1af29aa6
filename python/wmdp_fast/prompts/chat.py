"""Prompts through a model's chat template, by lm-eval's rules.

The description (after the system instruction, if there is one) becomes the system message, every few-shot example a
user and an assistant turn, the question the last user turn; the template then opens the assistant's. A template that
refuses a system message is applied without it. The continuation follows without a delimiter. Checked against lm-eval
0.4.13.

One deviation: a template that takes a message's content to be a list of parts, as those of models that also read images
do, makes nothing of the text that lm-eval gives it, and the model would be asked without the question. It is given
parts here, and a template that leaves the question out all the same is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from wmdp_fast.exceptions import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

    Message = dict[str, str | list[dict[str, str]]]


@dataclass(frozen=True)
class ChatPrompts:
    """Prompts rendered by a chat template.

    Attributes:
        contexts: One for each question: everything up to where the assistant's answer begins.
        delimiter: Text between a context and its continuation, which lm-eval makes empty here.
        without_system: Whether the template refused a system message, so that the description was left out.
        in_parts: Whether the template was given each content as a list of parts, because it drops plain text.
        left_out: What the template leaves out of the first prompt: `examples`, `description`.
    """

    contexts: list[str]
    delimiter: str
    without_system: bool
    in_parts: bool = False
    left_out: tuple[str, ...] = ()


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
            "the tokenizer has no chat template; ask without one (leave --apply-chat-template out), or use the chat"
            " model's own"
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
        TemplateError: The tokenizer has no such template, or the template fails or leaves a question out.
    """
    source = chat_template_source(tokenizer, chat_template)
    text = system_text(system_instruction, description, fewshot_delimiter)
    system: list[Message] = [{"role": "system", "content": text}] if text else []
    turns: list[Message] = []
    prefix = ""
    if fewshot_as_multiturn:
        turns = _turns(fewshot_turns)
    else:
        prefix = "".join(question + target_delimiter + answer + fewshot_delimiter for question, answer in fewshot_turns)
    return _ask_each(tokenizer, source, system, turns, prefix, questions)


def _turns(fewshot_turns: Sequence[tuple[str, str]]) -> list[Message]:
    """Few-shot examples as turns of the user and the assistant."""
    return [
        {"role": role, "content": text}
        for example in fewshot_turns
        for role, text in zip(("user", "assistant"), example, strict=True)
    ]


def _ask_each(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    system: list[Message],
    turns: list[Message],
    prefix: str,
    questions: Iterable[str],
) -> ChatPrompts:
    """A conversation for each question, which differ in the last turn only: what stands before the question, and it."""
    contexts: list[str] = []
    without_system = in_parts = False
    left_out: tuple[str, ...] = ()
    for number, question in enumerate(questions, start=1):
        asked: Message = {"role": "user", "content": prefix + question}
        messages = [*turns, asked]
        context, refused = _rendered(tokenizer, source, system, messages, in_parts=in_parts)
        if not contexts and question.strip() not in context:
            in_parts = True
            context, refused = _rendered(tokenizer, source, system, messages, in_parts=in_parts)
        _refuse_without(question, context, f"question {number}", in_parts=in_parts)
        if not contexts:
            left_out = _left_out(context, [] if refused else system, turns)
        contexts.append(context)
        without_system = without_system or refused
    return ChatPrompts(contexts, "", without_system, in_parts, left_out)


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[tuple[str, str]], *, chat_template: bool | str = True
) -> ChatPrompts:
    """Renders one conversation of any roles through a tokenizer's chat template.

    Args:
        tokenizer: A tokenizer of transformers that has a chat template.
        messages: The role and the text of each message; the last one is what the model is asked.
        chat_template: Name of the template where the tokenizer has several; True is its default.

    Returns:
        One context.

    Raises:
        TemplateError: The tokenizer has no such template, or the template fails or leaves the last message out.
    """
    source = chat_template_source(tokenizer, chat_template)
    turns: list[Message] = [{"role": role, "content": text} for role, text in messages]
    asked = messages[-1][1]
    context, _ = _rendered(tokenizer, source, [], turns, in_parts=False)
    if in_parts := asked.strip() not in context:
        context, _ = _rendered(tokenizer, source, [], turns, in_parts=True)
    _refuse_without(asked, context, "the last message", in_parts=in_parts)
    system = [turn for turn in turns[:-1] if turn["role"] == "system"]
    others = [turn for turn in turns[:-1] if turn["role"] != "system"]
    return ChatPrompts(
        [context], "", without_system=False, in_parts=in_parts, left_out=_left_out(context, system, others)
    )


def _refuse_without(asked: str, context: str, what: str, *, in_parts: bool) -> None:
    """Raises TemplateError if a prompt lacks the text that the model is asked."""
    # A template that takes texts after all would print the list of parts as Python shows it.
    if asked.strip() not in context or (in_parts and _shows_parts(context, asked)):
        raise TemplateError(
            f"the tokenizer's chat template leaves out the text of {what}, or changes it, so that the model would be"
            " asked something else; ask without one (leave --apply-chat-template out), or use another template"
        )


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    system: list[Message],
    messages: list[Message],
    *,
    in_parts: bool,
) -> tuple[str, bool]:
    """A conversation as the template writes it, and whether the template refused the system message.

    Raises:
        TemplateError: The template fails.
    """
    from jinja2 import TemplateError as JinjaError

    def render(conversation: list[Message]) -> str:
        if in_parts:
            conversation = [
                {"role": message["role"], "content": [{"type": "text", "text": str(message["content"])}]}
                for message in conversation
            ]
        rendered = tokenizer.apply_chat_template(
            cast("list[dict[str, str]]", conversation),  # parts too
            chat_template=source,
            tokenize=False,
            add_generation_prompt=True,
            continue_final_message=False,
        )
        return cast("str", rendered)  # what `tokenize=False` makes of one conversation

    try:
        try:
            return render(system + messages), False
        except JinjaError:
            # Templates refuse by raising; which message they refuse, they don't say.
            return render(messages), bool(system)
    except Exception as error:
        # A template may raise whatever Python does: a TypeError if it adds a text to what is none, for instance.
        kind = "" if isinstance(error, JinjaError) else f"{type(error).__name__}: "
        raise TemplateError(f"the tokenizer's chat template fails: {kind}{error}") from error


def _shows_parts(context: str, question: str) -> bool:
    """Whether a prompt has parts in it as Python or JSON writes them."""
    return any(form in context and form not in question for form in ("'type': 'text'", '"type": "text"'))


def _left_out(context: str, system: list[Message], turns: list[Message]) -> tuple[str, ...]:
    """What of the messages before the question is not to be found in a prompt."""
    missing = [
        name
        for name, messages in (("description", system), ("examples", turns))
        if any(str(message["content"]).strip() not in context for message in messages)
    ]
    return tuple(missing)
