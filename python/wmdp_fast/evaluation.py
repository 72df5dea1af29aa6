"""The package's front doors for evaluation: `evaluate`, from task names to results, and `rendered_prompts`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from wmdp_fast.checkpoints.read_ahead import reading_ahead
from wmdp_fast.evaluation_run import Evaluation, Keeping, has_results
from wmdp_fast.exceptions import DataUnavailableError, ModelError
from wmdp_fast.prompts.cautions import Cautions
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.prompts.rendered import RenderedPrompt, render_requests
from wmdp_fast.prompts.tokenizer import BackgroundTokenizer
from wmdp_fast.results.paths import output_folder
from wmdp_fast.results.saved import read_results
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.scoring.model_source import model_source, tokenizer_source
from wmdp_fast.scoring.sharing import Sharing, sharing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike
    from typing import Unpack

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.evaluate_options import EvaluateOptions
    from wmdp_fast.prompts.texts import Text
    from wmdp_fast.results.result import EvalResult
    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.scoring.model_source import ModelSource
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.server import Server
    from wmdp_fast.scoring.trie import Engine
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
