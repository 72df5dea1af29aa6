"""A task and a group of tasks, as lm-eval defines them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path


Choices = Literal["letters", "texts"]


# The prompt templates that have a name, as lm-eval's `doc_to_text` writes them. Rendering is done in Rust, which knows
# them by name; the sources are what lm-eval's `configs` section shows.
DOC_TO_TEXT: Mapping[str, str] = MappingProxyType(
    {
        "mmlu": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\n"
        "Answer:",
        "question": "Question: {{question.strip()}}\nAnswer:",
    }
)


# The prompt `mmlu` for any number of choices; the definition above is lm-eval's and has four.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


_ANY_NUMBER = (
    "{{question.strip()}}\n{% for choice in choices %}{{'"
    + _LETTERS
    + "'[loop.index0]}}. {{choice}}\n{% endfor %}Answer:"
)


# What lm-eval computes for a multiple-choice task whose definition names no metrics.
DEFAULT_METRICS = ("acc", "acc_norm")


@dataclass(frozen=True)
class Task:
    """One set of questions and how to ask them.

    Attributes:
        name: Its name in results, lm-eval's where lm-eval has the task.
        alias: The shorter name shown in tables.
        dataset: Repository on the Hugging Face hub (`cais/wmdp`), or the path of a local file or folder as it was
            given.
        config: The dataset's configuration (`wmdp-bio`, `astronomy`), or None if it has only one.
        test_split: Name of the split that holds the questions.
        fewshot_split: Name of the split that few-shot examples are taken from, in its order, or None.
        revision: Pinned commit of the dataset, or None for the newest (the one used is recorded with the results).
        subject: MMLU subject, which `subjects` selects by, or None.
        description: Text before everything else, newlines included.
        doc_to_text: `mmlu` (question, lettered choices, `Answer:`), `question` (no choices shown), or the source of a
            Jinja template as in lm-eval's `doc_to_text`.
        choices: What continues the prompt: the `letters` or the choices' `texts`.
        doc_to_target: lm-eval's spelling of where the answer is; shown in its `configs` section, without effect here.
        target_delimiter: Text between a prompt and its answer.
        fewshot_delimiter: Text after each few-shot example.
        num_fewshot: Number of few-shot examples. None leaves it to the caller; 0 in a definition refuses any other
            number.
        metrics: Names of the metrics, in lm-eval's order.
        version: Version of the definition, as lm-eval counts it.
        test_files: Question files of a local task; empty for a dataset on the hub.
        fewshot_files: Few-shot files of a local task.
    """

    name: str
    alias: str
    dataset: str
    config: str | None
    test_split: str = "test"
    fewshot_split: str | None = None
    revision: str | None = None
    subject: str | None = None
    description: str = ""
    doc_to_text: str = "mmlu"
    choices: Choices = "letters"
    doc_to_target: str = "answer"
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    num_fewshot: int | None = None
    metrics: tuple[str, ...] = ("acc",)
    version: float = 1
    test_files: tuple[Path, ...] = ()
    fewshot_files: tuple[Path, ...] = ()
    # What a plain file of the task may end in, for messages.
    extensions: ClassVar[str] = ".csv (or .json, .jsonl, .parquet, also with .gz or .zst behind)"

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """For each metric, whether a higher value is better; it always is."""
        return dict.fromkeys(self.metrics, True)

    def lm_eval_config(self, num_choices: Collection[int] | None = None) -> dict[str, Any]:
        """The task as lm-eval writes it under `configs`: the same keys in the same order, what is unset left out.

        Args:
            num_choices: The numbers of choices that its questions have. None is four for a dataset on the hub, as all
                that are defined here have, and any number for a local file.
        """
        sizes = set(num_choices or (() if self.test_files else (4,)))
        doc_to_text = DOC_TO_TEXT.get(self.doc_to_text, self.doc_to_text)
        if self.doc_to_text == "mmlu" and sizes != {4}:
            doc_to_text = _ANY_NUMBER
        doc_to_choice: str | list[str] = "{{choices}}"
        if self.choices == "letters":
            same = len(sizes) == 1
            doc_to_choice = list(_LETTERS[: max(sizes)]) if same else f"{{{{'{_LETTERS}'[:choices|length]|list}}}}"
        metric_list = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in self.metrics]
        config = {
            "task": self.name,
            "task_alias": self.alias if self.alias != self.name else None,
            "dataset_path": self.dataset,
            "dataset_name": self.config,
            "test_split": self.test_split,
            "fewshot_split": self.fewshot_split,
            "doc_to_text": doc_to_text,
            "doc_to_target": self.doc_to_target,
            "unsafe_code": False,
            "doc_to_choice": doc_to_choice,
            "description": self.description,
            "target_delimiter": self.target_delimiter,
            "fewshot_delimiter": self.fewshot_delimiter,
            "fewshot_config": {
                "sampler": "first_n" if self.fewshot_split else "default",
                "split": self.fewshot_split,
                "process_docs": None,
                "fewshot_indices": None,
                "samples": None,
                "doc_to_text": doc_to_text,
                "doc_to_choice": doc_to_choice,
                "doc_to_target": self.doc_to_target,
                "gen_prefix": None,
                "fewshot_delimiter": self.fewshot_delimiter,
                "target_delimiter": self.target_delimiter,
            },
            "num_fewshot": self.num_fewshot,
            "metric_list": metric_list if self.metrics != DEFAULT_METRICS else None,
            "output_type": "multiple_choice",
            "repeats": 1,
            "should_decontaminate": False,
            "metadata": {"version": self.version, "config_source": "wmdp_fast"},
        }
        return {key: value for key, value in config.items() if value is not None}


@dataclass(frozen=True)
class Group:
    """Tasks, or groups of them, whose metrics are averaged over all questions (lm-eval's `weight_by_size`).

    Attributes:
        name: Its name in results.
        alias: The name shown in tables.
        children: Names of the groups and tasks directly below, in lm-eval's order.
        metrics: The metrics that are averaged.
        version: Version of the definition as lm-eval prints it, `N/A` where it has none.
    """

    name: str
    alias: str
    children: tuple[str, ...]
    metrics: tuple[str, ...] = ("acc",)
    version: str = "1"
