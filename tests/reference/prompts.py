"""Prompts the slow way: jinja2 with lm-eval's settings, one question at a time."""

from __future__ import annotations

import re
from typing import Any

import jinja2

ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
ENVIRONMENT.filters["regex_replace"] = lambda text, pattern, by, count=0: re.sub(pattern, by, text, count=count)

QUESTION_SOURCE = "Question: {{question.strip()}}\nAnswer:"


def letters_source(num_choices: int) -> str:
    """MMLU's `doc_to_text`, for any number of choices."""
    lines = "".join(f"{chr(ord('A') + i)}. {{{{choices[{i}]}}}}\n" for i in range(num_choices))
    return "{{question.strip()}}\n" + lines + "Answer:"


def doc_to_text(doc: dict[str, Any], source: str) -> str:
    """lm-eval's `doc_to_text`, but for texts of digits only: lm-eval makes numbers of them and then stops."""
    if source == "mmlu":
        source = letters_source(len(doc["choices"]))
    elif source == "question":
        source = QUESTION_SOURCE
    text = ENVIRONMENT.from_string(source).render(**doc)
    if text.isdigit():
        raise ValueError(f"lm-eval takes {text} for the number of a choice")
    return text


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
