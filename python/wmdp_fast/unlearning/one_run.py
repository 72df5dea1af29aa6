"""A run from what was asked for to what came of it: looked through, loaded, trained and written."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from typing import TYPE_CHECKING, Literal

from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.runtime.files import explain_full_disk
from wmdp_fast.scoring.journaled import GOES_ON
from wmdp_fast.unlearning import evaluations, preflight
from wmdp_fast.unlearning.activation_cache import TrunkCache
from wmdp_fast.unlearning.memory_plan import streaming_of
from wmdp_fast.unlearning.sharing import place_in_run, sharing, silenced
from wmdp_fast.unlearning.source import open_source
from wmdp_fast.unlearning.state import STATE
from wmdp_fast.unlearning.trainer import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.unlearning.corpora_ahead import CorporaAhead
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.result import UnlearnResult


def one_run(
    request: Request,
    model: str | PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    clock: PhaseClock,
    ahead: CorporaAhead | None,
    *,
    target: Path | None,
    resume: bool,
    revision: str | None,
    device: str,
    trust_remote_code: bool,
    cache: Path | None,
    cache_limit: int | None,
    memory: str | int | None,
    stream: bool,
    parallel: Literal["fsdp"] | None,
) -> UnlearnResult:
    """What `unlearn` does once it is clear what is asked for; warnings, errors and what is not said here are its own.

    Args:
        request: What was asked for, checked.
        model: The model, as the user named it.
        tokenizer: Its tokenizer, if it is not the folder's own.
        clock: Adds up seconds by phase.
        ahead: Corpora that were begun ahead, if any were.
        target: The folder to make.
        resume: Whether to go on with an interrupted run to it.
        revision: Of the model on the hub.
        device: Where to.
        trust_remote_code: Whether code that comes with the model may run.
        cache: Folder of the trunk cache.
        cache_limit: Most bytes that it may hold.
        memory: As `unlearn`.
        stream: As `unlearn`.
        parallel: As `unlearn`.
    """
    config = request.config
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
    place, device = place_in_run(parallel, model, request, device, memory=memory, stream=stream, cache_trunk=cache)
    if target is not None:
        refuse_leftovers(target, resume=resume)
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
                ahead=ahead,
            )
            for sentence in (*corpora.not_held_out, *corpora.doubts):
                warnings.warn(sentence, WmdpFastWarning, stacklevel=3)
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
        trunk = None
        if cache is not None:
            weights_of = None if source.streamed is None else source.streamed.weights_of
            trunk = TrunkCache(cache, source.decoder, limit=cache_limit, weights_of=weights_of)
        from wmdp_fast.models.configurations import objects_returned

        with work_folder(target) as work, objects_returned(source.whole or source.decoder.model):
            result = Run(request, source, corpora, clock, target, work, trunk).result(resume=resume)
        _speak_of(result, request)
    return result


def _speak_of(result: UnlearnResult, request: Request) -> None:
    """Says what is to be known of a finished run."""
    if result.saving.is_to_be_known:
        warnings.warn(str(result.saving.reason), WmdpFastWarning, stacklevel=4)
    elif result.saving.reason is not None:
        request.note(result.saving.reason)
    if (problem := result.findings.verdict) is not None:
        warnings.warn(problem, WmdpFastWarning, stacklevel=4)


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
        raised = explain_full_disk(error, work) if isinstance(error, OSError) else error
        if not (work / STATE).exists():
            shutil.rmtree(work, ignore_errors=True)
        elif isinstance(error, (KeyboardInterrupt, OSError)):
            # After other errors the same again may well end in the same way.
            raised.add_note(f"the last state is kept in {work}: {GOES_ON}")
        if raised is not error:
            raise raised from error
        raise
    shutil.rmtree(work)
