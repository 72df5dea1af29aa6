"""An evaluation: what is asked, put to one model or to several one after the other, scored and kept."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from functools import partial as partial_function
from typing import TYPE_CHECKING, Any

from wmdp_fast.analysis.rescoring import contradictions
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.prompts.cautions import Cautions
from wmdp_fast.prompts.chat import chat_template_source
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
from wmdp_fast.runtime.progress import progress_bar
from wmdp_fast.scoring.journal import delete_saved, run_key
from wmdp_fast.scoring.journaled import journaled_scores
from wmdp_fast.scoring.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from wmdp_fast._rust import Prompts, Requests
    from wmdp_fast.prompts.options import PromptOptions
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.prompts.texts import Text, TextRequests
    from wmdp_fast.prompts.tokenizer import ReadsTokens
    from wmdp_fast.results.perplexity import TextResult
    from wmdp_fast.results.result import TaskResult
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.scoring.backend import Backend, ScoreOptions
    from wmdp_fast.scoring.model_source import ModelSource
    from wmdp_fast.scoring.scores import PartialScores, ScoreMode, Scores
    from wmdp_fast.scoring.sharded import ScoresRequests
    from wmdp_fast.tasks.resolve import Selection


def has_results(output: str | PathLike[str] | None, model_name: str) -> bool:
    """Whether an earlier run has saved results of a model."""
    return output is not None and bool(results_under(output, model_name))


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
