"""What a run works on: the model, or as much of it as is needed, and the tokens of its corpora."""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints import checkpoint, tensor_file
from wmdp_fast.models.decoder import Decoder, decoder_of
from wmdp_fast.models.partial import load_first_layers, load_layers_from
from wmdp_fast.models.tokenizer_only import tokenizer_of
from wmdp_fast.prompts.documents import Corpus, CorpusTokens, rust_tokenizer
from wmdp_fast.unlearning.batches import num_batches
from wmdp_fast.unlearning.budget import budget_tokens
from wmdp_fast.unlearning.corpus_doubts import corpus_doubts, cut_corpora
from wmdp_fast.unlearning.held_out import trained_on

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from os import PathLike

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast._rust import Tokenizer
    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.unlearning.budget_request import BudgetRequest
    from wmdp_fast.unlearning.corpora_ahead import CorporaAhead
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.shared_batches import SharedBatches
    from wmdp_fast.unlearning.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model that is to be unlearned.

    Attributes:
        notes: What is to be known of how the model was loaded, as `LoadedModel.warnings`.
        said: What evaluations of it have warned of, which the next one need not say again.
        streamed: The model with all layers, of which those that a run trains, and those between, are in memory and the
            others are read when they are run; None if all that is needed is in memory.
        held: What enters the first trained layer of batches to come, where the layers below it are not in memory.
            Whoever needs that memory may take it: what is missing is computed again.
        shared: The processes that hold its layers together; None if this one has all.
    """

    name: str
    decoder: Decoder
    whole: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    base: checkpoint.Checkpoint | None
    commit: str | None
    pad_id: int
    num_layers: int
    notes: tuple[str, ...] = ()
    said: set[str] = field(default_factory=set)
    streamed: StreamedModel | None = None
    held: dict[Hashable, Tensor] = field(default_factory=dict)
    shared: SharedBatches | None = None


@dataclass(frozen=True)
class Streaming:
    """How a model is held whose layers are read when they are run.

    Attributes:
        memory: Bytes that the process may take.
        kept: The numbers of the layers that are in memory all the time: from the first trained to the steered one.
    """

    memory: int
    kept: range


@dataclass(frozen=True)
class Corpora:
    """The tokens of each topic.

    Attributes:
        not_held_out: A sentence for each text of the evaluations that shares a file or documents with them.
        doubts: Sentences on what about them the user may not have meant.
        cut: Sentences on those that end while their documents are cut off.
        general: What the run's distance from the original model is measured on, if that is limited.
    """

    forget: list[CorpusTokens]
    retain: list[CorpusTokens]
    not_held_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    general: CorpusTokens | None = None


def open_source(
    model: str | PathLike[str] | PreTrainedModel,
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    device: str,
    trust_remote_code: bool,
    *,
    whole: bool,
    streaming: Streaming | None = None,
    shared: SharedBatches | None = None,
) -> Source:
    """Loads what is needed of the model, or takes the one in memory.

    Args:
        model: A folder, a name on the hub, or a model in memory.
        config: The settings, which say what is needed.
        tokenizer: Its tokenizer, if it is not the folder's own.
        revision: Of the model on the hub.
        device: The device to run on.
        trust_remote_code: Whether code that comes with the model may run.
        whole: Whether all of it is needed.
        streaming: Which layers are in memory if the others are read when they are run; None if all are to be.
        shared: The processes that are to hold its layers together; None if this one is to have all.
    """
    from wmdp_fast.models.load import load_model

    if not isinstance(model, (str, os.PathLike)):
        given = {"revision": revision is not None, "device": device != "auto", "dtype": config.dtype != "auto"}
        if unfit := [name for name, is_given in given.items() if is_given]:
            raise ValueError(f"{', '.join(unfit)} cannot be changed for a model that is already in memory")
        return source_in_memory(model, tokenizer)
    name = os.fspath(model)
    if shared is not None:
        part = _part_of(name, config, tokenizer, revision, device, trust_remote_code)
        return replace(part, shared=shared)
    if streaming is not None:
        first = load_layers_from(
            name,
            streaming.kept,
            streaming.memory,
            headless=not whole,
            revision=revision,
            dtype=config.dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    elif whole or config.depth is None:
        loaded = load_model(
            name,
            revision=revision,
            dtype=config.dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            tokenizer=tokenizer,
        )
        held: Any = loaded.model
        base = None if loaded.path is None else checkpoint.Checkpoint.open(loaded.path)
        return _described(
            name, decoder_of(held), held, loaded.tokenizer, base=base, commit=loaded.sha, notes=loaded.warnings
        )
    else:
        first = load_first_layers(
            name,
            config.depth,
            revision=revision,
            dtype=config.dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    if tokenizer is None:
        tokenizer = tokenizer_of(name, first.folder, first.commit, trust_remote_code=trust_remote_code)
    return _described(
        name,
        first.decoder,
        None,
        tokenizer,
        base=checkpoint.Checkpoint.open(first.folder),
        commit=first.commit,
        num_layers=first.num_layers,
        notes=first.notes,
        streamed=first.streamed,
    )


def _part_of(
    name: str,
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
    device: str,
    trust_remote_code: bool,
) -> Source:
    """This process's part of a model; arguments are those of `open_source`."""
    from wmdp_fast.models.sharded_layers import load_sharded

    part = load_sharded(name, revision=revision, dtype=config.dtype, device=device, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        tokenizer = tokenizer_of(name, part.folder, part.commit, trust_remote_code=trust_remote_code)
    base = checkpoint.Checkpoint.open(part.folder)
    return _described(
        name, decoder_of(part.model), part.model, tokenizer, base=base, commit=part.commit, notes=part.notes
    )


def source_in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Source:
    """A model in memory, of which no files are known.

    Raises:
        ModelError: Its decoder layers are not found.
    """
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return _described(name, decoder_of(model), model, tokenizer, base=None, commit=None)


def _described(
    name: str,
    decoder: Decoder,
    whole: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    base: checkpoint.Checkpoint | None,
    commit: str | None,
    num_layers: int | None = None,
    notes: tuple[str, ...] = (),
    streamed: StreamedModel | None = None,
) -> Source:
    # The original pads with EOS.
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        eos = decoder.model.config.get_text_config().eos_token_id
    pad_id = eos[0] if isinstance(eos, list) else eos
    return Source(
        name=name,
        decoder=decoder,
        whole=whole,
        tokenizer=tokenizer,
        base=base,
        commit=commit,
        pad_id=0 if pad_id is None else int(pad_id),
        num_layers=num_layers or len(decoder.layers),
        notes=notes,
        streamed=streamed,
    )


def read_corpora(
    request: Request, tokenizer: PreTrainedTokenizerBase | None, name: str, ahead: CorporaAhead | None = None
) -> Corpora:
    """The tokens of all corpora; what is named twice with the same limits is read once, and is the same object.

    Args:
        request: What the user asked for.
        tokenizer: The model's, or None if it has none: tokens may be given ready-made.
        name: The model's, for messages.
        ahead: What was begun ahead with the same tokenizer, if anything was.
    """
    config, topics, wanted = request.config, request.topics, request.documents_read
    read: dict[Any, CorpusTokens] = {}

    @functools.cache
    def encoder() -> Tokenizer:
        if tokenizer is None:
            raise ValueError(f"{name} has no tokenizer")
        return rust_tokenizer(tokenizer) if ahead is None else ahead.encoder()

    def tokens(corpus: Corpus, max_length: int, *, raw_lines: bool) -> CorpusTokens:
        if isinstance(corpus, CorpusTokens):
            found = corpus
        else:
            key = (os.fspath(corpus), max_length, raw_lines)
            if key not in read:
                read[key] = _load(
                    corpus, tokenizer, encoder, name, max_length, wanted, request, ahead, raw_lines=raw_lines
                )
            found = read[key]
        empty = int((found.offsets[1:] == found.offsets[:-1]).sum())
        if len(found) == 0 or empty:
            what = "no documents" if len(found) == 0 else f"{empty} documents without tokens"
            raise ValueError(f"the corpus {found.name} has {what}; leave them out, e.g. with min_chars")
        return found

    forget = [
        tokens(corpus, topic.max_length, raw_lines=topic.raw_lines)
        for corpus, topic in zip(request.forget, topics, strict=True)
    ]
    retain = [tokens(corpus, config.retain_max_length, raw_lines=False) for corpus in request.retain]
    for kinds, kind, found in ((config.forget_kinds, "forget", forget), (config.retain_kinds, "retain", retain)):
        for corpus in found:
            _check_kind(config, corpus, kind, kinds)
    shared = tuple(trained_on(request, request.eval_text))
    general = None if request.budget is None else _general_text(request, request.budget, tokenizer, encoder, name)
    limits = [*(topic.max_length for topic in topics), *(config.retain_max_length for _ in retain)]
    doubts, cut = corpus_doubts(forget, retain, tokenizer), cut_corpora([*forget, *retain], limits, wanted)
    every_retain = retain * len(topics) if len(retain) == 1 else retain
    return Corpora(forget, every_retain, shared, tuple(doubts), tuple(cut), general)


def _general_text(
    request: Request,
    budget: BudgetRequest,
    tokenizer: PreTrainedTokenizerBase | None,
    encoder: Callable[[], Tokenizer],
    name: str,
) -> CorpusTokens:
    """What the distance from the original model is measured on.

    Raises:
        ValueError: It is one of the corpora, or there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, so kl_text cannot be read; pass tokenizer=...")
    if shared := trained_on(request, [budget.text]):
        raise ValueError(
            f"max_kl is measured on text that is neither unlearned nor trained to be kept, and {shared[0]}; pass"
            " another kl_text"
        )
    return budget_tokens(budget, encoder())


def _check_kind(config: TrainingConfig, corpus: CorpusTokens, called: str, kinds: Sequence[str]) -> None:
    """Raises ValueError if a method cannot use what a corpus is of."""
    if corpus.kind in kinds:
        return
    has = {"documents": "documents", "answers": "prompts with responses"}
    wants = {
        "documents": f"give documents, with the text of each under `{config.field}` (--field)",
        "answers": "give records with `prompt` and `response`",
    }
    raise ValueError(
        f"the {called} corpus {corpus.name} has {has[corpus.kind]}, which {config.method_name} cannot use, since"
        f" {config.why_kinds}: {wants[kinds[0]]}"
    )


def base_id(source: Source) -> str | None:
    """The model's name on the hub: the one given, or the one that its configuration has; None if there is none.

    A card's `base_model` may be nothing else: the path of a folder means nothing to others, and may say more than it
    should.
    """
    if source.commit is not None:
        return source.name
    candidates = [source.decoder.model.config.name_or_path]
    if source.base is not None and (source.base.folder / "config.json").is_file():
        # Transformers puts the folder in its place when it loads.
        config = json.loads((source.base.folder / "config.json").read_text(encoding="utf-8"))
        candidates.insert(0, config.get("_name_or_path", ""))
    for name in candidates:
        if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not os.path.exists(name):  # noqa: PTH110
            return name
    return None


def tokens_digest(corpus: CorpusTokens, documents: int | None = None) -> str:
    """A hash of the tokens of a corpus's first documents, or of all; of the same texts another tokenizer has others."""
    offsets = corpus.offsets if documents is None else corpus.offsets[: documents + 1]
    parts = {"offsets": offsets.tobytes(), "tokens": corpus.tokens[: offsets[-1]].tobytes()}
    if corpus.prompt_lengths is not None:
        parts["prompt_lengths"] = corpus.prompt_lengths[: len(offsets) - 1].tobytes()
    return tensor_file.digest(parts)


def asked_how(request: Request) -> dict[str, str]:
    """How the questions of a run's evaluations are asked, by option: what a continued run must agree in."""
    return {name: str(value) for name, value in request.eval_options.items()}


def steps_available(config: TrainingConfig, corpora: Corpora) -> int:
    """Steps over all topics until the corpora end. In reference mode as the original counts, which may be fewer.

    Raises:
        ValueError: They are too short for a single step.
    """
    shortest = min(num_batches(corpus, config.batch_size) for corpus in (*corpora.forget, *corpora.retain))
    per_topic = shortest * config.epochs // config.grad_accum
    if per_topic == 0:
        raise ValueError(
            f"the shortest corpus has {shortest} batches of {config.batch_size} documents, too few for grad_accum"
            f" {config.grad_accum}; give more documents, or lower batch_size or grad_accum"
        )
    # The original takes the number of batches of the shortest corpus for the steps over all topics.
    return per_topic if config.reference else per_topic * len(corpora.forget)


def _load(
    corpus: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    encoder: Callable[[], Tokenizer],
    name: str,
    max_length: int,
    num_documents: int,
    request: Request,
    ahead: CorporaAhead | None,
    *,
    raw_lines: bool,
) -> CorpusTokens:
    from wmdp_fast.prompts.documents import load_corpus

    if tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, so the corpus {corpus} cannot be read; pass tokenizer=...")
    read: CorpusTokens = load_corpus(
        os.fspath(corpus),
        tokenizer,
        max_length=max_length,
        num_documents=num_documents,
        min_chars=request.config.min_chars,
        raw_lines=raw_lines,
        field=request.config.field,
        chat_template=request.config.chat_template,
        data=request.data,
        encoder=encoder,
        ahead=None if ahead is None else ahead.take,
    )
    return read
