"""What a run's numbers depend on, as far as that is known before a model is loaded, and results of the same run."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import DatasetError, WmdpFastWarning
from wmdp_fast.results.checks import read_results_file
from wmdp_fast.results.paths import results_under, samples_file
from wmdp_fast.results.saved import read_results
from wmdp_fast.runtime import environment
from wmdp_fast.tasks.task import DOC_TO_TEXT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from wmdp_fast._rust import QuestionSet
    from wmdp_fast.prompts.options import PromptOptions
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.scoring.backend import ScoreOptions
    from wmdp_fast.tasks.task import Group

# Where a results file has it, in `wmdp_fast`.
KEY = "run"

# Where it has what the run's journals are known by.
JOURNALS = "journals"

# Facts that are hashes, which tell a reader nothing.
_HASHED = frozenset({"model files", "tokenizer files", "questions and how they are asked", "texts"})

# Versions that numbers may depend on.
_PACKAGES = ("wmdp_fast", "torch", "transformers", "peft")


def asked_facts(
    prompting: PromptOptions,
    scoring: ScoreOptions,
    read: Sequence[TaskQuestions],
    groups: Sequence[Group],
    texts: Sequence[Text],
) -> dict[str, Any]:
    """What is asked and how it is scored, as JSON has it, by the names that messages give it.

    Questions count by what they say, wherever they lie; how they are asked, by the tasks' definitions.

    Args:
        prompting: The options.
        scoring: How models are scored.
        read: The tasks with their questions, after `limit`.
        groups: The groups that results are pooled over.
        texts: The texts, after `limit`.
    """
    versions = environment.versions()
    questions = hashlib.sha256()
    for one in read:
        # Where files lie is no matter.
        questions.update(
            repr(replace(one.task, dataset="", test_files=(), fewshot_files=())).encode("utf-8", "surrogatepass")
        )
        for asked in (one.questions, one.fewshot if one.task.num_fewshot else None):
            own = one.task.doc_to_text not in DOC_TO_TEXT
            questions.update(_content(asked, has_own_template=own).encode("utf-8", "surrogatepass"))
    questions.update(repr(list(groups)).encode())
    return {
        "limit": prompting.limit,
        "questions and how they are asked": questions.hexdigest()[:16],
        "texts": {text.name: text.content_hash[:16] for text in texts},
        "permute_choices": prompting.permute_choices,
        "lm_eval_compat": prompting.lm_eval_compat,
        "system instruction": prompting.system_instruction,
        "chat template": prompting.apply_chat_template,
        "examples as turns": prompting.multiturn,
        "max length": prompting.max_length,
        "score mode": scoring.score_mode,
        "engine": scoring.engine,
        "token budget": scoring.token_budget,
        "versions": {name: versions.get(name) for name in _PACKAGES},
    }


def finished_run(
    output: str | PathLike[str], model_name: str, facts: Mapping[str, Any], *, log_samples: bool
) -> SavedResults | None:
    """The newest results of a run with the same facts, read back.

    Args:
        output: What the run's `output` is.
        model_name: What results call the model.
        facts: What its results file would say under `KEY`.
        log_samples: Whether its questions must be there too.

    Returns:
        None if there are none.

    Warns:
        WmdpFastWarning: There are results, but of something else, which is named; or some that cannot be read.
    """
    others: list[str] = []
    for file in reversed(results_under(output, model_name)):
        try:
            raw = read_results_file(file)
            then = (raw.get("wmdp_fast") or {}).get(KEY)
            if not isinstance(then, dict):
                others.append(f"{file.name} does not say what it depends on")
            elif differs := _differences(then, facts):
                others.append(f"{file.name} is of another run: {'; '.join(differs)}")
            elif log_samples and (missing := _without_samples(file, raw)):
                others.append(f"{file.name} has no samples of {', '.join(missing)}")
            else:
                return read_results(file)
        except DatasetError as error:
            others.append(f"{file.name} cannot be read ({error})")
    if others:
        _warn_of(others[0], model_name)
    return None


def _warn_of(why: str, model_name: str) -> None:
    warnings.warn(f"{model_name} is scored again: {why}", WmdpFastWarning, stacklevel=4)


def _content(questions: QuestionSet | None, *, has_own_template: bool) -> str:
    """All of questions that a prompt may show."""
    if questions is None:
        return ""
    if not has_own_template:
        return questions.content_hash
    # A template of the user's may name any column.
    others = [(question.subject, question.extra) for question in questions]
    return questions.content_hash + json.dumps(others, sort_keys=True, default=str)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    now = json.loads(json.dumps(dict(now)))
    return [
        name if name in _HASHED else f"{name} (then {_short(then.get(name))}, now {_short(now.get(name))})"
        for name in dict.fromkeys([*now, *then])
        if then.get(name) != now.get(name)
    ]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_samples(file: Path, raw: Mapping[str, Any]) -> list[str]:
    """The tasks and texts whose samples do not lie beside a results file."""
    return [name for name in raw.get("configs") or {} if samples_file(file, name, raw) is None]
