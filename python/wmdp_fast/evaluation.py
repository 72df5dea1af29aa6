"""Evaluation from task names to results: the one function that ties the parts together."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast._rust import OrderAnswers, aggregate
from wmdp_fast.asking import Asking, Cautions, Encoder, check_counts
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.prompts.chat import chat_template_source
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.results.lm_eval_files import tokenizer_info
from wmdp_fast.results.near_tie import near_tie_of
from wmdp_fast.results.paths import output_folder
from wmdp_fast.results.provenance import model_type, run_config, run_details, run_identity
from wmdp_fast.results.result import EvalResult, GroupResult, TaskResult
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.runtime.progress import progress_bar
from wmdp_fast.scoring.journal import Journal
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.results.perplexity import TextResult
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores
    from wmdp_fast.scoring.served import ServedModel
    from wmdp_fast.scoring.trie import Engine
    from wmdp_fast.tasks.task import Choices
    from wmdp_fast.text_run import TextRun


def evaluate(
    model: str | PathLike[str] | PreTrainedModel | Server,
    *,
    tasks: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    text: str | PathLike[str] | Sequence[str | PathLike[str] | Text] | Mapping[str, Sequence[str]] = (),
    text_field: str = "text",
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None = None,
    data: str | PathLike[str] | None = None,
    revision: str | None = None,
    dataset_revision: str | Mapping[str, str] | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    subjects: str | Sequence[str] | None = None,
    template: str | None = None,
    choices: Choices | None = None,
    description: str | None = None,
    fewshot_file: str | PathLike[str] | None = None,
    permute_choices: Literal["cyclic", "all"] | None = None,
    lm_eval_compat: str = "current",
    apply_chat_template: bool | str = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool | None = None,
    score_mode: ScoreMode = "float32",
    engine: Engine = "auto",
    token_budget: int | Literal["auto"] = "auto",
    dtype: str = "auto",
    device: str = "auto",
    peft: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
    max_length: int | None = None,
    output: str | PathLike[str] | None = None,
    log_samples: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> EvalResult:
    """Scores a model on multiple-choice tasks and on texts by log-likelihood, with lm-eval's prompts and numbers.

    A text's numbers are perplexities by word, byte and token, those of lm-eval's `loglikelihood_rolling`: each document
    is read as it stands, a long one in windows of as many tokens as the model reads at once.

    Args:
        model: A folder or a name on the Hugging Face hub; a model already in memory (used as it is and left as it was;
            it needs `tokenizer`); or a `Server` that serves one.
        tasks: Names of tasks and groups (`wmdp`, `mmlu_virology`) and paths of question files; commas separate several.
        text: Held-out texts: .jsonl, .parquet or .txt files (also with .gz or .zst behind) or folders of such, each a
            text named after it; or a mapping from names to lists of documents.
        text_field: Key or column of those files that holds a document.
        tokenizer: The tokenizer, a folder with it or its name on the hub, if it is not the model folder's own. With
            one, a served model is sent tokens; without, text.
        data: Folder with the datasets, in place of the hub.
        revision: Commit, branch or tag of the model on the hub.
        dataset_revision: The same for the dataset, in place of the pinned commit; a mapping gives one for each dataset.
        num_fewshot: Few-shot examples before each question; None is 0. WMDP is 0-shot by definition.
        limit: Only the first questions of each task and documents of each text: a number of them, or, below 1, a share.
        subjects: Only these MMLU subjects.
        template: How to ask the questions of files given by path: a task's name or a Jinja template.
        choices: Whether those are answered with `"letters"` or `"texts"`.
        description: Text before the prompts of files given by path, without Jinja.
        fewshot_file: Question file that holds the few-shot examples for files given by path; without it those of
            `x.jsonl` are in `x_dev.jsonl` beside it.
        permute_choices: Whether to ask every question again with its choices in other orders: `cyclic` puts each choice
            once in each place, `all` is every order of at most 4 choices. Examples stay as they are, and so do the
            metrics: what the order does is reported beside them. Only for tasks that are answered with letters.
        lm_eval_compat: The lm-eval version whose prompts to reproduce: `0.4.2`, `0.4.9` or `current`.
        apply_chat_template: Whether to put prompts in the tokenizer's chat template; the name of one if it has several.
        system_instruction: Text before the task's description.
        fewshot_as_multiturn: Whether few-shot examples are turns of the chat; they are if a chat template is applied.
        score_mode: `float32`, or `model` to round log-probabilities to the model's dtype as lm-eval does.
        engine: `trie` runs what inputs have in common once, or fails if the model cannot; `padded` runs each input as
            a row of its own; `auto` is by trie if a trial on the first questions gives the numbers of padded rows.
        token_budget: Most tokens in a batch, or `auto`.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        peft: A PEFT adapter to put on the model.
        trust_remote_code: Whether code that comes with the model may run.
        allow_missing: Whether to go on if the checkpoint lacks weights, with random ones; results say so.
        max_length: Most tokens the model may read at once, in place of its own limit.
        output: Folder or `.json` name to save results under, by lm-eval's rules. Scores of a model that is loaded from
            files or served are kept there as the run goes on, so that one that was stopped loses nothing.
        log_samples: Whether to save every question with its prompt and scores too; needs `output`.
        resume: Whether to go on from where the same evaluation with the same `output` was stopped, if it was.
        progress: Whether to show a progress bar on stderr.

    Warns:
        WmdpFastWarning: An option was ignored, or a fallback was taken.

    Returns:
        Numbers by task and group; `print` shows them as a table.

    Raises:
        TaskError: A task, subject, template or version is unknown, or an option does not apply.
        DataUnavailableError: Questions are missing, gated or out of reach.
        DatasetError: A question or text file is faulty.
        JournalError: What an unfinished run has left in `output` is of another run or damaged, or would be lost.
        ModelError: The model cannot be loaded or scored, or its server cannot be reached or does not do what is needed.
        TemplateError: A prompt or chat template fails.
        TokenizerError: A prompt cannot be tokenized.
        ValueError: An option has an impossible value.
    """
    if output is None and (log_samples or resume):
        raise ValueError(f"{'log_samples' if log_samples else 'resume'} needs an output folder")
    if resume and not isinstance(model, (str, os.PathLike, Server)):
        raise ValueError("resume is for models on disk: whether a model in memory is the same as before, nobody knows")
    check_counts(max_length=max_length, token_budget=None if token_budget == "auto" else token_budget)
    if isinstance(model, Server):
        _refuse_for_server(
            revision=revision is not None,
            dtype=dtype != "auto",
            device=device != "auto",
            peft=peft is not None,
            trust_remote_code=trust_remote_code,
            allow_missing=allow_missing,
            engine=engine != "auto",
            token_budget=token_budget != "auto",
            score_mode=score_mode != "float32",
            text=bool(text),
        )
    started, clock = time.time(), PhaseClock()

    # Everything cheap first: a misspelt task should not cost the loading of a model.
    if output is not None:
        check_folder(output_folder(output, _called(model)))
    asking = Asking(
        tasks=tasks,
        data=data,
        dataset_revision=dataset_revision,
        num_fewshot=num_fewshot,
        limit=limit,
        subjects=subjects,
        template=template,
        choices=choices,
        description=description,
        fewshot_file=fewshot_file,
        permute_choices=permute_choices,
        lm_eval_compat=lm_eval_compat,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn,
        max_length=max_length,
    )
    selection = asking.select(has_text=bool(text))
    with clock("read"):
        read = asking.read(selection)
        taken = [*(task.name for task in selection.tasks), *(group.name for group in selection.groups)]
        texts = read_texts(text, field=text_field, limit=limit, taken=taken)
    about = Cautions(read, system_instruction, log_samples=log_samples)
    encoder = Encoder(selection)
    with clock("load"):
        loaded = _load(model, tokenizer, revision, dtype, device, peft, trust_remote_code, allow_missing, encoder.begin)
    others = asking.in_other_orders(read)
    with clock("render"):
        prompts = [asking.prompts(one, loaded.tokenizer, about) for one in (*read, *others)]
    with clock("tokenize"):
        requests = asking.requests(loaded, encoder, prompts)
        _refuse_unknown_tokens(loaded, requests, [*read, *others])
        text_run = _text_run(loaded, encoder, texts, max_length)
    about.add_prompts(requests, [one.questions for one in (*read, *others)])
    near_tie = near_tie_of(str(getattr(loaded, "dtype", "")))
    with contextlib.ExitStack() as kept:
        scoring = _Scoring(kept, loaded, engine, token_budget, score_mode, output, resume, progress, clock)
        results = {}
        if prompts:
            scores = scoring.tasks(prompts, requests)
            with clock("aggregate"):
                results = _aggregate(read, others, prompts, scores, near_tie, permute_choices)
        of_texts = scoring.texts(text_run)
        result = EvalResult(
            tasks=results,
            groups={
                group.name: GroupResult.from_tasks(group, [results[task.name] for task in selection.leaves(group)])
                for group in selection.groups
            },
            model_name=loaded.name,
            **run_config(loaded, tokenizer, dtype, revision, peft, token_budget, limit),
            timings=clock.seconds,
            num_tokens=sum(
                done.tokens_useful if asked is None else asked.num_tokens for asked, done, _ in scoring.done
            ),
            texts=of_texts,
            started=started,
            total_seconds=time.time() - started,
            score_mode=score_mode,
            near_tie=near_tie,
            choice_orders=permute_choices,
            tokenizer={}
            if scoring.done[-1][0] is None
            else tokenizer_info(loaded.tokenizer, max_length or loaded.max_length),
            system_instruction=system_instruction,
            chat_template=(
                chat_template_source(loaded.tokenizer, apply_chat_template)
                if apply_chat_template and loaded.tokenizer is not None
                else None
            ),
            fewshot_as_multiturn=asking.multiturn,
            details=about.added_to(run_details(selection, loaded, prompts, *scoring.done[0])),
        )
        for note in result.letter_notes():
            warnings.warn(note, WmdpFastWarning, stacklevel=2)
        if output is not None:
            result = replace(result, saved_to=result.save(output, log_samples=log_samples))
    return result


def _called(model: str | PathLike[str] | PreTrainedModel | Server) -> str:
    """What the results will call a model that is not loaded yet."""
    if isinstance(model, Server):
        return model.model
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    return getattr(model, "name_or_path", "") or type(model).__name__


def _refuse_for_server(**given: bool) -> None:
    """Raises if an option was given that only a model which is run here has."""
    if unfit := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(unfit)} cannot be chosen for a model that is served: that is up to the server")


def _load(
    model: str | PathLike[str] | PreTrainedModel | Server,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None,
    revision: str | None,
    dtype: str,
    device: str,
    peft: str | PathLike[str] | None,
    trust_remote_code: bool,
    allow_missing: bool,
    on_tokenizer: Callable[[PreTrainedTokenizerBase, str], object],
) -> LoadedModel | ServedModel:
    from wmdp_fast.models.load import load_model, load_tokenizer, wrap_model

    if isinstance(tokenizer, os.PathLike):
        tokenizer = os.fspath(tokenizer)
    if isinstance(model, Server):
        from wmdp_fast.scoring.served import connect

        return connect(model, tokenizer)
    if isinstance(model, (str, os.PathLike)):
        return load_model(
            os.fspath(model),
            tokenizer=tokenizer,
            revision=revision,
            dtype=dtype,
            device=device,
            peft=None if peft is None else os.fspath(peft),
            trust_remote_code=trust_remote_code,
            allow_missing=allow_missing,
            on_tokenizer=on_tokenizer,
        )
    if tokenizer is None:
        raise ValueError("a model in memory needs its tokenizer: evaluate(model, tokenizer=..., tasks=...)")
    given = {"revision": revision, "peft": peft, "dtype": dtype != "auto" or None, "device": device != "auto" or None}
    if unfit := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(unfit)} cannot be changed for a model that is already in memory")
    return wrap_model(model, load_tokenizer(tokenizer))


@contextlib.contextmanager
def _progress_bar(unit: str, what: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr over the inputs of a run; yields the function that sets how many are done, and of how many.

    How many there are depends on the engine: the trie does not count inputs that are the beginning of another one, and
    a server is asked by the question.
    """
    with progress_bar(what=what, unit=unit, shown=shown) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _text_run(
    loaded: LoadedModel | ServedModel, encoder: Encoder, texts: Sequence[Text], max_length: int | None
) -> TextRun | None:
    """The texts, ready to be read by a model that is run here; None if there are none."""
    if not texts:
        return None
    from wmdp_fast.scoring.served import ServedModel
    from wmdp_fast.text_run import TextRun

    if isinstance(loaded, ServedModel):
        raise TypeError("a served model reads no texts")
    found = encoder.get(loaded.tokenizer, loaded.prefix_token_id, model_type(loaded))
    return TextRun(loaded, found, texts, max_length)


def _refuse_unknown_tokens(
    loaded: LoadedModel | ServedModel, requests: Requests | None, read: Sequence[TaskQuestions]
) -> None:
    """Raises ModelError, naming the question, if a token has no embedding in the model that is run here."""
    from wmdp_fast.models.vocabulary import refuse_unknown_in_requests
    from wmdp_fast.scoring.served import ServedModel

    if requests is not None and not isinstance(loaded, ServedModel):
        names = [f"{one.task.name}, question {row + 1}" for one in read for row in range(len(one.questions))]
        refuse_unknown_in_requests(loaded.model, loaded.tokenizer, requests, names.__getitem__)


def _score(
    loaded: LoadedModel | ServedModel,
    prompts: Sequence[Prompts],
    requests: Requests | None,
    engine: Engine,
    token_budget: int | Literal["auto"],
    score_mode: ScoreMode,
    progress: Callable[[int, int], None],
    partial: PartialScores,
) -> Scores:
    from wmdp_fast.scoring.served import ServedModel, score_served
    from wmdp_fast.scoring.trie import score

    if isinstance(loaded, ServedModel):
        return score_served(loaded.server, prompts, requests=requests, progress=progress, partial=partial)
    if requests is None:
        raise ValueError("a model that is run here reads tokens")
    return score(
        loaded,
        requests,
        engine=engine,
        token_budget=token_budget,
        score_mode=score_mode,
        progress=progress,
        partial=partial,
    )


@dataclass(frozen=True)
class _Scoring:
    """How a model is scored, for tasks and texts alike. What is done lies in journals as long as `kept` is open."""

    kept: contextlib.ExitStack
    loaded: LoadedModel | ServedModel
    engine: Engine
    token_budget: int | Literal["auto"]
    score_mode: ScoreMode
    output: str | PathLike[str] | None
    resume: bool
    progress: bool
    clock: PhaseClock
    # What was asked, its scores, and what these were entered in: of tasks, then of texts.
    done: list[tuple[Requests | None, Scores, PartialScores]] = field(default_factory=list)

    def tasks(self, prompts: Sequence[Prompts], requests: Requests | None) -> Scores:
        """Scores all choices of all tasks."""
        identity = run_identity(self.loaded, requests, prompts, self.score_mode)
        partial = self._keep(identity, sum(one.num_choices for one in prompts), "choices")
        unit, what = ("input", "scoring") if hasattr(self.loaded, "model") else ("question", "asking")
        with self.clock("forward"), _progress_bar(unit, what, shown=self.progress) as advance:
            scores = _score(
                self.loaded, prompts, requests, self.engine, self.token_budget, self.score_mode, advance, partial
            )
        self.done.append((requests, scores, partial))
        return scores

    def texts(self, run: TextRun | None) -> dict[str, TextResult]:
        """Scores the windows of texts."""
        if run is None:
            return {}
        identity = run_identity(self.loaded, run.requests, (), self.score_mode)
        partial = self._keep(identity, len(run), "windows of texts")
        with self.clock("texts"), _progress_bar("window", "reading texts", shown=self.progress) as advance:
            scores = run.score(
                token_budget=self.token_budget, score_mode=self.score_mode, progress=advance, partial=partial
            )
        self.done.append((run.requests, scores, partial))
        return run.results(scores)

    def _keep(self, identity: Mapping[str, Any] | None, number: int, what: str) -> PartialScores:
        # A run that was stopped at its tasks has nothing of its texts, which is no surprise.
        expected = self.resume and not self.done
        begun = _journaled_scores(
            self.loaded.name, identity, number, self.output, what, resume=self.resume, warn=expected
        )
        return self.kept.enter_context(begun)


@contextlib.contextmanager
def _journaled_scores(
    name: str,
    identity: Mapping[str, Any] | None,
    number: int,
    output: str | PathLike[str] | None,
    what: str,
    *,
    resume: bool,
    warn: bool,
) -> Iterator[PartialScores]:
    """Scores to be entered; if the run can be known again, they lie in a journal until the results are saved."""
    from wmdp_fast.scoring.scores import PartialScores

    if output is None or identity is None:
        yield PartialScores.empty(number)
        return
    folder = output_folder(output, name)
    journal = Journal.open(folder, identity, resume=resume)
    if warn and len(journal.choices) == 0:
        warnings.warn(
            f"there is nothing to resume in {folder}: starting from the beginning", WmdpFastWarning, stacklevel=4
        )
    partial = PartialScores.resumed(number, journal)
    try:
        yield partial
    except BaseException as error:
        done = int(partial.finished.sum())
        if done:
            error.add_note(
                f"{done} of {number} {what} are scored and kept in {journal.path}: the same again with"
                " --resume (resume=True) goes on from there"
            )
            journal.close()
        else:
            journal.remove()
        raise
    journal.remove()


def _aggregate(
    read: Sequence[TaskQuestions],
    others: Sequence[TaskQuestions],
    prompts: Sequence[Prompts],
    scores: Scores,
    near_tie: float,
    orders: str | None,
) -> dict[str, TaskResult]:
    """Cuts the run's scores into those of each task, and then of each task in other orders of its choices."""
    ends = list(accumulate((asked.num_choices for asked in prompts), initial=0))
    own = [(scores.loglikelihood[slice(*pair)], scores.is_greedy[slice(*pair)]) for pair in pairwise(ends)]
    results = {
        one.task.name: TaskResult.from_scores(
            one.task,
            one.questions,
            asked,
            *of_task,
            near_tie=near_tie,
            num_available=one.available,
            dataset_revision=one.revision,
        )
        for one, asked, of_task in zip(read, prompts, own, strict=False)
    }
    for other, asked, of_task in zip(others, prompts[len(read) :], own[len(read) :], strict=True):
        result = results[other.task.name]
        outcome = aggregate(asked, *of_task, near_tie=near_tie)
        answers = OrderAnswers(result.questions, orders or "", result.outcome, outcome)
        results[other.task.name] = replace(result, order_answers=answers)
    return results
