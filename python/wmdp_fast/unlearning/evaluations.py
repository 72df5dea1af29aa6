"""Accuracy on the way: the model in memory is asked, and what it answered is kept in lm-eval's format.

A run keeps its evaluations in folders of their own, `evaluations/step-0`, `evaluations/step-50` and so on; a sweep in
`evaluations/before` and a folder for each point. Each of them is what `wmdp-fast eval --output` would have written, so
`compare`, `show` and `report` take it.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import DivergedError, TaskError, WmdpFastWarning
from wmdp_fast.prompts.chat import chat_template_source
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.results.perplexity import METRICS
from wmdp_fast.scoring.opened import OpenedModel
from wmdp_fast.tasks import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.tasks.resolve import Selection
    from wmdp_fast.unlearning.source import Source
    from wmdp_fast.unlearning.stopping import Condition

# The parameters of `evaluate` that say what is asked and how.
_OF_PROMPTS = tuple(one.name for one in dataclasses.fields(PromptOptions) if one.name != "tasks")


def check_tasks(
    names: Sequence[str], options: Mapping[str, Any], conditions: Sequence[Condition] = (), texts: Sequence[Text] = ()
) -> Selection:
    """Finds and reads all questions, and makes sure that conditions speak of what will be measured.

    Args:
        names: Tasks, groups and question files.
        options: Further options of `wmdp_fast.evaluate`.
        conditions: What a run is to end at, or to keep.
        texts: What perplexity is measured on.

    Raises:
        TaskError: A task is unknown, a text has its name, an option does not apply, or a condition speaks of
            something else.
        TemplateError: A template does not compile, or fails on its first question.
        DataUnavailableError, DatasetError, FileNotFoundError, ValueError: As `evaluate` does.
    """
    prompting = PromptOptions(tasks=list(names), **{name: options[name] for name in _OF_PROMPTS if name in options})
    with warnings.catch_warnings():
        # The first evaluation gives them.
        warnings.simplefilter("ignore", WmdpFastWarning)
        selection = prompting.select(has_text=bool(texts))
        prompting.read(selection)
    measured = {task.name: task.metrics for task in selection.tasks}
    measured |= {group.name: group.metrics for group in selection.groups}
    read_texts(texts, taken=measured)
    measured |= {text.name: tuple(METRICS) for text in texts}
    for condition in conditions:
        condition.check(measured)
    return selection


def check_chat_template(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
    """Raises TemplateError if the questions are to go through a chat template that the tokenizer does not have."""
    if wanted := options.get("apply_chat_template"):
        chat_template_source(tokenizer, wanted)


def measure(
    source: Source,
    names: Sequence[str],
    options: Mapping[str, Any],
    *,
    steps: int,
    folder: Path | None,
    samples: bool,
    texts: Sequence[Text] = (),
    progress: bool = False,
) -> EvalResult:
    """Scores the whole model as it is now; where layers are not in memory, they are read when they are run.

    Processes that hold a model together all score it, and must all call this.

    Args:
        source: The model and its tokenizer.
        names: Tasks, groups and question files.
        options: Further options of `wmdp_fast.evaluate`.
        steps: How many steps the model has been trained.
        folder: Where to keep the results; what is there is replaced. None keeps nothing.
        samples: Whether to keep each question's scores too.
        texts: What perplexity is measured on.
        progress: Whether to show how far it is, if layers are to be read for it.

    Raises:
        DivergedError: It gives no numbers any more.
        ModelError: It could not be scored before the first step either; or memory has run out, or a file that is read
            for it is damaged.
        OSError: The results cannot be written.
        ValueError: There is no whole model or no tokenizer.
    """
    from wmdp_fast.evaluation import evaluate
    from wmdp_fast.models.attention.packed import NotPackableError
    from wmdp_fast.models.load import wrap_model, wrap_streamed
    from wmdp_fast.scoring.scores import NumbersError

    model: Any = source.whole
    if source.streamed is not None and source.tokenizer is not None:
        # There it is needed more, and what is missing afterwards is computed again.
        source.held.clear()
        model = OpenedModel(wrap_streamed(source.streamed, source.tokenizer, name=source.name))
    elif source.shared is not None and source.whole is not None and source.tokenizer is not None:
        held = wrap_model(source.whole, source.tokenizer, name=source.name)
        model = OpenedModel(dataclasses.replace(held, parallel="fsdp"))
    if model is None or source.tokenizer is None:
        raise ValueError("evaluating needs the whole model and its tokenizer; pass tokenizer=...")
    try:
        with _without(source.said):
            result: EvalResult = evaluate(
                model,
                tokenizer=source.tokenizer,
                tasks=list(names),
                text=list(texts),
                progress=progress and source.streamed is not None,
                **options,
            )
    except (NotPackableError, NumbersError) as error:
        if not steps:
            raise
        # Before the first step it could be scored.
        raise DivergedError(
            f"after step {steps} the model cannot be scored any more ({error}); lower the learning rate", steps
        ) from error
    source.said.update([*result.details["warnings"], *result.letter_notes()])
    if steps:
        result = dataclasses.replace(result, model_name=f"{source.name} after step {steps}")
    if folder is not None:
        if folder.exists():
            shutil.rmtree(folder)  # of a run that was stopped before it could say that it had come so far
        result.save(folder / "results.json", log_samples=samples)
    return result


@contextmanager
def _without(said: Iterable[str]) -> Iterator[None]:
    """Inside, warnings that were given before are not repeated."""
    with warnings.catch_warnings():
        for text in said:
            warnings.filterwarnings("ignore", message=re.escape(text), category=WmdpFastWarning)
        yield


def tasks_of(names: Sequence[str], selection: Selection) -> list[str]:
    """Names of the tasks, among all that are asked, that some of the user's names stand for.

    Raises:
        TaskError: None is left, because of the subjects that were chosen.
    """
    meant = {task.name for task in resolve.resolve(names).tasks}
    found = [task.name for task in selection.tasks if task.name in meant]
    if not found:
        raise TaskError(f"no task of {', '.join(names)} is left with these subjects")
    return found
