"""What older versions of lm-eval made of the same tasks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.tasks.task import Group, Task


@dataclass(frozen=True)
class Compat:
    """What changed between versions of lm-eval and changes numbers.

    The texts are otherwise the same in all of them. Versions before 0.4.9 read MMLU from `hails/mmlu_no_train`, a copy
    of `cais/mmlu` without its training data; this package always reads `cais/mmlu`.

    Attributes:
        name: What the user says: `0.4.2`, `0.4.9` or `current`.
        keeps_trailing_newline: Whether a template's last newline survives rendering. It did not before 0.4.4 (lm-eval
            #2116), which leaves one newline instead of two after the description.
        bos: Which models get the tokenizer's special tokens. `tokenizer` leaves it to the tokenizer, as 0.4.9.2 and
            later do (#3347); `gemma` is all models of that name and no other, `gemma-1` only the first of them.
        has_chat_templates: Whether that version could apply a chat template at all.
    """

    name: str
    keeps_trailing_newline: bool
    bos: Literal["tokenizer", "gemma", "gemma-1"]
    has_chat_templates: bool

    def add_special_tokens(self, model_type: str) -> bool | None:
        """Whether prompts get special tokens (BOS), for a causal model of transformers' `model_type`.

        Returns:
            None to leave it to the tokenizer, else what to pass as `add_special_tokens`.
        """
        match self.bos:
            case "tokenizer":
                return None
            case "gemma":
                return "gemma" in model_type
            case "gemma-1":
                return model_type == "gemma"

    def task(self, task: Task) -> Task:
        """The task as this version had it."""
        if self.keeps_trailing_newline:
            return task
        return replace(
            task,
            description=_drop_newline(task.description),
            doc_to_text=_drop_newline(task.doc_to_text),
            version=task.version if task.dataset not in ("cais/wmdp", "cais/mmlu") else type(task.version)(0),
        )

    def group(self, group: Group) -> Group:
        """The group as this version had it. Groups had no versions before 0.4.4."""
        return group if self.keeps_trailing_newline else replace(group, version="N/A")


COMPATS: Mapping[str, Compat] = MappingProxyType(
    {
        compat.name: compat
        for compat in (
            Compat("0.4.2", keeps_trailing_newline=False, bos="gemma-1", has_chat_templates=False),
            Compat("0.4.9", keeps_trailing_newline=True, bos="gemma", has_chat_templates=True),
            Compat("current", keeps_trailing_newline=True, bos="tokenizer", has_chat_templates=True),
        )
    }
)


def _drop_newline(template: str) -> str:
    """Drops one trailing newline, as Jinja does without `keep_trailing_newline`."""
    return re.sub(r"(\r\n|\r|\n)\Z", "", template)
