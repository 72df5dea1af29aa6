"""Directions taken out of what single blocks write to the residual stream, one block after the other.

After a layer all that its blocks and those before have done is mixed, and a direction that is found there takes with it
what a later block makes of an earlier one's change. So each block, attention before feed-forward, is compared with the
base's while the blocks before it are ablated already, and the directions in which the two differ most, for what they
carry in the base, are projected out of what it writes. Of a model that was changed in several layers, or in more than
one direction, that brings back more than one direction after a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.directions import projecting_out_all, question_rows, strongest_components, telling_tokens
from wmdp_fast.robustness.residual_stream import changed_stream, decoder_in, residual_stream
from wmdp_fast.unlearning.parameters import select_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from wmdp_fast.robustness.subject import Subject
    from wmdp_fast.scoring.local import LocalModel

# The matrices that write to the stream, in the order in which their blocks do.
_ROLES = ("self_attn.o_proj", "mlp.down_proj")


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """Blocks that were ablated so far.

    Attributes:
        layer: The last layer of which all are.
        changes: What is made of the output of each block, by its place among those of `blocks_of`.
        directions: What is taken out of it, orthonormal, `[components, d]`, by the same.
        shares: Of each of these the share of its squared difference from the base's that the directions held.
    """

    layer: int
    changes: dict[int, Callable[[Tensor], Tensor]]
    directions: dict[int, Tensor]
    shares: list[float]


def writing_blocks(layer: nn.Module) -> list[nn.Module]:
    """The blocks of a decoder layer that add to the residual stream, in the order in which they do.

    Raises:
        ModelError: It has none that are known.
    """
    matrices = [one for role in _ROLES for one in select_parameters(nn.ModuleList([layer]), "", [0], role)]
    children = dict.fromkeys(one.name.removeprefix(".0.").partition(".")[0] for one in matrices)
    return [layer.get_submodule(name) for name in children]


def blocks_of(model: LocalModel, layers: Sequence[int]) -> list[nn.Module]:
    """The blocks of some layers of a model, in order."""
    every = decoder_in(model).layers
    return [block for layer in layers for block in writing_blocks(every[layer])]


def written(model: LocalModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> list[Tensor]:
    """What the blocks of some layers write at the telling tokens of rows: for each block `[N, d]`."""
    return residual_stream(model, rows, telling_tokens(rows, model.max_length), blocks_of(model, layers))


def ablated_in_turn(subject: Subject, layers: Sequence[int], components: int) -> Iterator[Ablated]:
    """Finds the directions of the blocks of some layers, each with those before it ablated.

    Args:
        subject: A model that was unlearned, with the one before; read at the questions for choosing.
        layers: Numbers of the layers, ascending.
        components: Directions of each block, those of `strongest_components` of the differences token by token.

    Yields:
        After each layer what is ablated by then.

    Raises:
        ModelError: The base is asked with other tokens or has other blocks, so that it cannot be compared.
        ValueError: There is no base.
    """
    rows = question_rows(subject.questions, subject.model)
    theirs = subject.once(("written by the base", *layers), lambda: _written_by_base(subject, rows, layers))
    blocks = blocks_of(subject.model, layers)
    if [one.shape[1] for one in theirs] != [decoder_in(subject.model).hidden_size] * len(blocks):
        raise ModelError("the model before unlearning has other blocks, so what they write cannot be compared")
    changes: dict[int, Callable[[Tensor], Tensor]] = {}
    taken: dict[int, Tensor] = {}
    shares: list[float] = []
    ends = torch.tensor([len(blocks_of(subject.model, [layer])) for layer in layers]).cumsum(0).tolist()
    for place, block in enumerate(blocks):
        with changed_stream(blocks, changes):
            [ours] = residual_stream(subject.model, rows, telling_tokens(rows, subject.model.max_length), [block])
        found = strongest_components(ours, theirs[place], components)
        if found is not None:
            directions, share = found
            changes[place], taken[place] = projecting_out_all(directions), directions
            shares.append(share)
        if place + 1 in ends:
            layer = layers[ends.index(place + 1)]
            yield Ablated(layer=layer, changes=dict(changes), directions=dict(taken), shares=list(shares))


def random_changes(
    model: LocalModel, layers: Sequence[int], components: int, generator: torch.Generator
) -> dict[int, Callable[[Tensor], Tensor]]:
    """As many random directions of each block of some layers, to be taken out of what it writes."""
    width = decoder_in(model).hidden_size
    return {
        place: projecting_out_all(torch.randn(components, width, generator=generator))
        for place in range(len(blocks_of(model, layers)))
    }


def _written_by_base(subject: Subject, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> list[Tensor]:
    if subject.original is None:
        raise ValueError("blocks are compared with those of the model before unlearning")
    base = subject.original()
    if question_rows(subject.questions, base) != list(rows):
        raise ModelError("the model before unlearning reads the questions as other tokens, so it cannot be compared")
    return written(base, rows, layers)
