"""What can be wrong with a run, found out before weights are read: loading should not end in a misspelt name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wmdp_fast.models import locate
from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.models.load import parse_device, parse_dtype
from wmdp_fast.models.partial import first_layers_without_weights
from wmdp_fast.models.tokenizer_only import tokenizer_of
from wmdp_fast.unlearning import reporting
from wmdp_fast.unlearning.evaluations import check_chat_template
from wmdp_fast.unlearning.parameters import trained_parameters
from wmdp_fast.unlearning.source import read_corpora, steps_available

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.models.partial import FirstLayers
    from wmdp_fast.unlearning.corpora_ahead import CorporaAhead
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.source import Corpora
    from wmdp_fast.unlearning.training_config import TrainingConfig


def check(
    request: Request,
    model: str | PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    configs: Sequence[TrainingConfig],
    revision: str | None,
    device: str,
    trust_remote_code: bool,
    ahead: CorporaAhead | None = None,
) -> tuple[PreTrainedTokenizerBase | None, Corpora]:
    """Checks what needs no weights: trackers, layers, parameters, corpora, and whether these last for a step.

    Args:
        request: What the user asked for.
        model: A folder, a name on the hub, or a model in memory.
        tokenizer: Its tokenizer, if it is not the folder's own.
        configs: All settings that will be run.
        revision: Of the model on the hub.
        device: The device to run on.
        trust_remote_code: Whether code that comes with the model may run.
        ahead: Corpora that were begun ahead, if any were.

    Returns:
        The tokenizer, or None if the model has none, and the tokens of the corpora.

    Raises:
        ImportError: A tracker is not installed.
        ModelError: The model is not there, or lacks a layer or parameters.
        TemplateError: Questions are to go through a chat template that the tokenizer does not have.
        ValueError: A setting is impossible, or a corpus too short; and what `load_corpus` raises.
    """
    reporting.check_trackers(request.report_to)
    config = request.config
    if not isinstance(model, (str, os.PathLike)):
        name = getattr(model, "name_or_path", "") or type(model).__name__
    else:
        name = os.fspath(model)
        parse_dtype(config.dtype)
        parse_device(device)
        first = _without_weights(name, configs, revision=revision, trust_remote_code=trust_remote_code)
        if first is not None:
            _check_parameters(name, first.decoder, first.num_layers, configs)
        if tokenizer is None:
            files = locate.locate_model(name, revision=revision)
            tokenizer = None if ahead is None else ahead.tokenizer_in(files.folder)
            if tokenizer is None:
                tokenizer = tokenizer_of(name, files.folder, files.commit, trust_remote_code=trust_remote_code)
    if tokenizer is not None:
        check_chat_template(tokenizer, request.eval_options)
    begun = ahead if ahead is not None and ahead.tokenizer is tokenizer else None
    corpora = read_corpora(request, tokenizer, name, begun)
    steps_available(config, corpora)
    if not isinstance(model, (str, os.PathLike)):
        decoder = decoder_of(model)
        _check_parameters(name, decoder, len(decoder.layers), configs)
    return tokenizer, corpora


def _check_parameters(name: str, decoder: Decoder, num_layers: int, configs: Sequence[TrainingConfig]) -> None:
    for config in configs:
        config.check_depth(name, num_layers)
        trained_parameters(config, decoder, None, num_layers)


def _without_weights(
    name: str, configs: Sequence[TrainingConfig], *, revision: str | None, trust_remote_code: bool
) -> FirstLayers | None:
    """As many layers as any of the settings needs, without numbers; None where that cannot be built."""
    depths = [config.depth for config in configs if config.depth is not None]
    count = max(depths) if len(depths) == len(configs) else None
    return first_layers_without_weights(name, count, revision=revision, trust_remote_code=trust_remote_code)
