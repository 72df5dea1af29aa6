"""The package's front doors for evaluation: `evaluate`, from task names to results, and `rendered_prompts`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from functools import partial as partial_function
from typing import TYPE_CHECKING, Any, Literal, overload

from wmdp_fast.analysis.rescoring import contradictions
from wmdp_fast.checkpoints.read_ahead import reading_ahead
from wmdp_fast.exceptions import DataUnavailableError, ModelError, WmdpFastWarning
from wmdp_fast.prompts.cautions import Cautions
from wmdp_fast.prompts.chat import chat_template_source
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.prompts.rendered import RenderedPrompt, render_requests
from wmdp_fast.prompts.texts import read_texts, text_requests
from wmdp_fast.prompts.tokenizer import BackgroundTokenizer
from wmdp_fast.results.by_task import task_results
from wmdp_fast.results.finished import JOURNALS, KEY, asked_facts, finished_run
from wmdp_fast.results.letters import OneLetterWarning
from wmdp_fast.results.lm_eval_files import tokenizer_info
from wmdp_fast.results.near_tie import near_tie_of
from wmdp_fast.results.paths import output_folder, results_under
from wmdp_fast.results.perplexity import text_results
from wmdp_fast.results.provenance import run_config, run_details
from wmdp_fast.results.result import EvalResult, GroupResult
from wmdp_fast.results.saved import read_results
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.runtime.progress import progress_bar
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.scoring.journal import delete_saved, run_key
from wmdp_fast.scoring.journaled import journaled_scores
from wmdp_fast.scoring.model_source import model_source, tokenizer_source
from wmdp_fast.scoring.sharing import Sharing, sharing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike
    from typing import Unpack

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.evaluate_options import EvaluateOptions
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.prompts.texts import Text, TextRequests
    from wmdp_fast.prompts.tokenizer import ReadsTokens
    from wmdp_fast.results.perplexity import TextResult
    from wmdp_fast.results.result import TaskResult
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.scoring.backend import Backend
    from wmdp_fast.scoring.model_source import ModelSource
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores
    from wmdp_fast.scoring.server import Server
    from wmdp_fast.scoring.sharded import ScoresRequests
    from wmdp_fast.scoring.trie import Engine
    from wmdp_fast.tasks.resolve import Selection
    from wmdp_fast.tasks.task import Choices


@overload
def evaluate(
    model: str | PathLike[str] | PreTrainedModel | Server,
    *,
    resume: Literal[False] = False,
    **options: Unpack[EvaluateOptions],
) -> EvalResult: ...


@overload
def evaluate(
    model: str | PathLike[str] | PreTrainedModel | Server,
    *,
    resume: bool,
    **options: Unpack[EvaluateOptions],
) -> EvalResult | SavedResults: ...


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
    memory: str | int = "auto",
    stream: bool = False,
    shards: int | None = None,
    parallel: Literal["fsdp", "tp"] | None = None,
    output: str | PathLike[str] | None = None,
    log_samples: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> EvalResult | SavedResults:
    """Scores a model on multiple-choice tasks and on texts by log-likelihood, with lm-eval's prompts and numbers.

    A text's numbers are perplexities by word, byte and token, those of lm-eval's `loglikelihood_rolling`: each document
    is read as it stands, a long one in windows of as many tokens as the model reads at once.

    Args:
        model: A folder or a name on the Hugging Face hub; `BASE+DELTA`, one of these with the changed tensors that
            `unlearn` wrote (or their folder); a model already in memory (used as it is and left as it was; it needs
            `tokenizer`); or a `Server` that serves one.
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
        token_budget: Maximum tokens per batch, or `auto`.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        peft: A PEFT adapter to put on the model.
        trust_remote_code: Whether code that comes with the model may run.
        allow_missing: Whether to go on if the checkpoint lacks weights, with random ones; results say so.
        max_length: Maximum sequence length of the model, in place of its own limit.
        memory: How much memory to take, such as `16GB`: a model that needs more is streamed, a layer at a time, with
            the same numbers. On a GPU it is that of the GPU. `auto` is what is free.
        stream: Whether to stream the model even if it fits.
        shards: In how many parts to score, at least as many as `torchrun` has started processes: with the same number
            of parts, scores are the same to the bit on any number of processes. None is one for each process.
        parallel: How the processes that `torchrun` has started hold one model together that is too large for a device,
            by transformers: `fsdp`, with the products of one device, or `tp`, whose sums round in another way. Nothing
            is kept on the way.
        output: Folder or `.json` name to save results under, by lm-eval's rules. Scores of a model that is loaded from
            files or served are kept there as the run goes on, so that one that was stopped loses nothing.
        log_samples: Whether to save every question with its prompt and scores too; needs `output`.
        resume: Whether to go on from where the same evaluation with the same `output` was stopped, if it was; if it is
            finished, nothing is loaded, and what was saved is read back.
        progress: Whether to show a progress bar on stderr.

    Warns:
        WmdpFastWarning: An option was ignored, or a fallback was taken; or with `resume` there are results of the
            model, but of another run: it is said what differs.

    Returns:
        Numbers by task and group; `print` shows them as a table. With `resume`, `SavedResults` if an earlier run has
        finished that depends on the same: they are indexed in the same way, and `path` is their file.

    Raises:
        TaskError: A task, subject, template or version is unknown, or an option does not apply.
        DataUnavailableError: Questions are missing, gated or out of reach.
        DatasetError: A question or text file is faulty.
        JournalError: What an unfinished run has left in `output` is of another run or damaged, or would be lost.
        ModelError: The model cannot be loaded or scored, or its server cannot be reached or does not do what is needed.
        TemplateError: A prompt or chat template fails.
        TokenizerError: A prompt cannot be tokenized.
        ValueError: An option has an impossible value.

    Example:
        >>> from wmdp_fast import demo, evaluate
        >>> result = evaluate(demo.model_path(), tasks=demo.questions_path("forget"), limit=8, progress=False)
        >>> [task] = result.tasks.values()
        >>> 0 <= task["acc"] <= 1
        True
    """
    keeping = Keeping(output=output, log_samples=log_samples, resume=resume, progress=progress)
    prompting = PromptOptions(
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
    loading = LoadOptions(
        tokenizer=tokenizer,
        revision=revision,
        dtype=dtype,
        device=device,
        peft=peft,
        trust_remote_code=trust_remote_code,
        allow_missing=allow_missing,
        memory=memory,
        stream=stream,
        parallel=parallel,
    )
    if parallel is not None and resume:
        raise ValueError("with parallel nothing is kept on the way, so that there is nothing to resume")
    scoring = ScoreOptions(score_mode=score_mode, engine=engine, token_budget=token_budget)
    sharing = sharing_of(model, loading, shards)
    if sharing.place.size > 1:
        loading = sharing.on_own_device(loading)
        keeping = replace(keeping, progress=progress and sharing.place.rank == 0)
    source = model_source(model, loading, scoring, resume=resume, has_text=bool(text))
    clock = PhaseClock()
    if output is not None:
        check_folder(output_folder(output, source.name))
    with sharing.warnings_once(), sharing.one_model(loading.device):
        with model_named_first(source):
            evaluation = Evaluation(prompting, scoring, clock, text=text, text_field=text_field)
        if not resume:
            return evaluation.of(source, keeping, clock, sharing)
        if (found := _finished(evaluation, source, keeping, sharing)) is not None:
            return found
        # That there is nothing to resume has been said, with the reason, where there are results.
        keeping = replace(keeping, may_begin=has_results(output, source.name))
        with _reading_ahead(model, loading):
            return evaluation.of(source, keeping, clock, sharing)


@contextlib.contextmanager
def model_named_first(*sources: ModelSource) -> Iterator[None]:
    """Inside, if data are out of reach and a model is not to be found either, that is what is said first.

    Data are looked for before models, and who has misspelt a folder need not find a network for that.
    """
    try:
        yield
    except DataUnavailableError as error:
        for source in sources:
            if source.identity is not None:
                _raise_of_model(source.identity, error)
        raise


def _raise_of_model(identity: Callable[[], object], other: DataUnavailableError) -> None:
    """Raises what is wrong with where a model is, with what else is out of reach in a note."""
    try:
        identity()
    except (ModelError, DataUnavailableError) as error:
        error.add_note(f"nor could this be found: {other}")
        raise error from other


def _finished(evaluation: Evaluation, source: ModelSource, keeping: Keeping, sharing: Sharing) -> SavedResults | None:
    """The results of an earlier run of the same; of several processes the first one looks, and tells the others."""
    with sharing.joined() as ranks:
        found = evaluation.finished(source, keeping, sharing) if sharing.place.rank == 0 else None
        if ranks is None:
            return found
        [file, *_] = ranks.exchange(None if found is None else found.path)
    return None if file is None else found or read_results(file)


def has_results(output: str | PathLike[str] | None, model_name: str) -> bool:
    """Whether an earlier run has saved results of a model."""
    return output is not None and bool(results_under(output, model_name))


def _reading_ahead(model: object, load: LoadOptions) -> contextlib.AbstractContextManager[None]:
    """Inside, the model's files are read while libraries are imported, unless they are read as their turn comes."""
    if not isinstance(model, (str, os.PathLike)) or load.stream or load.memory not in ("auto", None):
        return contextlib.nullcontext()
    return reading_ahead(model, revision=load.revision, peft=load.peft)


def rendered_prompts(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    count: int = 1,
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> list[RenderedPrompt]:
    """The first prompts of each task with their tokens, exactly as `evaluate` scores them.

    No weights are read: of a folder or a name on the hub the tokenizer's files and `config.json` are enough.

    Args:
        model: A folder or a name on the Hugging Face hub; or a model in memory, which needs `tokenizer`.
        count: How many questions of each task.
        tokenizer: Another tokenizer than the model's own: one in memory, a folder, or a name on the hub.
        revision: Commit, branch or tag of the model on the hub.
        trust_remote_code: Whether code that comes with the model may run.
        options: What is asked and how: the parameters of `evaluate` from `tasks`, which is needed, to
            `fewshot_as_multiturn`, and `max_length`.

    Returns:
        Task after task, question after question; with `permute_choices` a task's questions in their other orders come
        after those of all tasks.

    Warns:
        WmdpFastWarning: As `evaluate`, about the prompts that are returned.

    Raises:
        ModelError: There is no configuration.
        TypeError: There is no parameter of that name, or the model is served.
        ValueError: `count` is below 1, or an option has an impossible value.
        WmdpFastError: As `evaluate`, for whatever is wrong with tasks, questions, templates or tokenizer.

    Example:
        >>> from wmdp_fast import demo, rendered_prompts
        >>> [prompt] = rendered_prompts(demo.model_path(), tasks=demo.questions_path("forget"))
        >>> [continuation.text for continuation in prompt.continuations]
        [' A', ' B', ' C', ' D']
    """
    open_tokenizer = tokenizer_source(
        model, LoadOptions(tokenizer=tokenizer, revision=revision, trust_remote_code=trust_remote_code)
    )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number of questions of at least 1, not {count!r}")
    prompting = PromptOptions(**options)
    selection = prompting.select()
    every = prompting.read(selection)
    cautions = Cautions(every, prompting.system_instruction, log_samples=False)
    loaded = open_tokenizer()
    read = [replace(one, questions=one.questions.head(min(count, len(one.questions)))) for one in every]
    both = [*read, *prompting.in_other_orders(read)]
    prompts = [prompting.prompts(one, loaded.tokenizer, cautions) for one in both]
    requests = prompting.requests(loaded, BackgroundTokenizer(selection), prompts)
    if requests is None:
        raise ValueError("without a tokenizer there are no tokens")
    cautions.add_prompts(requests, [one.questions for one in both], loaded)
    return list(render_requests(read, prompts, requests, loaded.tokenizer, prompting.permute_choices))


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """The parameters of `evaluate` that say what is kept and shown of a run.

    Attributes:
        output: Where results go.
        log_samples: Whether every question is saved too.
        resume: Whether to go on with an earlier run.
        progress: Whether to show a bar.
        may_begin: Whether it is no surprise if there is nothing to resume: of several models most had not begun.

    Raises:
        ValueError: Something is to be kept, and there is no folder for it.
    """

    output: str | PathLike[str] | None
    log_samples: bool
    resume: bool
    progress: bool
    may_begin: bool = False

    def __post_init__(self) -> None:
        if self.output is None and (self.log_samples or self.resume):
            raise ValueError(f"{'log_samples' if self.log_samples else 'resume'} needs an output folder")


@dataclass(frozen=True)
class _Asked:
    """What a model is asked.

    Attributes:
        selection: The tasks.
        read: The questions of each task.
        others: The same with their choices in other orders.
        prompts: The prompts of all these, in this order.
        requests: All prompts as tokens; None if there are none, or the server makes the tokens.
        texts: The texts to be read, if there are any.
    """

    selection: Selection
    read: list[TaskQuestions]
    others: list[TaskQuestions]
    prompts: list[Prompts]
    requests: Requests | None
    texts: TextRequests | None


@dataclass(frozen=True)
class _Scored:
    """What came of it.

    Attributes:
        results: By task.
        runs: What was asked as tokens, its scores, and how many an earlier run had made: of tasks, then of texts.
        near_tie: Margin in nats up to which rounding may have decided.
        texts: Results by text.
    """

    results: dict[str, TaskResult]
    runs: list[tuple[Requests | None, Scores, int]]
    near_tie: float
    texts: dict[str, TextResult]


class Evaluation:
    """What one model or several, one after the other, are asked: tasks that exist and questions that are read.

    Everything cheap comes first: a misspelt task should not cost the loading of a model.

    Args:
        prompting: What to ask and how.
        scoring: How models are scored.
        clock: Takes the time of reading.
        text: Held-out texts, as in `evaluate`.
        text_field: Their key or column.

    Raises:
        WmdpFastError, ValueError: As `evaluate`, for tasks, questions and templates.
    """

    def __init__(
        self,
        prompting: PromptOptions,
        scoring: ScoreOptions,
        clock: PhaseClock,
        *,
        text: str | PathLike[str] | Sequence[str | PathLike[str] | Text] | Mapping[str, Sequence[str]] = (),
        text_field: str = "text",
    ) -> None:
        self._prompting, self._scoring = prompting, scoring
        self._selection = selection = prompting.select(has_text=bool(text))
        with clock("read"):
            self._read = prompting.read(selection)
            taken = [*(task.name for task in selection.tasks), *(group.name for group in selection.groups)]
            self._texts = read_texts(text, field=text_field, limit=prompting.limit, taken=taken)
        self._others: list[TaskQuestions] | None = None
        self._encoder = BackgroundTokenizer(selection)
        self._prompts: list[Prompts] | None = None

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return asked_facts(self._prompting, self._scoring, self._read, self._selection.groups, self._texts)

    def _facts_of(self, source: ModelSource, sharing: Sharing | None) -> dict[str, Any] | None:
        """What a run's numbers depend on; None if no later run can recognize its model."""
        return None if source.identity is None else source.identity() | self._facts | (sharing or Sharing()).facts

    def finished(self, source: ModelSource, keeping: Keeping, sharing: Sharing | None = None) -> SavedResults | None:
        """The results of an earlier run that asked the same of the same model, if there are any under its output.

        Raises:
            DataUnavailableError, ModelError, OSError: The model cannot be located.

        Warns:
            WmdpFastWarning: There are results of the model, but not of this run; says why.
        """
        if keeping.output is None or not has_results(keeping.output, source.name):
            return None
        if (facts := self._facts_of(source, sharing)) is None:
            return None
        found = finished_run(keeping.output, source.name, facts, log_samples=keeping.log_samples)
        if found is None:
            return None
        if (told := next(contradictions(found), None)) is not None:
            warnings.warn(f"{source.name} is scored again: {found.path}, {told}", WmdpFastWarning, stacklevel=3)
            return None
        # Of a run that was killed when it had saved them.
        delete_saved(output_folder(keeping.output, source.name), found.extra.get(JOURNALS) or ())
        return found

    def of(
        self, source: ModelSource, keeping: Keeping, clock: PhaseClock, sharing: Sharing | None = None
    ) -> EvalResult:
        """Loads a model, or connects to its server, and scores it, alone unless it is shared.

        Prompts and their tokens are made as soon as there is a tokenizer, while weights are read; once for all models
        that have the same.
        """
        log_samples = keeping.log_samples
        cautions = Cautions(self._read, self._prompting.system_instruction, log_samples=log_samples)
        if self._prompting.apply_chat_template:
            self._prompts = None

        def begin(model: ReadsTokens) -> None:
            prompts = self._rendered(model, cautions, clock)
            self._encoder.begin(model, prompts, self._prompting.length(model))

        with clock("load"):
            backend = source.open(begin, clock)
        asked = self._asked(backend, cautions, clock)
        every = [one.questions for one in (*asked.read, *asked.others)]
        cautions.add_prompts(asked.requests, every, backend)
        with contextlib.ExitStack() as kept:
            scoring = _Scoring(backend, keeping, sharing or Sharing(), kept)
            scored = _score(asked, scoring, self._prompting, clock)
            result = _result(asked, scored, backend, self._prompting, cautions, self._scoring.score_mode, clock)
            if (facts := self._facts_of(source, sharing)) is not None:
                result = replace(result, details={**result.details, KEY: facts, JOURNALS: scoring.journals})
            if sharing is not None and sharing.parallel is not None:
                held = {"kind": sharing.parallel, "processes": sharing.place.size}
                result = replace(result, details={**result.details, "parallel": held})
            for note in result.letter_notes():
                warnings.warn(note, OneLetterWarning, stacklevel=3)
            if keeping.output is not None and (sharing is None or sharing.place.rank == 0):
                with clock("save"):
                    result = replace(result, saved_to=result.save(keeping.output, log_samples=log_samples))
        return result

    def _asked(self, backend: Backend, cautions: Cautions, clock: PhaseClock) -> _Asked:
        """What a model is asked; what has not begun is done now."""
        prompts = self._rendered(backend, cautions, clock)
        others = self._others or []
        both = [*self._read, *others]
        with clock("tokenize"):
            requests = self._prompting.requests(backend, self._encoder, prompts)
            if requests is not None:
                names = [f"{one.task.name}, question {row + 1}" for one in both for row in range(len(one.questions))]
                backend.check_tokens(requests, names.__getitem__)
            to_read = _text_requests(backend, self._encoder, self._texts, self._prompting.max_length)
        return _Asked(self._selection, self._read, others, prompts, requests, to_read)

    def _rendered(self, model: ReadsTokens, cautions: Cautions, clock: PhaseClock) -> list[Prompts]:
        if self._prompts is None:
            with clock("render"):
                if self._others is None:
                    self._others = self._prompting.in_other_orders(self._read)
                both = [*self._read, *self._others]
                self._prompts = [self._prompting.prompts(one, model.tokenizer, cautions) for one in both]
        return self._prompts


def _text_requests(
    backend: Backend, encoder: BackgroundTokenizer, texts: Sequence[Text], max_length: int | None
) -> TextRequests | None:
    """The texts, ready to be read; None if there are none."""
    if not texts:
        return None
    length = max_length or backend.max_length
    if length is None or backend.prefix_token_id is None:
        raise TypeError("a model that reads texts needs a tokenizer and a maximum length")
    found = text_requests(texts, encoder.of(backend), backend.prefix_token_id, length)
    backend.check_tokens(found.requests, found.name_of)
    return found


class _Scoring:
    """Scores what a model is asked, by this process alone or shared.

    Args:
        backend: The model.
        keeping: What is kept and shown.
        sharing: With whom, and in how many parts.
        kept: As long as it is open, what is done lies in journals.

    Attributes:
        backend: The model.
        journals: What these journals are known by.
    """

    def __init__(self, backend: Backend, keeping: Keeping, sharing: Sharing, kept: contextlib.ExitStack) -> None:
        self.backend = backend
        self._keeping, self._sharing, self._kept = keeping, sharing, kept
        # Processes that hold a model together would each have to know what is finished.
        keeps = keeping.output is not None and sharing.parallel is None
        self._folder = output_folder(keeping.output, backend.name) if keeps and keeping.output is not None else None
        self._ranks = kept.enter_context(sharing.joined())
        if self._ranks is not None:
            self.backend = backend.sharing_with(self._ranks)
        self._expects_journal = keeping.resume and not keeping.may_begin
        self.journals: list[str] = []

    def of_tasks(self, asked: _Asked, clock: PhaseClock) -> tuple[Scores, int]:
        """The scores of all prompts, and how many of them were there before."""
        backend, requests, prompts = self.backend, asked.requests, asked.prompts
        identity = self._identity(requests, prompts)
        if self._keeping.progress and (estimate := backend.estimate(requests, self._sharing.count)):
            print(estimate, file=sys.stderr)  # noqa: T201 (where the bar is)
        unit, what = backend.progress
        if self._sharing.is_cut and requests is not None:
            with clock("forward"):
                return self._in_shards(requests, identity, "choices", what, partial_function(backend.score, prompts))
        number = sum(one.num_choices for one in prompts)
        partial = self._journaled(identity, number, "choices", warn=self._expects_journal)
        with clock("forward"), _progress_bar(unit, what, shown=self._keeping.progress) as advance:
            scores = backend.score(prompts, requests, progress=advance, partial=partial)
        return scores, partial.num_resumed

    def of_texts(self, asked: TextRequests, clock: PhaseClock, *, after_tasks: bool) -> tuple[Scores, int]:
        """The same of the windows of texts."""
        backend, requests, what = self.backend, asked.requests, "windows of texts"
        identity = self._identity(requests, ())
        if self._sharing.is_cut:
            with clock("texts"):
                return self._in_shards(requests, identity, what, "reading texts", backend.score_windows)
        # A run that was stopped at its tasks has nothing of its texts, which is no surprise.
        partial = self._journaled(identity, len(asked), what, warn=self._expects_journal and not after_tasks)
        with clock("texts"), _progress_bar("window", "reading texts", shown=self._keeping.progress) as advance:
            scores = backend.score_windows(requests, progress=advance, partial=partial)
        return scores, partial.num_resumed

    def _identity(self, requests: Requests | None, prompts: Sequence[Prompts]) -> dict[str, Any] | None:
        found = self.backend.identity(requests, prompts)
        if found is not None and self._folder is not None:
            self.journals.append(run_key(found))
        return found

    def _journaled(self, identity: dict[str, Any] | None, number: int, what: str, *, warn: bool) -> PartialScores:
        return self._kept.enter_context(
            journaled_scores(self._folder, identity, number, what, resume=self._keeping.resume, warn=warn)
        )

    def _in_shards(
        self, requests: Requests, identity: dict[str, Any] | None, what: str, on_bar: str, score: ScoresRequests
    ) -> tuple[Scores, int]:
        from wmdp_fast.scoring.sharded import sharded_run

        resume, warn = self._keeping.resume, self._expects_journal
        run = self._kept.enter_context(
            sharded_run(
                requests, self._sharing.count, self._ranks, self._folder, identity, what, resume=resume, warn=warn
            )
        )
        with _progress_bar("question", on_bar, shown=self._keeping.progress) as advance:
            scores = run.score(score, advance, self.backend.read_along)
        return scores, scores.resumed


def _score(asked: _Asked, scoring: _Scoring, prompting: PromptOptions, clock: PhaseClock) -> _Scored:
    """Scores tasks, then texts."""
    near_tie = near_tie_of(scoring.backend.dtype or "")
    results: dict[str, TaskResult] = {}
    runs: list[tuple[Requests | None, Scores, int]] = []
    if asked.prompts:
        scores, resumed = scoring.of_tasks(asked, clock)
        runs.append((asked.requests, scores, resumed))
        with clock("aggregate"):
            results = task_results(
                asked.read,
                asked.prompts,
                scores,
                near_tie=near_tie,
                others=asked.others,
                orders=prompting.permute_choices,
            )
    if asked.texts is None:
        return _Scored(results, runs, near_tie, {})
    scores, resumed = scoring.of_texts(asked.texts, clock, after_tasks=bool(runs))
    runs.append((asked.texts.requests, scores, resumed))
    return _Scored(results, runs, near_tie, text_results(asked.texts, scores.loglikelihood))


def _result(
    asked: _Asked,
    scored: _Scored,
    backend: Backend,
    prompting: PromptOptions,
    cautions: Cautions,
    score_mode: ScoreMode,
    clock: PhaseClock,
) -> EvalResult:
    """The result of a run."""
    selection = asked.selection
    chat, tokenizer = prompting.apply_chat_template, backend.tokenizer
    tells_tokens = tokenizer is not None and scored.runs[-1][0] is not None
    length = prompting.max_length or backend.max_length
    return EvalResult(
        tasks=scored.results,
        groups={
            group.name: GroupResult.from_tasks(group, [scored.results[task.name] for task in selection.leaves(group)])
            for group in selection.groups
        },
        model_name=backend.name,
        **run_config(backend, prompting.limit),
        num_tokens=sum(
            done.tokens_useful if requests is None else requests.num_tokens for requests, done, _ in scored.runs
        ),
        texts=scored.texts,
        near_tie=scored.near_tie,
        choice_orders=prompting.permute_choices,
        tokenizer=tokenizer_info(tokenizer, length) if tells_tokens else {},
        system_instruction=prompting.system_instruction,
        chat_template=chat_template_source(tokenizer, chat) if chat and tokenizer is not None else None,
        fewshot_as_multiturn=prompting.multiturn,
        details=cautions.added_to(run_details(selection, backend, asked.prompts, *scored.runs[0])),
        score_mode=score_mode,
        timings=clock.seconds,
        started=clock.started,
        total_seconds=time.time() - clock.started,
    )


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
