"""A model run layer by layer: each layer over all batches, so that its weights are needed once.

Three passes over the batches do that. The model's own forward is called with its layers replaced by stubs that keep
what they are called with, which is all a layer needs besides the residual stream. Then each layer in turn is called
with that, batch after batch. Last the forward is called once more, with stubs that return what the last layer did; so
whatever the model does before and after its layers, it does itself, and nothing here knows an architecture. The
products are those of the plain order, and so are the bits.

That holds for models that call each layer once, in order, and hand on what a layer returns as it is. Others are
refused: of what a stub returned, the next one must be given the very same tensor.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from wmdp_fast.exceptions import ModelError, WmdpFastError
from wmdp_fast.models.decoder import residual_of
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.threads import computing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from wmdp_fast.models.attention.packed import PrefixKVCache
    from wmdp_fast.models.decoder import Decoder, LayerArguments

    # A context in which the weights of a layer, given by its number, are there.
    UseLayer = Callable[[int], AbstractContextManager[nn.Module]]

_T = TypeVar("_T")

# What a layer may return besides the residual stream: nothing (as a tensor, or in a tuple), or some more things.
_FORMS = (None, 1, 2, 3)


class _ReachedError(Exception):
    """The forward pass is far enough."""


@dataclass
class Captured(Generic[_T]):
    """A batch on its way through the layers.

    Attributes:
        run: Takes it through the model and returns what is wanted of it; None for one that is left out.
        skip: What is done at each layer in place of one that is left out.
        hidden: The residual stream that enters the next layer.
        arguments: What each layer is called with besides; that of layers which are done is gone.
        embedded: Shape and dtype of what the embedding returned.
        form: How many things a layer returns: None for a tensor.
        within: The context in which a layer, given by its number, runs it; None if it needs none.
    """

    run: Callable[[], _T] | None
    skip: Callable[[], None] | None = None
    hidden: Tensor | None = None
    arguments: dict[int, LayerArguments] | None = None
    embedded: tuple[torch.Size, torch.dtype] | None = None
    form: int | None = None
    within: Callable[[int], AbstractContextManager[None]] | None = None

    def nbytes(self, seen: set[int]) -> int:
        """Bytes of what is kept for the layers, without storages that were seen before; adds to these."""
        return _nbytes((self.hidden, self.arguments), seen)


def capture(decoder: Decoder, run: Callable[[], _T], form: int | None = None) -> Captured[_T]:
    """Runs a batch up to its first layer, and finds out what each layer is called with.

    Args:
        decoder: The model without its head. No weights of its layers are needed.
        run: Takes the batch through the model, by one call of it.
        form: As found with an earlier batch.

    Raises:
        ModelError: The model does not hand on what a layer returns, or calls its layers in another order.
    """
    reasons = []
    for tried in dict.fromkeys((form, *_FORMS)):
        try:
            return _captured(decoder, run, tried)
        except WmdpFastError as error:
            if not isinstance(error, _OrderError):
                raise
            reasons.append(str(error))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reasons.append(f"{type(error).__name__}: {error}")
    raise ModelError(f"{type(decoder.model).__name__} cannot be run layer by layer: {reasons[0]}")


class _OrderError(ModelError):
    """A model calls its layers in another way than one after another."""


def _captured(decoder: Decoder, run: Callable[[], _T], form: int | None) -> Captured[_T]:
    found: Captured[_T] = Captured(run, arguments={}, form=form)
    count, name = len(decoder.layers), type(decoder.model).__name__
    arguments: dict[int, LayerArguments] = {}

    def record(index: int, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if index != len(arguments):
            raise _OrderError(f"{name} calls layer {index} out of turn")
        if found.hidden is None:
            found.hidden = hidden_states
        elif hidden_states is not found.hidden:
            raise _OrderError(f"{name} changes what layer {index - 1} returns before layer {index} is given it")
        arguments[index] = (args, kwargs)
        if index == count - 1:
            raise _ReachedError
        return returned(hidden_states, form)

    def embed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        out = forward(*args, **kwargs)
        found.embedded = (out.shape, out.dtype)
        return out

    forwards: dict[nn.Module, Any] = {layer: partial(record, index) for index, layer in enumerate(decoder.layers)}
    embedding = decoder.model.get_input_embeddings()
    forwards[embedding] = partial(embed, embedding.forward)
    with replaced_forwards(forwards):
        try:
            run()
        except _ReachedError:
            found.arguments = arguments
            return found
    raise _OrderError(f"{name} did not call its layers one after another")


def returned(hidden: Tensor, form: int | None) -> Any:
    """The residual stream in the form in which a layer returns it."""
    return hidden if form is None else (hidden, *[None] * (form - 1))


def run_layers(
    layers: Sequence[int],
    use: UseLayer,
    batches: Sequence[Captured[Any]],
    *,
    cache: PrefixKVCache | None = None,
    carried: dict[int, Any] | None = None,
    between: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Takes batches that were captured through layers, each layer over all of them.

    Args:
        layers: The numbers of the layers.
        use: Gives a layer with its weights.
        batches: The batches; they have been through all layers afterwards.
        cache: What the batches' attention passes on from batch to batch, by trie.
        carried: What the last batch of an earlier call has passed on, by layer; and of this one, afterwards.
        between: Called after each batch of each layer.
        after: Called after each layer.

    Raises:
        ModelError: A layer returns something else than a residual stream.
    """
    carried = {} if carried is None else carried
    for index in layers:
        if cache is not None:
            cache.exchange(carried.pop(index, []))
        with use(index) as layer:
            for batch in batches:
                if batch.run is not None:
                    _run_layer(index, layer, batch, cache)
                elif batch.skip is not None:
                    batch.skip()
                if between is not None:
                    between()
        if cache is not None:
            carried[index] = cache.exchange([])
        if after is not None:
            after()


def _run_layer(index: int, layer: nn.Module, batch: Captured[Any], cache: PrefixKVCache | None) -> None:
    assert batch.arguments is not None  # noqa: S101 (for the type checker: it was captured)
    args, kwargs = batch.arguments.pop(index)
    if cache is not None:
        cache.begin()
    with computing(), nullcontext() if batch.within is None else batch.within(index):
        output = layer(batch.hidden, *args, **kwargs)
    if cache is not None:
        cache.commit()
    hidden, before = residual_of(output), batch.hidden
    if before is None or not isinstance(hidden, torch.Tensor) or hidden.shape != before.shape:
        raise ModelError(f"{type(layer).__name__} {index} does not return the residual stream that it is given")
    batch.form, batch.hidden = len(output) if isinstance(output, tuple) else None, hidden


def finish(decoder: Decoder, batch: Captured[_T]) -> _T:
    """Runs what comes after the layers, for a batch that has been through all of them; returns what its `run` does.

    The embedding is not needed for it.
    """
    if batch.run is None or batch.hidden is None or batch.embedded is None:
        raise ValueError("the batch was not captured")
    hidden, form, (shape, dtype) = batch.hidden, batch.form, batch.embedded

    def stub(*_args: Any, **_kwargs: Any) -> Any:
        return returned(hidden, form)

    def embed(*_args: Any, **_kwargs: Any) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=hidden.device)

    forwards: dict[nn.Module, Any] = dict.fromkeys(decoder.layers, stub)
    forwards[decoder.model.get_input_embeddings()] = embed
    with replaced_forwards(forwards):
        return batch.run()


@contextmanager
def layers_on_demand(decoder: Decoder, layers: Sequence[int], use: UseLayer, form: int | None) -> Iterator[None]:
    """Inside, the model can be called as usual: of each layer the weights are there while it runs.

    Args:
        decoder: The model without its head.
        layers: The numbers of the layers that are run; the others hand on what they are given.
        use: Gives a layer with its weights.
        form: How many things a layer returns, as `capture` found.
    """

    def run(index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with use(index):
            return forward(*args, **kwargs)

    def pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return returned(hidden_states, form)

    wanted = set(layers)
    forwards: dict[nn.Module, Any] = {
        layer: partial(run, index, layer.forward) if index in wanted else pass_on
        for index, layer in enumerate(decoder.layers)
    }
    with replaced_forwards(forwards):
        yield


def _nbytes(value: Any, seen: set[int]) -> int:
    """Bytes of the storages of all tensors in a nest of containers, each once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(value, dict):
        return sum(_nbytes(one, seen) for one in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_nbytes(one, seen) for one in value)
    return 0
