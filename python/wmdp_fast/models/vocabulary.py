"""Token ids that a model has no embedding for, found before the model runs.

A tokenizer with added tokens on a model that was not resized for them makes ids past the end of the embedding. On a CPU
that is an error from inside torch, on a GPU an assertion that takes the process's device with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast.checkpoints.weight_files import shown
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedTokenizerBase

    from wmdp_fast._rust import Requests
    from wmdp_fast.prompts.documents import CorpusTokens


def num_embeddings(model: torch.nn.Module) -> int | None:
    """How many token ids a model takes and gives, from 0 on; None if it does not say."""
    sizes = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            weight: Any = getattr(getattr(model, name)(), "weight", None)
        except (AttributeError, NotImplementedError):
            continue
        # Of quantized weights the shape is that of the packed bytes, and the module knows better.
        if weight is not None and weight.dim() == 2 and weight.is_floating_point():
            sizes.append(int(weight.shape[0]))
    return min(sizes, default=None)


def refuse_unknown_in_requests(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    requests: Requests,
    name_of: Callable[[int], str] = lambda question: f"question {question + 1}",
) -> None:
    """Raises ModelError if a prompt or an answer has a token that the model has no embedding for.

    Args:
        model: The model.
        tokenizer: Where the tokens are from, to name them.
        requests: What is to be asked.
        name_of: What to call a question, by its number from 0 over the whole run.
    """
    known = num_embeddings(model)
    if known is not None and (found := requests.token_beyond(known)) is not None:
        question, token = found
        raise ModelError(_about(token, known, name_of(question), tokenizer))


def refuse_unknown_in_corpus(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None, corpus: CorpusTokens
) -> None:
    """Raises ModelError if a document has a token that the model has no embedding for.

    Args:
        model: The model, with its head or without.
        tokenizer: Where the tokens are from, to name them.
        corpus: What is to be read.
    """
    known = num_embeddings(model)
    beyond = np.flatnonzero(corpus.tokens >= known) if known is not None else np.empty(0, np.int64)
    if known is not None and len(beyond):
        document = int(np.searchsorted(corpus.offsets, beyond[0], side="right"))
        raise ModelError(_about(int(corpus.tokens[beyond[0]]), known, f"{corpus.name}, document {document}", tokenizer))


def _about(token: int, known: int, where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    name = None if tokenizer is None else tokenizer.convert_ids_to_tokens(token)
    called = f" ({shown(name)})" if name is not None else ""
    return (
        f"{where} has token {token}{called}, but the model has embeddings for 0 to {known - 1} only: use the tokenizer"
        " that it was trained with, or give it rows by `model.resize_token_embeddings(len(tokenizer))` and train them"
    )
