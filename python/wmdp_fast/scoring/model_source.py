"""From the argument `model` of `evaluate` and `rendered_prompts` to what stands behind it."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any, cast

from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.runtime.garbage import not_collecting, set_imports_aside
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
from wmdp_fast.scoring.on_disk import OnDisk
from wmdp_fast.scoring.opened import OpenedModel
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.models.adapter_base import AdapterBase
    from wmdp_fast.models.kept_tokenizer import KeptTokenizer
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.tokenizer_only import TokenizerOnly
    from wmdp_fast.prompts.tokenizer import ReadsTokens
    from wmdp_fast.runtime.clock import PhaseClock
    from wmdp_fast.scoring.backend import Backend
    from wmdp_fast.scoring.local import LocalModel

    OnTokenizer = Callable[[ReadsTokens], object]


@dataclass(frozen=True)
class ModelSource:
    """A model that is not loaded or connected to yet.

    Attributes:
        name: What results will call it.
        open: Loads it, or connects to its server. Takes what is called with the tokenizer as soon as that is there,
            which is seconds before the weights are, if the model is loaded from files; and the clock of the run, which
            has importing libraries and reading the tokenizer as phases of their own. Raises what `load_model`,
            `wrap_model` and `connect` do.
        identity: Its files and how it is loaded, as JSON has it, by the names that messages give it; no weights are
            read or fetched for that. None of a model that no later run can recognize. Raises what locating it does.
    """

    name: str
    open: Callable[[OnTokenizer, PhaseClock], Backend]
    identity: Callable[[], dict[str, Any]] | None = None


@singledispatch
def model_source(
    model: str | PathLike[str] | PreTrainedModel | Server | OpenedModel,
    load: LoadOptions,
    score: ScoreOptions,
    *,
    resume: bool = False,
    has_text: bool = False,  # noqa: ARG001 (a model in memory reads texts too)
    shared: AdapterBase | None = None,  # noqa: ARG001 (it is there already)
    tokenizers: KeptTokenizer | None = None,  # noqa: ARG001 (likewise)
) -> ModelSource:
    """Checks that options fit the model, which is loaded or connected to later.

    Args:
        model: A folder or a name on the hub or `BASE+DELTA`, a model in memory, a `Server`, or an `OpenedModel`: each
            has a function of its own below.
        load: How to load it.
        score: How to score it.
        resume: Whether an earlier run of the model is to be recognized.
        has_text: Whether texts are to be read.
        shared: Keeps a model of files for the next source, which differs from this one in its adapter alone.
        tokenizers: Keeps the tokenizer of files for the next source, which may have the same.

    Raises:
        ValueError: An option does not apply to such a model.
    """
    if resume:
        raise ValueError("resume is for models on disk: a model in memory may have changed since the earlier run")
    if not hasattr(model, "named_parameters"):
        raise TypeError(
            f"model must be a folder, a name on the hub, a model in memory or a Server, not {type(model).__name__}"
        )
    tokenizer = _tokenizer_of(load, "evaluate")
    _refuse_in_memory(load)
    in_memory = cast("PreTrainedModel", model)
    name = getattr(in_memory, "name_or_path", "") or type(in_memory).__name__
    return ModelSource(name, lambda _, __: _in_memory(in_memory, tokenizer, load, score))


@model_source.register(OpenedModel)
def _opened(model: OpenedModel, load: LoadOptions, score: ScoreOptions, **_: object) -> ModelSource:
    _refuse_in_memory(load)

    def opened(_: OnTokenizer, clock: PhaseClock) -> Backend:
        with clock("import"):
            from wmdp_fast.scoring.local import LocalModel

        return LocalModel(model.loaded, load, score)

    return ModelSource(model.loaded.name, opened)


@model_source.register(str)
@model_source.register(os.PathLike)
def _of_files(
    model: str | PathLike[str],
    load: LoadOptions,
    score: ScoreOptions,
    *,
    resume: bool = False,
    shared: AdapterBase | None = None,
    tokenizers: KeptTokenizer | None = None,
    **_: bool,
) -> ModelSource:
    if resume and load.allow_missing:
        raise ValueError(
            "weights that a checkpoint lacks are made up anew each time it is loaded, so that a run of it cannot be"
            " gone on with: leave resume out, or allow_missing if it lacks none"
        )
    where = os.fspath(model)
    found = OnDisk(where, load)
    return ModelSource(
        where,
        lambda on_tokenizer, clock: _loaded(found, load, score, on_tokenizer, clock, shared, tokenizers),
        None if load.tokenizer is not None and not isinstance(load.tokenizer, (str, os.PathLike)) else found.identity,
    )


@model_source.register(Server)
def _of_server(
    model: Server, load: LoadOptions, score: ScoreOptions, *, has_text: bool = False, **_: object
) -> ModelSource:
    _refuse_for_server(load, score, has_text=has_text)
    return ModelSource(model.model, lambda _, __: _connected(model, load))


@singledispatch
def tokenizer_source(
    model: str | PathLike[str] | PreTrainedModel | Server, load: LoadOptions
) -> Callable[[], ReadsTokens]:
    """As `model_source`, for prompts alone: of files, only the tokenizer's and the configuration are read.

    Raises:
        TypeError: The model is served.
        ValueError: The model is in memory, and there is no tokenizer.
    """
    tokenizer = _tokenizer_of(load, "rendered_prompts")
    in_memory = cast("PreTrainedModel", model)
    return lambda: _in_memory(in_memory, tokenizer, load, ScoreOptions())


@tokenizer_source.register(str)
@tokenizer_source.register(os.PathLike)
def _tokenizer_of_files(model: str | PathLike[str], load: LoadOptions) -> Callable[[], ReadsTokens]:
    return lambda: _tokenizer_only(os.fspath(model), load)


@tokenizer_source.register(Server)
def _no_tokenizer_of_server(_model: Server, _load: LoadOptions) -> Callable[[], ReadsTokens]:
    raise TypeError(
        "the prompts of a served model are shown by its tokenizer: name the folder, or the hub name, that has it"
        " and config.json, in place of the server"
    )


def _refuse_for_server(load: LoadOptions, score: ScoreOptions, *, has_text: bool) -> None:
    """Raises if an option was given that only a model which is run here has."""
    given = {
        "revision": load.revision is not None,
        "dtype": load.dtype != "auto",
        "device": load.device != "auto",
        "peft": load.peft is not None,
        "trust_remote_code": load.trust_remote_code,
        "allow_missing": load.allow_missing,
        "memory": load.memory not in ("auto", None),
        "stream": load.stream,
        "engine": score.engine != "auto",
        "token_budget": score.token_budget != "auto",
        "score_mode": score.score_mode != "float32",
        "text": has_text,
    }
    if unfit := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(unfit)} cannot be chosen for a model that is served: that is up to the server")


def _connected(server: Server, load: LoadOptions) -> Backend:
    from wmdp_fast.scoring.served import connect

    return connect(server, _named(load.tokenizer))


def _loaded(
    found: OnDisk,
    load: LoadOptions,
    score: ScoreOptions,
    on_tokenizer: OnTokenizer,
    clock: PhaseClock,
    shared: AdapterBase | None,
    tokenizers: KeptTokenizer | None,
) -> LocalModel:
    """Files first, then the tokenizer, then what is slow: transformers' code for models, and the weights."""
    from wmdp_fast.models.tokenizer_only import load_tokenizer_only

    where, (base, _) = found.where, parts_of(found.where)
    files = found.locate()
    with clock("import"), not_collecting():
        from transformers import AutoConfig, AutoTokenizer  # noqa: F401 (takes seconds, so it is timed)
    # That imports half of transformers and of torch.distributed.
    with clock("tokenizer"), not_collecting():
        opened = load_tokenizer_only(
            base,
            tokenizer=_named(load.tokenizer),
            revision=load.revision,
            trust_remote_code=load.trust_remote_code,
            files=files,
            kept=tokenizers,
        )
    on_tokenizer(opened)
    with clock("import"), not_collecting():
        from wmdp_fast.models.fits import memory_to_stream_in
        from wmdp_fast.models.load import load_model
        from wmdp_fast.scoring.local import LocalModel

    set_imports_aside()
    in_memory = shared is not None and shared.loaded
    if not in_memory and (load.stream or load.memory is not None):
        memory = load.memory or "auto"
        limit = memory_to_stream_in(
            files,
            memory=memory,
            stream=load.stream,
            dtype=load.dtype,
            device=load.device,
            sharers=load.sharers,
        )
        if limit is not None and (streamed := _streamed(where, load, limit, opened)) is not None:
            return LocalModel(streamed, load, score)
    peft = None if load.peft is None else os.fspath(load.peft)
    if load.parallel == "fsdp" and peft is not None:
        from wmdp_fast.models.sharded_layers import load_sharded_with_adapter

        sharded = load_sharded_with_adapter(
            where, peft, opened=opened, revision=load.revision, dtype=load.dtype, device=load.device
        )
        return LocalModel(sharded, load, score)
    loaded = load_model(
        where,
        revision=load.revision,
        dtype=load.dtype,
        device=load.device,
        peft=peft,
        trust_remote_code=load.trust_remote_code,
        allow_missing=load.allow_missing,
        opened=opened,
        shared=shared,
        parallel=load.parallel,
    )
    return LocalModel(loaded, load, score)


def _streamed(where: str, load: LoadOptions, limit: int, opened: TokenizerOnly) -> LoadedModel | None:
    """A model that is streamed; None if it cannot be and nobody has asked for it, with a warning."""
    from wmdp_fast.models.fits import download
    from wmdp_fast.models.load import load_streamed

    asked = load.stream or load.memory not in ("auto", None)
    said = f"{where} does not fit into the memory that is free"
    try:
        _refuse_delta(where)
        download(opened.files, where)
        streamed = load_streamed(
            where,
            limit,
            opened=opened,
            revision=load.revision,
            dtype=load.dtype,
            device=load.device,
            peft=None if load.peft is None else os.fspath(load.peft),
        )
    except ModelError as error:
        if asked:
            raise
        warnings.warn(f"{said}, and cannot be streamed: {error}", WmdpFastWarning, stacklevel=2)
        return None
    if not asked:
        about = "its layers are read when their turn comes (memory, stream)"
        warnings.warn(f"{said}: {about}", WmdpFastWarning, stacklevel=2)
    return streamed


def _refuse_delta(where: str) -> None:
    """Raises ModelError for a model whose weights are not those of its checkpoint."""
    if parts_of(where)[1] is not None:
        raise ModelError(
            f"{where} is a base with a delta on it, with which it is not streamed: `wmdp-fast apply-delta` makes a"
            " checkpoint of the two"
        )


def _in_memory(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | str, load: LoadOptions, score: ScoreOptions
) -> LocalModel:
    from wmdp_fast.models.load import wrap_model
    from wmdp_fast.models.tokenizer_only import load_tokenizer
    from wmdp_fast.scoring.local import LocalModel

    return LocalModel(wrap_model(model, load_tokenizer(tokenizer)), load, score)


def _tokenizer_of(load: LoadOptions, caller: str) -> PreTrainedTokenizerBase | str:
    """The tokenizer given with a model in memory; raises ValueError without one."""
    tokenizer = _named(load.tokenizer)
    if tokenizer is None:
        raise ValueError(f"a model in memory needs its tokenizer: {caller}(model, tokenizer=..., tasks=...)")
    return tokenizer


def _refuse_in_memory(load: LoadOptions) -> None:
    """Raises if an option was given that only loading can follow."""
    given = {
        "revision": load.revision is not None,
        "peft": load.peft is not None,
        "dtype": load.dtype != "auto",
        "device": load.device != "auto",
        "memory": load.memory not in ("auto", None),
        "stream": load.stream,
    }
    if unfit := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(unfit)} cannot be changed for a model that is already in memory")


def _tokenizer_only(where: str, load: LoadOptions) -> ReadsTokens:
    from wmdp_fast.models.tokenizer_only import load_tokenizer_only

    return load_tokenizer_only(
        parts_of(where)[0],
        tokenizer=_named(load.tokenizer),
        revision=load.revision,
        trust_remote_code=load.trust_remote_code,
    )


def _named(
    tokenizer: PreTrainedTokenizerBase | str | PathLike[str] | None,
) -> PreTrainedTokenizerBase | str | None:
    """The same, with a path as text."""
    return os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer
