"""Where a model tells forget data from retain data: activation norms and separation, layer by layer.

Two choices of RMU depend on the model: the layer whose output is steered, and how far. What can be measured before
anything is trained is measured here, in one pass without gradients.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.data.corpora import find_corpus
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.decoder import decoder_of, record_outputs
from wmdp_fast.models.load import LoadedModel, evaluation_mode, load_model
from wmdp_fast.models.row_length import cuts_for, length_rules
from wmdp_fast.models.threads import computing
from wmdp_fast.models.vocabulary import refuse_unknown_in_corpus
from wmdp_fast.prompts.documents import CorpusTokens, load_corpus
from wmdp_fast.runtime.tables import in_columns
from wmdp_fast.unlearning.rmu.config import AUTO_FACTOR, RMUConfig
from wmdp_fast.unlearning.rmu.pilot import STEPS, Trial
from wmdp_fast.unlearning.rmu.pilot import pilot as run_pilots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from wmdp_fast.models.decoder import Decoder

DEFAULT_DOCUMENTS = 128
DEFAULT_MAX_LENGTH = 512
_TOKEN_BUDGET = 4096

# The paper (arXiv:2403.03218) searched layers from 3 on.
_LOWEST = 3
# Separability that counts as no less than another.
_AS_GOOD = 0.02


@dataclass(frozen=True)
class LayerProfile:
    """What a layer's output looks like.

    Means are over the real tokens of all documents but the first token of each: that one, BOS or not, has an activation
    many times larger in most models, which is the same in all documents.

    Attributes:
        layer: Its number, from 0.
        forget_norm: Mean Euclidean norm of the residual stream on forget data.
        retain_norm: The same on retain data.
        forget_first_norm: Mean norm at the first token of forget documents.
        retain_first_norm: The same of retain documents.
        mean_distance: 1 minus the cosine between the mean activations on forget and on retain data.
        separability: How often a forget token lies farther than a retain token along the difference of the means (the
            area under the ROC curve; 0.5 is chance). The means are of one half of the documents, the tokens of the
            other.
    """

    layer: int
    forget_norm: float
    retain_norm: float
    forget_first_norm: float
    retain_first_norm: float
    mean_distance: float
    separability: float


@dataclass(frozen=True)
class ModelProfile:
    """The profile of a model, and the settings that follow from it.

    Attributes:
        model: The model's name.
        forget: Name of the forget corpus.
        retain: Name of the retain corpus.
        forget_tokens: Tokens of forget data that were read.
        retain_tokens: Tokens of retain data that were read.
        layers: One profile a layer, from below.
        factor: How many times the mean norm the suggested coefficient is.
        layer_id: The suggested layer.
        update_layer_ids: The layers to train with it.
        steering_coeff: The suggested steering coefficient.
        trials: Short runs with these settings, if they were asked for.
        options: Options of `wmdp-fast unlearn` that go with how the corpora and the model were read.
    """

    model: str
    forget: str
    retain: str
    forget_tokens: int
    retain_tokens: int
    layers: tuple[LayerProfile, ...]
    factor: float
    layer_id: int
    update_layer_ids: tuple[int, ...]
    steering_coeff: float
    trials: tuple[Trial, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def config(self) -> RMUConfig:
        """Suggested settings: those of the pilot that worked, else the defaults for what was not measured."""
        config = RMUConfig(
            layer_id=self.layer_id,
            update_layer_ids=self.update_layer_ids,
            steering_coeff=float(f"{self.steering_coeff:.3g}"),
        )
        if self.trials and self.trials[-1].works:
            last = self.trials[-1]
            config = replace(config, learning_rate=last.learning_rate, alpha=last.alpha, max_steps=last.steps)
        return config

    def command(self, output: str = "OUTPUT") -> str:
        """The whole `wmdp-fast unlearn` command with the suggested settings."""
        config = self.config
        words = ["wmdp-fast", "unlearn", self.model, "--forget", self.forget, "--retain", self.retain, *self.options]
        words += ["--layer-id", str(config.layer_id), "--update-layer-ids", ",".join(map(str, self.update_layer_ids))]
        for name in ("steering_coeff", "alpha", "learning_rate", "max_steps"):
            words += [f"--{name.replace('_', '-')}", f"{getattr(config, name):g}"]
        return shlex.join([*words, "--output", output])

    @property
    def advice(self) -> str:
        """What is known of the learning rate, alpha and steps of `command`."""
        if not self.trials:
            return (
                "Learning rate, alpha and steps are the defaults, which were not tried on this model and may do"
                " nothing: --pilot tries some."
            )
        if self.trials[-1].works:
            return "Learning rate, alpha and steps are those of the pilot that steered forget and kept retain data."
        return (
            "No pilot steered forget data and kept retain data, so learning rate, alpha and steps are the defaults and"
            " will not do: steer another layer, give more retain text, or look further with `wmdp-fast sweep`."
        )

    @property
    def rule(self) -> str:
        """Where the suggestion comes from."""
        low, high = _searched(len(self.layers))
        return (
            f"layer: the lowest of {low} to {high} (the paper searched from {_LOWEST} on, and published settings steer"
            f" layers of the lower half) whose separability is within {_AS_GOOD} of the best there; a rule of thumb of"
            f" this package. Coefficient: {self.factor:g} x the mean norm of forget activations, as Adaptive RMU"
            " (arXiv:2408.06223) has it."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain objects."""
        return {**asdict(self), "rule": self.rule, "command": self.command(), "advice": self.advice}

    def table(self) -> str:
        """The profile as text, with the suggestion below."""
        columns = ("layer", "norm forget", "retain", "first token forget", "retain", "mean distance", "separability")
        rows = [
            (
                f"{'>' if one.layer == self.layer_id else ' '} {one.layer}",
                f"{one.forget_norm:.3g}",
                f"{one.retain_norm:.3g}",
                f"{one.forget_first_norm:.3g}",
                f"{one.retain_first_norm:.3g}",
                f"{one.mean_distance:.4f}",
                f"{one.separability:.3f}",
            )
            for one in self.layers
        ]
        updated = ",".join(map(str, self.update_layer_ids))
        return "\n".join(
            [
                f"{self.model}: {self.forget_tokens:,} tokens of {self.forget},"
                f" {self.retain_tokens:,} of {self.retain}",
                "",
                *in_columns([columns, *rows], "r" * len(columns), has_header=True),
                "",
                f"suggested: --layer-id {self.layer_id} --update-layer-ids {updated}"
                f" --steering-coeff {self.steering_coeff:.3g}",
                self.rule,
                "",
                *map(str, self.trials),
                *([""] if self.trials else []),
                self.command(),
                self.advice,
            ]
        )


def profile_layers(
    model: str | LoadedModel,
    forget: str | PathLike[str] | CorpusTokens,
    retain: str | PathLike[str] | CorpusTokens = "wikitext",
    *,
    num_documents: int = DEFAULT_DOCUMENTS,
    max_length: int = DEFAULT_MAX_LENGTH,
    min_chars: int = 0,
    raw_lines: bool = False,
    field: str = "text",
    data: str | PathLike[str] | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    token_budget: int = _TOKEN_BUDGET,
    factor: float = AUTO_FACTOR,
    pilot: bool = False,
    note: Callable[[str], None] | None = None,
) -> ModelProfile:
    """Measures every layer of a model on forget and retain data.

    Args:
        model: A folder, a name on the hub, or a loaded model.
        forget: What `load_corpus` takes, or tokens.
        retain: The same.
        num_documents: Most documents of each corpus.
        max_length: Maximum tokens of a document.
        min_chars: Documents of no more characters are left out.
        raw_lines: Whether lines of a forget corpus are documents as they stand.
        field: Key of the text in both corpora.
        data: Folder with the hub's corpora, in place of the hub.
        revision: Branch, tag or commit of the model.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: Whether to run code that comes with the model.
        token_budget: Maximum tokens per forward pass, padding included.
        factor: The suggested coefficient is so many times the mean norm.
        pilot: Whether to try learning rates on the suggested layer with short runs; the model is as before afterwards.
        note: Takes a line for each of these.

    Raises:
        DataUnavailableError: The model or a corpus is missing or out of reach.
        DatasetError: A corpus file cannot be read.
        ModelError: The model cannot be loaded, has no list of layers, or overflows.
        ValueError: A corpus has fewer than two documents of two tokens.

    Example:
        >>> from wmdp_fast import demo, layers
        >>> corpora = (demo.corpus_path("forget"), demo.corpus_path("retain"))
        >>> profile = layers(str(demo.model_path()), *corpora, num_documents=8)
        >>> len(profile.layers) > 2
        True
    """
    for corpus in (forget, retain):
        if not isinstance(corpus, CorpusTokens):
            # One that is not there should not cost the loading of a model.
            find_corpus(corpus, data=data)
    loaded = (
        load_model(model, revision=revision, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        if isinstance(model, str)
        else model
    )
    width = min(max_length, loaded.max_length)
    reading: dict[str, Any] = {
        "max_length": width,
        "num_documents": max(num_documents, STEPS * RMUConfig.batch_size) if pilot else num_documents,
        "min_chars": min_chars,
        "field": field,
        "data": data,
    }
    forget = _read(loaded, forget, raw_lines=raw_lines, **reading)
    retain = _read(loaded, retain, **reading)
    halves = [_halves(corpus, num_documents, width) for corpus in (forget, retain)]
    decoder = decoder_of(loaded.model)  # type: ignore[arg-type]
    with evaluation_mode(loaded.model):
        decoder.refuse_other_orders()
        layers = _measure(decoder, halves, loaded.device, token_budget)
    layer_id, update_layer_ids, coefficient = suggest(layers, factor)
    forget_tokens, retain_tokens = (sum(len(row) for half in corpus for row in half) for corpus in halves)
    found = ModelProfile(
        model=loaded.name,
        forget=forget.name,
        retain=retain.name,
        forget_tokens=forget_tokens,
        retain_tokens=retain_tokens,
        layers=tuple(layers),
        factor=factor,
        layer_id=layer_id,
        update_layer_ids=update_layer_ids,
        steering_coeff=coefficient,
        options=_unlearn_options(
            data=data,
            field=field,
            min_chars=min_chars,
            raw_lines=raw_lines,
            max_length=max_length,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
        ),
    )
    if not pilot:
        return found
    return _with_pilots(found, loaded, forget, retain, width, note or (lambda _line: None))


def _read(loaded: LoadedModel, corpus: str | PathLike[str] | CorpusTokens, **options: Any) -> CorpusTokens:
    """A corpus as tokens that the model knows; `options` are those of `load_corpus`."""
    if not isinstance(corpus, CorpusTokens):
        corpus = load_corpus(corpus, loaded.tokenizer, **options)
    refuse_unknown_in_corpus(loaded.model, loaded.tokenizer, corpus)
    return corpus


def _with_pilots(
    found: ModelProfile,
    loaded: LoadedModel,
    forget: CorpusTokens,
    retain: CorpusTokens,
    max_length: int,
    note: Callable[[str], None],
) -> ModelProfile:
    """A profile with short runs on the layer that it suggests."""
    epochs = -(-STEPS * RMUConfig.batch_size // min(len(forget), len(retain)))
    config = replace(found.config, max_steps=STEPS, max_length=max_length, retain_max_length=max_length, epochs=epochs)
    trials = tuple(run_pilots(loaded, forget, retain, config, note=note))
    more = ("--epochs", str(epochs)) if epochs > 1 else ()
    return replace(found, trials=trials, options=(*found.options, *more))


def _unlearn_options(**given: Any) -> tuple[str, ...]:
    """How `wmdp-fast unlearn` is told to read the same: what is not its default."""
    defaults = {"field": "text", "min_chars": 0, "raw_lines": False, "max_length": 512, "dtype": "auto"}
    defaults |= {"device": "auto", "trust_remote_code": False, "data": None, "revision": None}
    words: list[str] = []
    for name, value in given.items():
        if value == defaults[name]:
            continue
        option = f"--{name.replace('_', '-')}"
        if name == "trust_remote_code":
            words.append(option)
        elif name == "raw_lines":
            words += [option, "yes"]
        else:
            words += [option, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
        if name == "max_length":
            words += ["--retain-max-length", str(value)]
    return tuple(words)


def suggest(layers: Sequence[LayerProfile], factor: float) -> tuple[int, tuple[int, ...], float]:
    """The layer, the layers to train and the steering coefficient that `ModelProfile.rule` gives."""
    low, high = _searched(len(layers))
    searched = layers[low : high + 1]
    best = max(one.separability for one in searched)
    chosen = next(one for one in searched if one.separability >= best - _AS_GOOD)
    return chosen.layer, tuple(range(max(0, chosen.layer - 2), chosen.layer + 1)), factor * chosen.forget_norm


def separability(forget: NDArray[np.floating[Any]], retain: NDArray[np.floating[Any]]) -> float:
    """How often a value of `forget` is above one of `retain`, ties counting half: the area under the ROC curve."""
    ordered = np.sort(retain)
    below = np.searchsorted(ordered, forget, side="left")
    not_above = np.searchsorted(ordered, forget, side="right")
    return float((below + not_above).mean() / (2 * len(retain)))


def _searched(num_layers: int) -> tuple[int, int]:
    """The lowest and highest layer that may be suggested."""
    middle = num_layers // 2
    return min(_LOWEST, middle), middle


def _halves(corpus: CorpusTokens, most: int, max_length: int) -> list[list[NDArray[np.int64]]]:
    """Every other document: those that give the means, and those that are told apart by them."""
    rows = [corpus.document(index)[:max_length] for index in range(min(len(corpus), most))]
    rows = [row for row in rows if len(row) > 1]
    if len(rows) < 2:
        raise ValueError(
            f"{corpus.name} has fewer than two documents of two tokens or more; a profile needs some of both"
        )
    return [rows[0::2], rows[1::2]]


class _Sums:
    """Running sums over the activations of one layer on one corpus."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.vector = torch.zeros(width, dtype=torch.float64, device=device)
        self.norms = torch.zeros(2, dtype=torch.float64, device=device)  # tokens, first tokens
        self.counts = [0, 0]
        self.projections: list[Tensor] = []

    def add(self, hidden: Tensor, mask: Tensor, direction: Tensor | None) -> None:
        """Adds a batch: activations [B, S, d] and which of them are real [B, S]."""
        first = hidden[:, 0].float()
        tokens = hidden[:, 1:][mask[:, 1:]].float()
        self.vector += tokens.sum(0, dtype=torch.float64)
        norms = torch.stack([tokens.norm(dim=-1).sum(dtype=torch.float64), first.norm(dim=-1).sum(dtype=torch.float64)])
        self.norms += norms
        self.counts = [self.counts[0] + len(tokens), self.counts[1] + len(first)]
        if direction is not None:
            self.projections.append(tokens @ direction)

    @property
    def mean(self) -> Tensor:
        return self.vector / max(self.counts[0], 1)


def _measure(
    decoder: Decoder, halves: list[list[list[NDArray[np.int64]]]], device: torch.device, token_budget: int
) -> list[LayerProfile]:
    """One pass over both corpora: first the halves that give the means, then those that are told apart."""
    sums = [[_Sums(decoder.hidden_size, device) for _ in decoder.layers] for _ in halves]
    directions: list[Tensor | None] = [None] * len(decoder.layers)
    for half in (0, 1):
        for corpus, documents in enumerate(halves):
            cuts = _cuts(decoder.model, documents[half])
            for input_ids, mask in _batches(documents[half], token_budget, cuts, device):
                with computing(), record_outputs(decoder.layers) as outputs:
                    decoder.model(input_ids=input_ids, attention_mask=mask.long(), use_cache=False)
                for layer_sums, hidden, direction in zip(sums[corpus], outputs, directions, strict=True):
                    layer_sums.add(hidden, mask, direction)
        if half == 0:
            pairs = zip(sums[0], sums[1], strict=True)
            directions = [(forget.mean - retain.mean).float() for forget, retain in pairs]
    return [_profile(layer, forget, retain) for layer, (forget, retain) in enumerate(zip(*sums, strict=True))]


def _profile(layer: int, forget: _Sums, retain: _Sums) -> LayerProfile:
    norms = [(one.norms.cpu() / torch.tensor(one.counts, device="cpu")).tolist() for one in (forget, retain)]
    if not np.isfinite(norms).all():
        raise ModelError(f"the output of layer {layer} is not finite in this dtype; try dtype bfloat16 or float32")
    cosine = torch.nn.functional.cosine_similarity(forget.mean, retain.mean, dim=0)
    projected = [torch.cat(one.projections).cpu().numpy() for one in (forget, retain)]
    return LayerProfile(
        layer=layer,
        forget_norm=norms[0][0],
        retain_norm=norms[1][0],
        forget_first_norm=norms[0][1],
        retain_first_norm=norms[1][1],
        mean_distance=1.0 - float(cosine),
        separability=separability(*projected),
    )


def _cuts(model: nn.Module, documents: list[NDArray[np.int64]]) -> list[int]:
    """Lengths at which batches are cut, so that no document changes what the model makes of others."""
    longest = max(map(len, documents))
    return cuts_for(length_rules(model, longest), longest)


def _batches(
    documents: list[NDArray[np.int64]], token_budget: int, cuts: Sequence[int], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Documents side by side, the longest first, filled up on the right: ids [B, S] and which of them are real."""
    rest = sorted(documents, key=len, reverse=True)
    while rest:
        width = len(rest[0])
        least = max((cut for cut in cuts if cut <= width), default=0)
        count = min(max(1, token_budget // width), sum(len(row) >= least for row in rest))
        rows, rest = rest[:count], rest[count:]
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.bool_)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = True
        yield torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
