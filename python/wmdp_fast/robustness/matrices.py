"""The weight matrices of a model, which attacks on weights change: those of its linear layers, experts included."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.unlearning.parameters import CONVOLUTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wmdp_fast.robustness.subject import Subject


@dataclass(frozen=True)
class WeightMatrix:
    """A parameter that is a matrix, or a stack of them: the experts of a layer in one tensor.

    Attributes:
        name: Its name in the model.
        parameter: The parameter.
        owner: The module whose parameter it is.
        inputs_first: Whether it is `[..., in, out]`, as GPT-2 and GPT-OSS have it, and not `[..., out, in]`.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    inputs_first: bool

    @property
    def num_inputs(self) -> int:
        """Columns of the matrix, or of each of the stack."""
        return self.parameter.shape[-2 if self.inputs_first else -1]

    @property
    def is_stack(self) -> bool:
        """Whether it is the experts of a layer in one tensor."""
        return self.parameter.dim() > 2

    def views(self) -> Iterator[Tensor]:
        """Each matrix as `[out, in]`; what is written to it is written to the parameter."""
        weight = self.parameter.detach()
        weight = weight.mT if self.inputs_first else weight
        yield from weight if self.is_stack else (weight,)


def weight_matrices(network: nn.Module) -> list[WeightMatrix]:
    """The matrices of all linear layers and fused experts, in the model's order.

    Embeddings, the head, norms, biases and the routers of experts are left out, as libraries leave them out when they
    quantize a model. Of an adapter only the matrices that it was put on are there, and not its own.

    Raises:
        ModelError: There are none, or they are quantized already.
    """
    inner: Any = without_adapter(network)
    skipped = {id(weight) for weight in _embeddings(inner)}
    factors = _factors(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[int, WeightMatrix] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            key = id(parameter)
            if key in found or key in skipped or module in factors or not _is_matrix(module, name, parameter):
                continue
            inputs_first = isinstance(module, Conv1D) or bool(getattr(module, "is_transposed", False))
            found[key] = WeightMatrix(names[key], parameter, module, inputs_first)
    for one in found.values():
        if not one.parameter.is_floating_point() or one.parameter.element_size() < 2:
            raise ModelError(f"{one.name} is quantized already ({one.parameter.dtype}); attack the model in bfloat16")
    if not found:
        raise ModelError(f"{type(inner).__name__} has no linear layers whose weights could be changed")
    return list(found.values())


def share_of(matrices: list[WeightMatrix], network: nn.Module) -> float:
    """The share of a model's parameters that some matrices hold."""
    return sum(one.parameter.numel() for one in matrices) / sum(one.numel() for one in network.parameters())


@contextmanager
def changeable(subject: Subject) -> Iterator[list[WeightMatrix]]:
    """Inside, a model's matrices may be changed in place; afterwards they are as they were, to the bit.

    An adapter is merged into them for that time, in their own type, since it is the sum that a user would quantize or
    prune.

    Yields:
        The matrices.

    Raises:
        ModelError: As `weight_matrices`.
    """
    matrices = weight_matrices(subject.network)
    tuner: Any = getattr(subject.network, "base_model", None)
    is_adapted = hasattr(subject.network, "get_base_model") and hasattr(tuner, "merge_adapter")
    changed = {one.name for one in matrices} | _adapted(subject.network)
    with subject.restored(changed), torch.no_grad():
        if is_adapted:
            tuner.merge_adapter()
        try:
            yield matrices
        finally:
            if is_adapted:
                tuner.unmerge_adapter()


def _is_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if isinstance(module, (nn.Linear, Conv1D)):
        return name == "weight"
    # Fused experts, of which each is a matrix. A convolution has as many dimensions.
    return parameter.dim() == 3 and not isinstance(module, CONVOLUTIONS)


def _embeddings(model: Any) -> Iterator[nn.Parameter]:
    """The weights of embeddings and head; one may be the other."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            yield from module.parameters()


def _adapted(network: nn.Module) -> set[str]:
    """Names of the parameters below an adapter, which merging it changes: embeddings and a head may be among them."""
    # By identity: one parameter may be at several places.
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    below = [getattr(module, "base_layer", None) for module in network.modules()]
    return {names[id(one)] for layer in below if isinstance(layer, nn.Module) for one in layer.parameters()}


def _factors(network: nn.Module) -> set[nn.Module]:
    """The modules of an adapter's own matrices: all that a tuned layer has, but the layer below it."""
    found: set[nn.Module] = set()
    for module in network.modules():
        below = getattr(module, "base_layer", None)
        if isinstance(below, nn.Module):
            found |= set(module.modules()) - set(below.modules())
    return found
