"""Fine-tuning of a model in memory that gets its own weights back: what an attacker does, or a user in good faith.

It has the parts of a run of unlearning (documents without padding, logits in pieces, float32 masters, factors by PEFT)
and the loss of the method `finetune`, without what makes a checkpoint of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from wmdp_fast.models.row_length import fresh_rotary
from wmdp_fast.models.threads import computing, only_user
from wmdp_fast.models.vocabulary import refuse_unknown_in_corpus
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning import divergence
from wmdp_fast.unlearning.adapter import weights_of
from wmdp_fast.unlearning.batch_reader import BatchReader
from wmdp_fast.unlearning.document_lengths import longest_document
from wmdp_fast.unlearning.method import Setup
from wmdp_fast.unlearning.methods.forget_retain import ForgetRetain
from wmdp_fast.unlearning.optim import optimizer_of, update
from wmdp_fast.unlearning.padding import why_padded
from wmdp_fast.unlearning.parameters import trained_parameters
from wmdp_fast.unlearning.source import Corpora, source_in_memory

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wmdp_fast.unlearning.methods.finetune import FinetuneConfig
    from wmdp_fast.unlearning.source import Source
    from wmdp_fast.unlearning.trained_weights import TrainedWeights


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step that was done.

    Attributes:
        number: Of the step, from 1.
        loss: What was minimized, of the step's documents before it.
        learning_rate: Its learning rate.
    """

    number: int
    loss: float
    learning_rate: float


def fine_tune(
    model: PreTrainedModel,
    documents: CorpusTokens,
    config: FinetuneConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Generator[Step, None, None]:
    """Trains a model on documents, in their order and over again, for `max_steps` steps.

    Memory beside the model: with LoRA the factors in float32 with their moments. Without it the gradients, a copy of
    the original parameters in their type, moments in float32, and float32 masters of what is narrower.

    Args:
        model: Trained in place. As soon as the iterator ends or is closed it is as it was, to the bit.
        documents: Of two tokens or more; see `picked`.
        config: The settings; `epochs` is not one of them here.
        tokenizer: The model's, for messages.

    Yields:
        Each step after it was done, while the model has its weights. LoRA factors are not merged into the weights.

    Raises:
        DivergedError: Numbers have become infinite or NaN.
        ImportError: LoRA needs PEFT.
        ModelError: The model lacks what is trained, has an adapter, or makes its logits in another way.
    """
    source, corpora = source_in_memory(model, tokenizer), Corpora([documents], [documents])
    refuse_unknown_in_corpus(source.decoder.model, tokenizer, documents)
    weights = weights_of(config, trained_parameters(config, source.decoder, source.whole, source.num_layers), source)
    longest = longest_document(config, config.topics(1), corpora, source.decoder.model)
    with only_user(model), fresh_rotary(model), weights.in_model(keep=False):
        setup = _setup(source, weights, corpora, config)
        method, batches = ForgetRetain(setup, config), setup.batches
        batches.packed = why_padded(method, source.decoder.model, batches, longest) is None
        yield from _steps(method, setup, weights, config)


def _steps(method: ForgetRetain, setup: Setup, weights: TrainedWeights, config: FinetuneConfig) -> Iterator[Step]:
    optimizer = optimizer_of(config, weights.parameters)
    while optimizer.steps < config.max_steps:
        gradients: dict[str, Tensor] = {}
        with computing(), weights.training(optimizer.steps, config.seed):
            loss, _ = method.retain_term(setup.batches.retain(0, optimizer.steps), gradients)
        norm = update(optimizer, gradients, config, total_steps=config.max_steps, device=weights.device)
        largest = divergence.largest_weight(weights.parameters.values())
        # One copy from the device.
        values = torch.stack([loss, norm, largest]).tolist()
        divergence.check_step(
            setup.name,
            optimizer.steps,
            {"loss": values[0], "grad_norm": values[1]},
            values[2],
            config,
            weights.dtype,
            what="fine-tuning",
        )
        yield Step(number=optimizer.steps, loss=values[0], learning_rate=optimizer.learning_rate)


def _setup(source: Source, weights: TrainedWeights, corpora: Corpora, config: FinetuneConfig) -> Setup:
    batches = BatchReader(
        forget_corpora=corpora.forget,
        retain_corpora=corpora.retain,
        max_lengths=[config.retain_max_length],
        retain_max_length=config.retain_max_length,
        batch_size=config.batch_size,
        grad_accum=1,
        pad_id=source.pad_id,
        device=weights.device,
    )
    return Setup(
        name=source.name,
        decoder=source.decoder,
        model=source.whole,
        trained=weights.parameters,
        originals=weights.originals,
        as_original=weights.as_original,
        batches=batches,
        total_steps=config.max_steps,
        cache=None,
        tokenizer=source.tokenizer,
    )


def picked(documents: CorpusTokens, numbers: Sequence[int]) -> CorpusTokens:
    """Some documents of a corpus, in the order of these numbers; without those of one token, which predict nothing."""
    lengths = np.diff(documents.offsets)
    places = [number for number in numbers if lengths[number] > 1]
    rows = [documents.document(number) for number in places]
    return CorpusTokens(
        documents.name,
        np.concatenate(rows) if rows else documents.tokens[:0],
        np.concatenate([[0], np.cumsum(lengths[places])]).astype(np.int64),
        documents.content_hash,
        documents.revision,
        None if documents.prompt_lengths is None else documents.prompt_lengths[places],
    )
