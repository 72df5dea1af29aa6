"""Prompts the slow way: jinja2 with lm-eval's settings, one question at a time."""

from __future__ import annotations

from typing import Any

import jinja2

ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)

QUESTION_SOURCE = "Question: {{question.strip()}}\nAnswer:"


def letters_source(num_choices: int) -> str:
    """MMLU's `doc_to_text`, for any number of choices."""
    lines = "".join(f"{chr(ord('A') + i)}. {{{{choices[{i}]}}}}\n" for i in range(num_choices))
    return "{{question.strip()}}\n" + lines + "Answer:"


def doc_to_text(doc: dict[str, Any], source: str) -> str:
    if source == "mmlu":
        source = letters_source(len(doc["choices"]))
    elif source == "question":
        source = QUESTION_SOURCE
    return ENVIRONMENT.from_string(source).render(**doc)


def doc_to_choice(doc: dict[str, Any], choices: str) -> list[str]:
    if choices == "letters":
        return [chr(ord("A") + i) for i in range(len(doc["choices"]))]
    return list(doc["choices"])


def context(
    doc: dict[str, Any],
    *,
    source: str,
    choices: str,
    description: str = "",
    fewshot: list[dict[str, Any]] | None = None,
    target_delimiter: str = " ",
    fewshot_delimiter: str = "\n\n",
) -> str:
    """Description, answered examples, question: lm-eval's `fewshot_context` without a chat template."""
    text = description
    for example in fewshot or []:
        answer = doc_to_choice(example, choices)[example["answer"]]
        text += doc_to_text(example, source) + target_delimiter + answer + fewshot_delimiter
    return text + doc_to_text(doc, source)
