"""Directions taken out of what layers or blocks write by changing weights: an ablated model that needs no hooks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.decoder import decoder_of, residual_of
from wmdp_fast.models.load import evaluation_mode
from wmdp_fast.robustness.blocks import writing_blocks
from wmdp_fast.robustness.directions import unit_of
from wmdp_fast.unlearning.parameters import select_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wmdp_fast.models.decoder import Decoder

# What of a direction may be left in what a layer writes, over the length of what it writes: float32's rounding.
_LEFT = 1e-4

_ROLES = ("self_attn.o_proj", "mlp.down_proj")


def written_to_the_stream(network: nn.Module) -> list[str]:
    """Names of the parameters whose output the layers of a model add to the residual stream.

    Raises:
        ModelError: A layer has none that are known, they are quantized, or the model has an adapter.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decoder = _decoder(network)
    return [names[id(parameter)] for layer in decoder.layers for parameter, _ in _writing(layer)]


def fold(network: nn.Module, direction: Tensor) -> None:
    """Takes a direction out of all that the layers of a model write, in place.

    `W <- (I - d d^T) W` for the matrices of attention and feed-forward blocks that write to the residual stream, and
    for their biases, in float32, then rounded to the weights' own type. What the embedding writes stays. That each
    layer writes nothing along the direction then is tried.

    Args:
        network: A causal model; call it inside `Subject.restored`, or on a model of one's own.
        direction: `[d]`, of any length.

    Raises:
        ModelError: Something stands between those matrices and the stream, as the norms of Gemma and OLMo 2 do, so that
            folding is not exact; or as `written_to_the_stream`. Weights of the layers before may be changed.
    """
    decoder, unit = _decoder(network), unit_of(direction)
    with evaluation_mode(network):
        for index, layer in enumerate(decoder.layers):
            made = copy.deepcopy(layer).float()
            for parameter, axis in _writing(made):
                _project(parameter, unit.to(parameter.device), axis)
            if not _writes_nothing_along(decoder, index, made, unit):
                raise ModelError(
                    f"layer {index} of {type(decoder.model).__name__} has more between its output matrices and the"
                    " residual stream (norms, for instance), so a direction cannot be folded into them; by hooks it can"
                    " be taken out"
                )
            for (parameter, _), (new, _) in zip(_writing(layer), _writing(made), strict=True):
                parameter.copy_(new)


def fold_blocks(network: nn.Module, layers: Sequence[int], found: Mapping[int, Tensor]) -> list[str]:
    """Takes directions out of what single blocks write, in place: what `blocks.ablated_in_turn` does by hooks.

    `W <- (I - D^T D) W` for the matrices of a block that write its output, and for their biases, in float32, then
    rounded to the weights' own type. That each block then writes what it wrote without the directions is tried. Norms
    behind a block are no hindrance: hooks take directions out before them too.

    Args:
        network: A causal model; call it inside `Subject.restored`, or on a model of one's own.
        layers: Numbers of the layers whose blocks are counted, ascending.
        found: By a block's place among those of these layers its directions, orthonormal, `[k, d]`.

    Returns:
        Names of the parameters that were changed.

    Raises:
        ModelError: A block has more between those matrices and its output, so that folding is not exact; or as
            `written_to_the_stream`. Weights of the blocks before may be changed.
    """
    decoder, changed, place = _decoder(network), list[int](), 0
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    with evaluation_mode(network):
        for index in layers:
            layer = decoder.layers[index]
            made = copy.deepcopy(layer).float()
            for number, block in enumerate(writing_blocks(made)):
                if place in found:
                    _fold_block(decoder, index, made, block, found[place])
                    own = {id(parameter) for parameter in writing_blocks(layer)[number].parameters()}
                    changed += [id(parameter) for parameter, _ in _writing(layer) if id(parameter) in own]
                place += 1
            for (parameter, _), (new, _) in zip(_writing(layer), _writing(made), strict=True):
                parameter.copy_(new)
    return [names[one] for one in changed]


def _fold_block(decoder: Decoder, index: int, layer: nn.Module, block: nn.Module, directions: Tensor) -> None:
    """Takes directions `[k, d]` out of a block of a layer in float32."""
    own = {id(parameter) for parameter in block.parameters()}
    before = _written_by(decoder, index, layer, block)
    for parameter, axis in _writing(layer):
        if id(parameter) in own:
            for unit in directions.to(parameter.device):
                _project(parameter, unit, axis)
    basis = directions.to(before.device)
    left = _written_by(decoder, index, layer, block) - (before - (before @ basis.T) @ basis)
    if not bool(left.norm(dim=-1).max() <= _LEFT * before.norm(dim=-1).max()):
        raise ModelError(
            f"a block of layer {index} of {type(decoder.model).__name__} has more between its output matrices and its"
            " output, so directions cannot be folded into them; by hooks they can be taken out"
        )


def _written_by(decoder: Decoder, index: int, layer: nn.Module, block: nn.Module) -> Tensor:
    """What a block of a layer in float32 writes, on a few tokens, `[N, d]`."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(residual_of(output))

    handle = block.register_forward_hook(keep)
    try:
        stream, args, kwargs = _trial(decoder, index, layer)
        layer(stream, *args, **kwargs)
    finally:
        handle.remove()
    return kept[0].reshape(-1, decoder.hidden_size)


def _decoder(network: nn.Module) -> Decoder:
    model: Any = network
    if without_adapter(model) is not model:
        raise ModelError("a direction is folded into a model's own weights: merge its adapter first")
    return decoder_of(model)


def _writing(layer: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """The matrices and biases of a layer whose output goes to the residual stream, and which axis is the output's."""
    parameters = dict(layer.named_parameters())
    for role in _ROLES:
        for one in select_parameters(nn.ModuleList([layer]), "", [0], role):
            name = one.name.removeprefix(".0.")
            owner: Any = layer.get_submodule(name.rpartition(".")[0])
            swapped = isinstance(owner, Conv1D) or getattr(owner, "is_transposed", False)
            yield one.parameter, -1 if swapped else -2
            bias = f"{name.removesuffix('.weight')}.bias" if name.endswith(".weight") else f"{name}_bias"
            if bias in parameters:
                yield parameters[bias], -1


def _project(parameter: nn.Parameter, unit: Tensor, axis: int) -> None:
    along = torch.tensordot(parameter, unit, dims=([axis], [0]))
    outer = along[..., None] * unit if axis == -1 else along[..., None, :] * unit[:, None]
    parameter.sub_(outer)


def _writes_nothing_along(decoder: Decoder, index: int, layer: nn.Module, unit: Tensor) -> bool:
    """Whether a layer in float32 adds nothing along a direction to a stream, tried on a few tokens."""
    stream, args, kwargs = _trial(decoder, index, layer)
    written = residual_of(layer(stream, *args, **kwargs)) - stream
    return bool((written @ unit.to(stream.device)).abs().max() <= _LEFT * written.norm(dim=-1).max())


def _trial(decoder: Decoder, index: int, layer: nn.Module) -> tuple[Tensor, Any, Any]:
    """A stream `[1, N, d]` in float32 and what else a layer is called with on as many tokens."""
    device = next(layer.parameters()).device
    tokens = torch.tensor([[1, 2, 1, 2]], device=device)
    _, arguments = decoder.run_to(index, index + 1, {"input_ids": tokens}, skip=True)
    args, kwargs = _in_float32(arguments[index])
    stream = torch.randn(1, tokens.shape[1], decoder.hidden_size, generator=torch.Generator().manual_seed(0))
    return stream.to(device), args, kwargs


def _in_float32(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.float() if found.is_floating_point() else found
    if isinstance(found, tuple):
        return tuple(_in_float32(one) for one in found)
    if isinstance(found, dict):
        return {name: _in_float32(one) for name, one in found.items()}
    return found
