"""The options that say what is asked of a task and how, for every command that scores a model.

They are parameters of `wmdp_fast.evaluate`. What is not given stays away: the defaults are those of `evaluate`.
"""

from __future__ import annotations

import argparse
from typing import Any

from wmdp_fast.cli.options import limit, whole_number
from wmdp_fast.cli.text_or_file import HINT, text_or_file

# The parameters of `wmdp_fast.evaluate` that these options set.
_ASKING = (
    "dataset_revision", "subjects", "limit", "num_fewshot", "fewshot_file", "template", "choices", "description",
    "lm_eval_compat", "apply_chat_template", "system_instruction", "fewshot_as_multiturn",
)  # fmt: skip


def add_selection(group: argparse._ArgumentGroup) -> None:
    """Adds the options that say which questions and examples are taken."""
    group.add_argument(
        "--dataset-revision",
        metavar="REV",
        help="commit, branch or tag of the dataset, in place of the pinned commit; of several, DATASET=REV,...",
    )
    group.add_argument("--subjects", metavar="NAMES", help="only these MMLU subjects, separated by commas")
    group.add_argument(
        "--limit", type=limit, metavar="N", help="only the first N questions of a task; values below 1 are a fraction"
    )
    group.add_argument(
        "--num-fewshot", type=whole_number(least=0), metavar="N", help="examples before each question (default 0)"
    )
    group.add_argument(
        "--few-shot-file",
        dest="fewshot_file",
        metavar="FILE",
        help="for question files: the file with the examples, in place of NAME_dev beside each",
    )


def add_wording(group: argparse._ArgumentGroup) -> None:
    """Adds the options that say how a question is put into words."""
    group.add_argument(
        "--template",
        type=text_or_file,
        metavar="T",
        help=f"for question files: `mmlu`, the name of another task, or a Jinja template; {HINT}",
    )
    group.add_argument(
        "--choices",
        choices=("letters", "texts"),
        help="for question files: score the choice letters or the full choice texts",
    )
    group.add_argument(
        "--description",
        type=text_or_file,
        metavar="TEXT",
        help=f"for question files: text before every prompt; {HINT}",
    )
    group.add_argument(
        "--lm-eval-compat",
        choices=("0.4.2", "0.4.9", "current"),
        help="lm-eval version whose prompts to reproduce (default current)",
    )
    group.add_argument(
        "--apply-chat-template",
        nargs="?",
        const=True,
        metavar="NAME",
        help="put prompts into the tokenizer's chat template; NAME picks one of several",
    )
    group.add_argument(
        "--system-instruction", type=text_or_file, metavar="TEXT", help=f"text before the task's description; {HINT}"
    )
    group.add_argument(
        "--fewshot-as-multiturn",
        action=argparse.BooleanOptionalAction,
        help="examples as turns of a chat (default with a chat template)",
    )


def asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that were given, by the names that `wmdp_fast.evaluate` has for them."""
    given = vars(arguments)
    return {name: given[name] for name in _ASKING if name in given}
