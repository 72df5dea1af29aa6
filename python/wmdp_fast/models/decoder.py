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
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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

        Tried on two tokens, with layers that pass on what enters them, so that no weight of theirs is needed. A model
        that wants more of its layers than that is tried with the layers themselves, if their weights are there.

        Raises:
            ModelError: The model calls its layers several times, or in another order, or passes several streams on; or
                it could not be tried.
        """
        order = _Order(self)
        complete = not any(parameter.is_meta for parameter in self.model.parameters())
        # Some take the first thing of a tuple, or of two or three.
        for items in (0, 1, 2, 3):
            with zero_embedding(self):
                ended = order.ends([partial(order.pass_on, index, items) for index in range(len(self.layers))])
            # A norm behind the layers may have no numbers; of a model that has all, nothing is taken for granted.
            if order.calls == len(self.layers) and (ended or not complete):
                return
        if complete and order.ends([partial(order.run, index, one.forward) for index, one in enumerate(self.layers)]):
            if order.calls == len(self.layers):
                return
            order.reason = f"{order.calls} of {len(self.layers)} layers called"
        raise ModelError(
            f"{order.name} cannot be asked in which order it calls its layers ({order.reason or 'too few calls'}), so"
            " nobody knows whether a layer has one output to work on"
        )

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start < stop <= len(self.layers):
            raise ValueError(f"layers {start} to {stop - 1} of a model with layers 0 to {len(self.layers) - 1}")


class _Order:
    """In which order a model calls its layers, when it is run on two tokens.

    Args:
        decoder: The model.

    Attributes:
        name: The model's class.
        reason: What the last run that did not end well ended with.

    Raises:
        ModelError: It does not say where its embedding is.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.name, self.reason = type(decoder.model).__name__, ""
        self._decoder = decoder
        self._shapes: list[torch.Size] = []
        try:
            embedding: Any = decoder.model.get_input_embeddings()
        except NotImplementedError as error:
            # A wrapper around the decoder of an encoder-decoder.
            raise ModelError(f"{self.name} does not say where its embedding is; its layers are not run") from error
        self._device = embedding.weight.device if embedding.weight.device.type != "meta" else "cpu"

    @property
    def calls(self) -> int:
        """Layers that the last run has called."""
        return len(self._shapes)

    def ends(self, layer_forwards: Sequence[Callable[..., Any]]) -> bool:
        """Runs the model with other forward functions for its layers; whether it came to its end.

        Raises:
            ModelError: It does not call its layers one after another, on one residual stream.
        """
        self._shapes.clear()
        forwards = dict(zip(self._decoder.layers, layer_forwards, strict=True))
        call: Any = self._decoder.model
        with torch.no_grad(), torch.random.fork_rng(devices=[]), replaced_forwards(forwards):
            try:
                call(input_ids=torch.zeros(1, 2, dtype=torch.long, device=self._device), use_cache=False)
            except _OrderError:
                raise
            except Exception as error:
                self.reason = f"{type(error).__name__}: {error}".splitlines()[0]
                return False
        return True

    def pass_on(self, index: int, items: int, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Stands in for a layer: returns what it is given, in a tuple with so many items if there are any."""
        self._count(index, hidden_states)
        return (hidden_states, *[None] * (items - 1)) if items else hidden_states

    def run(self, index: int, forward: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs a layer."""
        self._count(index, hidden_states)
        return forward(hidden_states, *args, **kwargs)

    def _count(self, index: int, hidden_states: Tensor) -> None:
        if index != self.calls:
            after = f"layer {self.calls - 1}" if self.calls else "none"
            raise _OrderError(
                f"{self.name} calls its layers in an order of its own (layer {index} after {after}), some maybe several"
                " times: a layer has no one output to work on"
            )
        if not self.calls and hidden_states.dim() != 3:
            raise _OrderError(
                f"{self.name} passes several residual streams from layer to layer ({list(hidden_states.shape)} for a"
                " row of two tokens): a layer has no one output to work on"
            )
        if self.calls and hidden_states.shape != self._shapes[0]:
            raise TypeError("it takes something else from what a layer returns")
        self._shapes.append(hidden_states.shape)


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
