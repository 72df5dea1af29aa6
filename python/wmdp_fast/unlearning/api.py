"""Unlearning from beginning to end: `unlearn`. Importing this imports no torch: corpora are read while it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.runtime.files import check_folder
from wmdp_fast.runtime.garbage import not_collecting, set_imports_aside
from wmdp_fast.unlearning import stopping
from wmdp_fast.unlearning.budget_request import budget_request
from wmdp_fast.unlearning.corpora_ahead import corpora_ahead
from wmdp_fast.unlearning.request import Request
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.training_config import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.prompts.documents import Corpus
    from wmdp_fast.unlearning.result import UnlearnResult


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
    eval_tasks: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
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
        eval_options: Further options of `wmdp_fast.evaluate` that say how questions are asked and scored, such as
            `limit` and `token_budget`.
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
            `fsdp`, each with a part of every layer's weights and some documents of every batch. For methods with `lora`
            and `save_adapter`, but RMU. All of them must call this; the first one prints and writes, and the results of
            the others have no `output`.
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
        TypeError: `config` is something else.
        ValueError: A setting is impossible.

    Example:
        >>> from wmdp_fast import RMUConfig, demo, unlearn
        >>> config = RMUConfig(layer_id=2, max_steps=2, max_length=64, retain_max_length=64)
        >>> corpora = {"forget": demo.corpus_path("forget"), "retain": demo.corpus_path("retain")}
        >>> result = unlearn(demo.model_path(), **corpora, config=config, progress=False)
        >>> result.steps, len(result.metrics)
        (2, 2)
    """
    config = checked_config(config)
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
    clock = PhaseClock()
    with corpora_ahead(
        request, model, tokenizer, clock, revision=revision, trust_remote_code=trust_remote_code
    ) as ahead:
        with clock("import"), not_collecting():
            from wmdp_fast.unlearning.one_run import one_run
        set_imports_aside()
        return one_run(
            request,
            model,
            tokenizer,
            clock,
            ahead,
            target=None if output is None else Path(output),
            resume=resume,
            revision=revision,
            device=device,
            trust_remote_code=trust_remote_code,
            cache=None if cache_trunk is None else Path(cache_trunk),
            cache_limit=limit,
            memory=memory,
            stream=stream,
            parallel=parallel,
        )


def checked_config(config: TrainingConfig | None) -> TrainingConfig:
    """The settings, those of RMU if there are none.

    Raises:
        TypeError: They are something else than an object of a method's configuration.
    """
    if config is None:
        return RMUConfig()
    if not isinstance(config, TrainingConfig):
        what = config.__name__ if isinstance(config, type) else f"a {type(config).__name__}"
        raise TypeError(f"config must be settings such as RMUConfig(layer_id=7), not {what}")
    return config


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


def listed_corpora(corpora: Corpus | Sequence[Corpus]) -> list[Corpus]:
    """One corpus or several as a list."""
    if isinstance(corpora, (str, os.PathLike, CorpusTokens)):
        return [corpora]
    return list(corpora)


def listed_names(given: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[str]:
    """Names and paths as a list; commas in a text separate several."""
    each = [given] if isinstance(given, (str, os.PathLike)) else given
    # A path object is never a task's name, even if it reads like one.
    several = (one.split(",") if isinstance(one, str) else [_as_path(os.fspath(one))] for one in each)
    return [name.strip() for names in several for name in names if name.strip()]


def _as_path(text: str) -> str:
    return text if os.sep in text else os.path.join(os.curdir, text)  # noqa: PTH118 (Path drops the leading dot)
