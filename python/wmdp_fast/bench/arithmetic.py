"""The arithmetic that a scoring run needs, and how fast a machine does nothing but that."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from wmdp_fast.models.fused import linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from wmdp_fast._rust import TrieBatch

_PASSES = 5


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of one token and one readout; two for each multiplication and its addition.

    Attributes:
        per_token: Of the linear layers below the last one.
        per_readout: Of the last one, the projection onto the vocabulary.
        per_pair: Of attention, for each token that a token sees: its score and its share of the output, in all layers.
    """

    per_token: int
    per_readout: int
    per_pair: int


def linear_layers(model: torch.nn.Module) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The weights of a model's linear layers, each as [out, in], and that of its projection onto the vocabulary.

    Raises:
        ValueError: The model has other weights that tokens are multiplied with, such as those of experts.
    """
    from transformers.pytorch_utils import Conv1D

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    weights, known = [], {id(head.weight)}
    for module in model.modules():
        if module is head:
            continue
        if isinstance(module, torch.nn.Linear):
            weights.append(module.weight)
        elif isinstance(module, Conv1D):
            weights.append(module.weight.T)
        elif not isinstance(module, torch.nn.Embedding):
            continue
        known.add(id(module.weight))
    others = [name for name, weight in model.named_parameters() if weight.dim() > 1 and id(weight) not in known]
    if others:
        raise ValueError(f"{others[0]} is not a linear layer's weight: which tokens it is multiplied with is not known")
    return weights, head.weight


def arithmetic(model: Any) -> Arithmetic:
    """The operations of a model, counted from its linear layers and its attention heads.

    Raises:
        ValueError: As `linear_layers`.
    """
    weights, head = linear_layers(model)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Arithmetic(
        per_token=2 * sum(weight.numel() for weight in weights),
        per_readout=2 * head.numel(),
        per_pair=4 * heads * size * config.num_hidden_layers,
    )


def visible_pairs(batches: Iterable[TrieBatch], window: int | None) -> int:
    """How many tokens the tokens of batches see, each counted for itself.

    Args:
        batches: Batches of a trie; a token at depth d sees d + 1 tokens.
        window: How many it sees at most, if attention is to a sliding window.
    """
    total = 0
    for batch in batches:
        seen = batch.position_ids + 1
        total += int((seen if window is None else seen.clip(max=window)).sum())
    return total


def matrix_rate(model: torch.nn.Module, *, tokens: int, readouts: int) -> float:
    """Operations per second of the model's own matrix products and nothing else, at the size of a batch.

    Each linear layer's weights are used once in a pass, as in a forward pass, so that they come from where they come
    from there. The median of several passes. On a CPU in float32 by torch's default or by oneDNN, whichever is faster.

    Args:
        model: The model.
        tokens: Rows that are multiplied with the weights of the layers.
        readouts: Rows that are multiplied with the projection onto the vocabulary.

    Raises:
        ValueError: As `linear_layers`.
    """
    weights, head = linear_layers(model)
    rows = {size: head.new_empty(tokens, size).normal_() for size in {weight.shape[1] for weight in weights}}
    last = head.new_empty(readouts, head.shape[1]).normal_()
    operations = 2 * (tokens * sum(weight.numel() for weight in weights) + readouts * head.numel())
    ways: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [functional.linear]
    if head.device.type == "cpu" and head.dtype == torch.float32 and linear.is_available():
        ways.append(linear.linear)
    return max(operations / _seconds(multiply, [*weights, head], rows, last) for multiply in ways)


def _seconds(
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    weights: list[torch.Tensor],
    rows: dict[int, torch.Tensor],
    last: torch.Tensor,
) -> float:
    """Seconds for the product of `last` with the last of the weights and of `rows` with the others."""
    *layers, head = weights
    seconds = []
    with torch.no_grad():
        for _ in range(_PASSES + 1):
            synchronize(head.device)
            begin = time.perf_counter()
            for weight in layers:
                multiply(rows[weight.shape[1]], weight)
            multiply(last, head)
            synchronize(head.device)
            seconds.append(time.perf_counter() - begin)
    # The first pass warms up.
    return statistics.median(seconds[1:])


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
