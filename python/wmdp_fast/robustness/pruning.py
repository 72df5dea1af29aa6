"""Weights set to zero: which, by their size or by that of what they are multiplied by."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import nn

    from wmdp_fast.robustness.matrices import WeightMatrix


def without_smallest(weight: Tensor, score: Tensor, share: float) -> Tensor:
    """Weights with those of the lowest score set to zero.

    Args:
        weight: `[out, in]`.
        score: Of each weight: `[out, in]`, compared within each row; or `[1, out * in]`, compared with all.
        share: How many of those that are compared, rounded down; of equal scores the first ones.
    """
    count = int(score.shape[1] * share)
    if count == 0:
        return weight.clone()
    # Selection, not a sort: a matrix of a large model has a hundred million weights.
    highest = score.kthvalue(count, dim=1, keepdim=True).values
    pruned, tied = score < highest, score == highest
    # Narrow types have many equal weights, of which only some are still wanted.
    wanted = count - pruned.sum(dim=1, keepdim=True)
    pruned |= tied & (tied.cumsum(dim=1, dtype=torch.int32) <= wanted)
    return weight.masked_fill(pruned.view(weight.shape), 0)


def by_magnitude(weight: Tensor, share: float) -> Tensor:
    """A matrix without its smallest weights."""
    return without_smallest(weight, weight.abs().reshape(1, -1), share)


def at_random(weight: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A matrix without as many weights, whichever: the control."""
    score = torch.rand(weight.numel(), generator=generator, device=weight.device)[None]
    return without_smallest(weight, score, share)


def by_wanda(weight: Tensor, input_norm: Tensor, share: float) -> Tensor:
    """A matrix without the smallest products of weight and input in each row (Sun et al. 2023, Wanda).

    Args:
        weight: `[out, in]`.
        input_norm: Euclidean norm of each input over the tokens of a text, `[in]`.
        share: How many of each row.
    """
    return without_smallest(weight, weight.float().abs() * input_norm, share)


def input_norms(
    model: nn.Module, matrices: Sequence[WeightMatrix], documents: Iterable[Sequence[int]]
) -> dict[str, Tensor]:
    """The norm of each input of some linear layers over all tokens of some documents, each read by itself.

    Args:
        model: Called with `input_ids`.
        matrices: The layers' weights.
        documents: Token ids.

    Returns:
        By the name of each weight, `[in]`, float32; zeros where nothing came, as to an expert that no token goes to.
    """
    device = matrices[0].parameter.device
    call: Any = model
    with _squared_inputs(matrices) as sums, torch.no_grad():
        for document in documents:
            call(input_ids=torch.tensor([document], device=device), use_cache=False)
    return {name: total.sqrt() for name, total in sums.items()}


@contextmanager
def _squared_inputs(matrices: Sequence[WeightMatrix]) -> Iterator[dict[str, Tensor]]:
    """Adds up the squares of what layers are called with inside."""
    sums = {one.name: torch.zeros(one.num_inputs, device=one.parameter.device) for one in matrices}

    def add(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += inputs[0].float().square().flatten(0, -2).sum(dim=0)

    handles = [one.owner.register_forward_pre_hook(partial(add, one.name)) for one in matrices]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
