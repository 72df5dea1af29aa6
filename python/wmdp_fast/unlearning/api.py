"""Unlearning from beginning to end: `unlearn`."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.scoring.journaled import GOES_ON
from wmdp_fast.unlearning import evaluations, preflight, stopping
from wmdp_fast.unlearning.activation_cache import TrunkCache
from wmdp_fast.unlearning.budget import budget_request
from wmdp_fast.unlearning.memory_plan import streaming_of
from wmdp_fast.unlearning.request import Request
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.sharing import place_in_run, sharing, silenced
from wmdp_fast.unlearning.source import open_source
from wmdp_fast.unlearning.state import STATE
from wmdp_fast.unlearning.trainer import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.unlearning.result import UnlearnResult
    from wmdp_fast.unlearning.training_config import TrainingConfig


def unlearn(
    model: str | PathLike[str] | PreTrainedModel,
    *,
    forget: Corpus | Sequence[Corpus],
    retain: Corpus | Sequence[Corpus],
    config: TrainingConfig | None = None,
    output: str | PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    revision: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    eval_tasks: str | Sequence[str] = (),
    eval_text: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    eval_every: int | None = None,
    eval_options: Mapping[str, Any] | None = None,
    log_samples: bool = True,
    data: str | PathLike[str] | None = None,
    stop_when: str | Sequence[str] = (),
    keep_while: str | Sequence[str] = (),
    max_kl: float | None = None,
    kl_text: str | PathLike[str] | None = None,
    kl_every: int | None = None,
    report_to: str | Sequence[str] = (),
    cache_trunk: str | PathLike[str] | None = None,
    cache_limit: float | None = None,
    memory: str | int | None = None,
    stream: bool = False,
    parallel: Literal["fsdp"] | None = None,
    progress: bool = True,
    note: Callable[[str], None] | None = None,
) -> UnlearnResult:
    """Removes what a model knows of some subjects, as far as the method goes; `docs/unlearn.md` says how far.

    Of RMU only the layers up to the steered one are read and run; the rest is read if the model is to be evaluated, or
    how far it goes is limited. Everything that can be wrong is looked at before weights are read, and what goes wrong
    before a first state was saved leaves nothing behind.

    Args:
        model: A folder or a name on the hub, or a model in memory, which is updated in place. If anything fails it gets
            its own weights back, and in any case its training mode and `requires_grad` flags.
        forget: A corpus for each topic to unlearn: paths or names that `load_corpus` knows, or tokens.
        retain: A corpus for each topic, or one for all.
        config: The settings, whose type says which method: `RMUConfig`, which is also what None means, another of
            `wmdp_fast.unlearning.methods.catalog`, or one of your own.
        output: Folder for the new checkpoint. It appears when it is complete; until then a folder beside it, with
            `.unlearning` at its name's end, has metrics and state. None writes nothing.
        tokenizer: The tokenizer, if it is not the model folder's own.
        resume: Go on from the state that an interrupted run to the same output has left, if there is one.
        revision: Commit, branch or tag of the model on the hub.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: Whether to run code that comes with the model.
        eval_tasks: Tasks to evaluate before, after and during the run. This takes the whole model into memory, unless
            it is streamed.
        eval_text: Held-out texts whose perplexity to measure with every evaluation, as `text` of `wmdp_fast.evaluate`;
            it decides about nothing.
        eval_every: Steps between evaluations; None evaluates before and after only.
        eval_options: Further options of `wmdp_fast.evaluate`, such as `limit`.
        log_samples: Whether the evaluations in `output`, which `wmdp_fast.compare` reads, have each question's scores.
        data: Folder with corpora and datasets that are given by name, in place of the hub, laid out as
            `wmdp_fast.data.locate` says.
        stop_when: Conditions such as `wmdp_bio.acc<0.30`; the run ends when an evaluation fulfils all of them.
        keep_while: Conditions such as `mmlu.acc>=before-0.02`; once one fails, the run ends and the weights go back to
            those of the last evaluation that fulfilled all.
        max_kl: How far the model may go from the original: most nats per token of KL(original || model) on general
            text. Once it lies beyond, the run ends and the weights go back to those of the last measurement within.
            This takes the whole model into memory.
        kl_text: A file or folder of general text to measure it on, at most 8,192 tokens of it; None is one that comes
            with this package. It may not be one of the corpora.
        kl_every: Steps between measurements; None is 5.
        report_to: `tensorboard`, `wandb`, `trackio`.
        cache_trunk: Folder to keep activations in that training does not change, for later epochs and runs. Results are
            the same to the last bit, with or without it.
        cache_limit: Most gigabytes that it may hold; None for no limit.
        memory: Memory that the process may take, in bytes or as `16GB` (on a GPU, that its tensors may): if the layers
            that RMU runs do not fit into it, those below the trained ones are read from the disk when they are run, and
            for evaluations the others too. Results are the same to the last bit. None keeps them in memory. For RMU
            without `max_kl`.
        stream: Whether to do so even if they fit; without `memory`, in what is free.
        parallel: How the processes that `torchrun` has started hold one model together that is too large for a device:
            `fsdp`, each with a part of every layer's weights and some documents of every batch. For LoRA methods over
            logits with `save_adapter`, without evaluations. All of them must call this; the first one prints and
            writes, and the results of the others have no `output`.
        progress: Whether to show a progress bar on stderr.
        note: Takes lines meant for the user: what is trained, what was found.

    Warns:
        WmdpFastWarning: The run changed little of what it should, or much of what it should not; weights are saved in
            another type than they were trained in.

    Returns:
        What was done. Its `tensors` are the changed weights.

    Raises:
        DataUnavailableError: The model or a corpus is missing or out of reach.
        DatasetError: A corpus file is faulty.
        DivergedError: Numbers have become infinite or NaN; says what to lower. No checkpoint is written.
        FileExistsError: There is something at `output`, or an unfinished run to it and `resume` was not set.
        ImportError: A tracker is not installed, or PEFT, which LoRA needs.
        ModelError: The model cannot be loaded, or has no such parameters; or another process has ended.
        OSError: The disk is full. What was there before is unchanged.
        TaskError: A task is unknown.
        ValueError: A setting is impossible.

    Example:
        >>> from wmdp_fast import RMUConfig, demo, unlearn
        >>> config = RMUConfig(layer_id=2, max_steps=2, max_length=64, retain_max_length=64)
        >>> corpora = {"forget": demo.corpus_path("forget"), "retain": demo.corpus_path("retain")}
        >>> result = unlearn(demo.model_path(), **corpora, config=config, progress=False)
        >>> result.steps, len(result.metrics)
        (2, 2)
    """
    config = config or RMUConfig()
    request = Request(
        config=config,
        forget=listed_corpora(forget),
        retain=listed_corpora(retain),
        eval_tasks=listed_names(eval_tasks),
        eval_text=read_texts(eval_text),
        eval_every=eval_every,
        eval_options=({} if data is None else {"data": data}) | dict(eval_options or {}),
        log_samples=log_samples,
        data=data,
        stop_when=stopping.parse_all(stop_when),
        keep_while=stopping.parse_all(keep_while),
        report_to=listed_names(report_to),
        progress=progress,
        note=note or (lambda _line: None),
        budget=budget_request(max_kl, kl_text, kl_every, field=config.field),
    )
    request.check()
    limit = cache_bytes(cache_limit, cache_trunk)
    if cache_trunk is not None:
        check_folder(cache_trunk)
    streaming = streaming_of(
        model,
        request,
        [config],
        memory=memory,
        stream=stream,
        revision=revision,
        device=device,
        trust_remote_code=trust_remote_code,
        whole=request.needs_whole_model,
    )
    place, device = place_in_run(
        parallel, model, request, device, memory=memory, stream=stream, cache_trunk=cache_trunk
    )
    target = None if output is None else Path(output)
    if target is not None:
        refuse_leftovers(target, resume=resume)
    clock = PhaseClock()
    if request.evaluates:
        conditions = (*request.stop_when, *request.keep_while)
        evaluations.check_tasks(request.eval_tasks, request.eval_options, conditions, request.eval_text)
    with sharing(place, device) as shared:
        if place is not None and place.rank > 0:
            request, target = silenced(request), None
        with clock("corpora"):
            tokenizer, corpora = preflight.check(
                request,
                model,
                tokenizer,
                configs=[config],
                revision=revision,
                device=device,
                trust_remote_code=trust_remote_code,
            )
            for sentence in (*corpora.not_held_out, *corpora.doubts):
                warnings.warn(sentence, WmdpFastWarning, stacklevel=2)
            for sentence in corpora.cut:
                request.note(sentence)
        with clock("load"):
            source = open_source(
                model,
                config,
                tokenizer,
                revision,
                device,
                trust_remote_code,
                whole=request.needs_whole_model,
                streaming=streaming,
                shared=shared,
            )
        cache = None
        if cache_trunk is not None:
            weights_of = None if source.streamed is None else source.streamed.weights_of
            cache = TrunkCache(Path(cache_trunk), source.decoder, limit=limit, weights_of=weights_of)
        with work_folder(target) as work:
            result = Run(request, source, corpora, clock, target, work, cache).result(resume=resume)
        _speak_of(result, request)
    return result


def _speak_of(result: UnlearnResult, request: Request) -> None:
    """Says what is to be known of a finished run."""
    if result.saving.is_to_be_known:
        warnings.warn(str(result.saving.reason), WmdpFastWarning, stacklevel=3)
    elif result.saving.reason is not None:
        request.note(result.saving.reason)
    if (problem := result.findings.verdict) is not None:
        warnings.warn(problem, WmdpFastWarning, stacklevel=3)


def cache_bytes(gigabytes: float | None, cache_trunk: str | PathLike[str] | None) -> int | None:
    """The limit of a trunk cache in bytes.

    Raises:
        ValueError: It is no size, or there is no cache.
    """
    if gigabytes is None:
        return None
    if cache_trunk is None:
        raise ValueError("cache_limit is the limit of cache_trunk, which is not set: where should activations be kept?")
    if not gigabytes > 0:
        raise ValueError(f"cache_limit must be a number of gigabytes above 0, not {gigabytes}")
    return int(gigabytes * 1e9)


def refuse_leftovers(target: Path, *, resume: bool) -> None:
    """Raises FileExistsError if there is something at `target`, or an unfinished run to it that is not resumed."""
    checkpoint.refuse_existing(target)
    work = _work_path(target)
    if work.exists() and not resume:
        raise FileExistsError(
            f"found an unfinished run in {work}: pass resume (--resume) to continue it, or remove the folder"
        )


def _work_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.unlearning")


@contextlib.contextmanager
def work_folder(target: Path | None) -> Iterator[Path | None]:
    """The folder of a run's metrics and state; it goes when the run ends well, or without a state to go on from."""
    if target is None:
        yield None
        return
    work = _work_path(target)
    try:
        work.mkdir(parents=True, exist_ok=True)
        yield work
    except BaseException as error:
        raised = checkpoint.explain_full_disk(error, work) if isinstance(error, OSError) else error
        if not (work / STATE).exists():
            shutil.rmtree(work, ignore_errors=True)
        elif isinstance(error, (KeyboardInterrupt, OSError)):
            # After other errors the same again may well end in the same way.
            raised.add_note(f"the last state is kept in {work}: {GOES_ON}")
        if raised is not error:
            raise raised from error
        raise
    shutil.rmtree(work)


def listed_corpora(corpora: Corpus | Sequence[Corpus]) -> list[Corpus]:
    """One corpus or several as a list."""
    if isinstance(corpora, (str, os.PathLike, CorpusTokens)):
        return [corpora]
    return list(corpora)


def listed_names(given: str | Sequence[str]) -> list[str]:
    """Names, of which commas may separate several, as a list."""
    texts = [given] if isinstance(given, str) else given
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]
