"""A language model's decoder layers: where they are, how to run some of them, and what they return.

All of it goes through the model's own modules, so nothing here knows an architecture. What a layer is called with
besides the residual stream (masks, positions) is made by the model, and kept from its call.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from wmdp_fast.exceptions import InternalError, ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.fused.forwards import replaced_forwards

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from transformers import PreTrainedModel

    # The positional and the keyword arguments of a layer, besides the residual stream.
    LayerArguments = tuple[tuple[Any, ...], dict[str, Any]]


class _ReachedError(Exception):
    """The forward pass is far enough."""


class _OrderError(ModelError):
    """A layer has no output of its own."""


@dataclass(frozen=True)
class Decoder:
    """A model without its head, and its layers.

    Attributes:
        model: Called with `input_ids` and `attention_mask`.
        layers: Its decoder layers, maybe only the first ones.
        prefix: Their name in it, such as `layers`.
        hidden_size: Width of the residual stream.
    """

    model: PreTrainedModel
    layers: nn.ModuleList
    prefix: str
    hidden_size: int

    def run_to(
        self, start: int, stop: int, inputs: Mapping[str, Tensor], *, skip: bool = False
    ) -> tuple[Tensor, dict[int, LayerArguments]]:
        """Runs the model up to layer `start`: all that is below it, and nothing of it.

        Args:
            start: A layer's number, from 0.
            stop: Arguments are wanted of the layers from `start` to below `stop`.
            inputs: What the model is called with, such as `input_ids` and `attention_mask`: `[B, S]`.
            skip: Whether to leave the layers below `start` out, so that only the arguments are right.

        Returns:
            The residual stream that enters layer `start`, `[B, S, d]`, and for each layer from there to below `stop`
            what the model calls it with otherwise: what `run_layers` takes.

        Raises:
            ValueError: There are no such layers.
            InternalError: The model does not call its layers one after another, each once.
        """
        self._check(start, stop)
        entering: list[Tensor] = []
        arguments: dict[int, LayerArguments] = {}

        def record(index: int, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if index != start + len(arguments):
                raise InternalError(f"{type(self.model).__name__} called layer {index} out of turn")
            if index == start:
                entering.append(hidden_states)
            arguments[index] = (args, kwargs)
            if index == stop - 1:
                raise _ReachedError
            return hidden_states

        def pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            return hidden_states

        forwards: dict[nn.Module, Any] = {self.layers[index]: partial(record, index) for index in range(start, stop)}
        if skip:
            forwards |= {self.layers[index]: pass_on for index in range(start)}
        call: Any = self.model
        with replaced_forwards(forwards):
            try:
                call(**inputs, use_cache=False)
            except _ReachedError:
                return entering[0], arguments
        raise InternalError(f"{type(self.model).__name__} did not call its layers one after another")

    def run_layers(self, start: int, stop: int, hidden: Tensor, arguments: Mapping[int, LayerArguments]) -> Tensor:
        """Runs the layers from `start` to below `stop`.

        Args:
            start: The first layer's number.
            stop: The last one's, + 1; no layer is run if it is `start`.
            hidden: The residual stream that enters layer `start`, `[B, S, d]`.
            arguments: For each of them what it is called with besides that, from `run_to`.

        Returns:
            What the last one returns, `[B, S, d]`.
        """
        for index in range(start, stop):
            args, kwargs = arguments[index]
            hidden = residual_of(self.layers[index](hidden, *args, **kwargs))
        return hidden

    def refuse_other_orders(self) -> None:
        """Makes sure that each layer has one output: that it is called once, in its turn, on one residual stream.

        Tried on two tokens, with layers that pass on what enters them, so that no weight of theirs is needed.

        Raises:
            ModelError: The model calls its layers several times, or in another order, or passes several streams on.
        """
        name, called = type(self.model).__name__, list[Tensor]()

        def pass_on(items: int, index: int, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            if index != len(called):
                after = f"layer {len(called) - 1}" if called else "none"
                raise _OrderError(
                    f"{name} calls its layers in an order of its own (layer {index} after {after}), some maybe several"
                    " times: a layer has no one output to work on"
                )
            if not called and hidden_states.dim() != 3:
                raise _OrderError(
                    f"{name} passes several residual streams from layer to layer ({list(hidden_states.shape)} for a row"
                    " of two tokens): a layer has no one output to work on"
                )
            if called and hidden_states.shape != called[0].shape:
                raise TypeError("it takes something else from what a layer returns")
            called.append(hidden_states)
            return (hidden_states, *[None] * (items - 1)) if items else hidden_states

        embedding: Any = self.model.get_input_embeddings()
        device = embedding.weight.device if embedding.weight.device.type != "meta" else "cpu"
        call: Any = self.model
        # Some take the first thing of a tuple, or of two or three.
        for items in (0, 1, 2, 3):
            called.clear()
            forwards: dict[nn.Module, Any] = {
                layer: partial(pass_on, items, index) for index, layer in enumerate(self.layers)
            }
            with torch.no_grad(), zero_embedding(self), replaced_forwards(forwards):
                try:
                    call(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
                except _OrderError:
                    raise
                except Exception:  # noqa: S110 (of layers that do nothing, or a norm that is not there)
                    pass
            if len(called) == len(self.layers):
                return

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start < stop <= len(self.layers):
            raise ValueError(f"layers {start} to {stop - 1} of a model with layers 0 to {len(self.layers) - 1}")


def decoder_of(model: PreTrainedModel) -> Decoder:
    """Finds the layers of a language model that is in memory.

    Raises:
        ModelError: It has no list of as many layers as its configuration says.
    """
    base: Any = model.base_model
    config = base.config.get_text_config()
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return Decoder(base, module, name, config.hidden_size)
    raise ModelError(
        f"{type(base).__name__} has no list of {config.num_hidden_layers} decoder layers, so single layers cannot be"
        " run"
    )


def unwatched_last_layer(model: nn.Module) -> nn.Module | None:
    """A model's last decoder layer; None if it has no list of layers, or something may look at all rows of the last.

    That is a hook on anything but the layers below.
    """
    try:
        layers = list(decoder_of(cast("PreTrainedModel", without_adapter(model))).layers)
    except (ModelError, AttributeError):
        return None
    below = {module for layer in layers[:-1] for module in layer.modules()}
    hooked = any(one._forward_hooks or one._forward_pre_hooks for one in model.modules() if one not in below)
    return None if hooked else layers[-1]


@contextmanager
def zero_embedding(decoder: Decoder) -> Iterator[None]:
    """Inside, the embedding gives zeros and needs no numbers, for calls of which only layers' arguments count."""
    embedding: Any = decoder.model.get_input_embeddings()
    weight: Tensor = embedding.weight

    def zeros(tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, weight.shape[-1], dtype=weight.dtype, device=tokens.device)

    with replaced_forwards({embedding: zeros}):
        yield


@contextmanager
def record_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects what modules return while a model runs inside, in the order of their calls.

    Of a module that returns a tuple, as a decoder layer may, its first item: the residual stream.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(residual_of(output))

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def residual_of(output: Any) -> Tensor:
    """The residual stream in what a layer returned."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
