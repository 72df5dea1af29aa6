"""The forward passes of RMU, each thing computed once.

Updated and frozen model are the same below the first trained matrix. So the layers below the first updated one, the
*trunk*, run once for both, without gradients. Within the first updated layer, what is computed before the first trained
matrix is used is the same in both, too: it is kept by the branch that runs first and given again to the other one.
From there on the frozen branch is the very same modules with the original tensors put in.

All of it goes through the model's own modules, so nothing here knows an architecture. That two modules see the same
input is not assumed but follows from the order of calls: what was called before any trained parameter was used cannot
depend on one.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wmdp_fast.exceptions import ModelError, what_was_raised
from wmdp_fast.models.attention.packed import (
    NotPackableError,
    PackedMask,
    packed_attention,
    packed_batch,
)
from wmdp_fast.models.fused import fused_parts
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.fused.linear import LINEAR_LAYERS
from wmdp_fast.models.fused.trials import Trials, replaced_modules
from wmdp_fast.scoring.padded import is_out_of_memory
from wmdp_fast.unlearning.rmu.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from wmdp_fast.models.decoder import Decoder, LayerArguments
    from wmdp_fast.unlearning.activation_cache import Entries, TrunkCache
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.layers_below import LayersBelow


# Of what is faster in one piece, this alone has gradients.
_onednn_linears = partial(replaced_modules, parts=(LINEAR_LAYERS,))


@dataclass
class Shared:
    """What the first updated layer computes before its first trained matrix.

    Attributes:
        outputs: What modules returned that were called before, in the order of their calls.
        resumed: A module that returns just what the first trained matrix makes of its input, and that matrix's module
            and arguments: then nothing else of it need be run.
    """

    outputs: dict[nn.Module, list[Any]] = field(default_factory=dict)
    resumed: tuple[nn.Module, Callable[..., Any]] | None = None


@dataclass
class Trunk:
    """A batch up to the first updated layer; the same whatever has been trained.

    Attributes:
        batch: The batch.
        hidden: The residual stream that enters the first updated layer, [B, S, d].
        arguments: What the layers from there on are called with, besides the residual stream, by their numbers.
        shared: What both branches have in common within the first updated layer, once one of them has run.
    """

    batch: Batch
    hidden: Tensor
    arguments: dict[int, LayerArguments]
    shared: Shared | None = None


def _are_same(first: Any, second: Any) -> bool:
    """Whether two arguments of a call are equal, to the last bit; False if they cannot be compared."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, PackedMask):
        return first.layout is second.layout and first.window == second.window
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_are_same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_are_same, first, second))
    return bool(first is second or (isinstance(first, (bool, int, float, str)) and first == second))


class Branches:
    """Runs a model up to layer `layer_id`, with the trained parameters or with their original values.

    Args:
        decoder: The model.
        layer_id: The layer whose output is wanted.
        trained: The parameters that are trained, by their names in the model. They must have their original values.
        cache: Where to keep what training does not change, and to look for it first.
        originals: Copies of the trained parameters as they are, if there are such already.
        below: The layers below the first updated one, if they are not in memory.
        upcoming: The batches that will be run next, in about that order, for such layers.

    Attributes:
        originals: Copies of the trained parameters as they were in the beginning.
    """

    def __init__(
        self,
        decoder: Decoder,
        layer_id: int,
        trained: Mapping[str, nn.Parameter],
        cache: TrunkCache | None = None,
        originals: Mapping[str, Tensor] | None = None,
        below: LayersBelow | None = None,
        upcoming: Callable[[], Iterable[Batch]] = tuple,
    ) -> None:
        self._decoder = decoder
        self._model = decoder.model
        self._stop = layer_id + 1
        self._trained = dict(trained)
        if originals is None:
            originals = {name: parameter.detach().clone() for name, parameter in trained.items()}
        self.originals = dict(originals)
        ours = {id(parameter) for parameter in trained.values()}
        holds = [any(id(parameter) in ours for parameter in layer.parameters()) for layer in decoder.layers]
        self.first = holds.index(True)
        # Hashed now, while the weights are the original ones.
        self._trunks = None if cache is None or self.first == 0 else cache.entries("trunk", below=self.first)
        self._frozen = None if cache is None else cache.entries("frozen", below=self._stop)
        self._fused_parts = partial(fused_parts, trials=Trials())
        self._upcoming = upcoming
        self._windows: Windows | None = None
        if below is not None:
            within = partial(self._faster, parts=self._fused_parts)
            self._windows = Windows(below, self._stop, within, self._not_kept, _are_same)
        self._can_skip = False  # that it can is proven on the first batch that is not in the cache
        layer: Any = decoder.layers[self.first]
        # Modules that own a trained parameter, and those around them.
        self._trained_modules = [m for m in layer.modules() if any(id(p) in ours for p in m.parameters(recurse=False))]
        self._enclosing_modules = [
            m for m in layer.modules() if m is not layer and any(o in m.modules() for o in self._trained_modules)
        ]
        self._untrained_modules = [
            child
            for parent in (layer, *self._enclosing_modules)
            for child in parent.children()
            if child not in self._enclosing_modules and any(parameter.dim() > 1 for parameter in child.parameters())
        ]

    def trunk(self, batch: Batch) -> Trunk:
        """Runs a batch up to the first updated layer.

        Raises:
            ModelError: There is a cache, but this architecture's layers take more from those below than their output.
            NotPackableError: The batch has a layout, and the model asks something of its attention that this does not
                offer.
        """
        if self._trunks is None:
            return Trunk(batch, *self._up_to_first(batch))
        if (kept := self._trunks.get(batch.inputs)) is None:
            with self._trunks.claimed(batch.inputs):
                if (kept := self._trunks.get(batch.inputs, again=True)) is None:
                    return self._computed(batch, self._trunks)
        return Trunk(batch, kept, self._arguments(batch))

    def _computed(self, batch: Batch, trunks: Entries) -> Trunk:
        """A trunk that is not in the cache, and from now on is."""
        hidden, arguments = self._up_to_first(batch)
        if not self._can_skip:
            if not _are_same(arguments, self._arguments(batch)):
                raise ModelError(
                    f"{type(self._model).__name__} passes more between its layers than the residual stream, so its"
                    " trunk cannot be kept: leave the trunk cache out"
                )
            self._can_skip = True
        trunks.put(batch.inputs, hidden)
        return Trunk(batch, hidden, arguments)

    def _up_to_first(self, batch: Batch) -> tuple[Tensor, dict[int, LayerArguments]]:
        """What enters the first updated layer, and what the layers from there on are called with; see `run_to`."""
        if self._windows is not None:
            return self._windows.hidden(batch), self._windows.arguments(batch)
        return self._run_to_first(batch, skip=False)

    def _arguments(self, batch: Batch) -> dict[int, LayerArguments]:
        """What the layers from the first updated one on are called with, without running those below."""
        if self._windows is not None:
            return self._windows.arguments(batch)
        return self._run_to_first(batch, skip=True)[1]

    def _run_to_first(self, batch: Batch, *, skip: bool) -> tuple[Tensor, dict[int, LayerArguments]]:
        with torch.no_grad(), self._faster(batch, range(self.first), self._fused_parts):
            return self._decoder.run_to(self.first, self._stop, batch.inputs, skip=skip)

    def _not_kept(self) -> Iterator[Batch]:
        """The batches that will be run next, without those that the cache has."""
        for batch in self._upcoming():
            if self._trunks is None or not self._trunks.has(batch.inputs):
                yield batch

    def updated(self, trunk: Trunk, *, share: bool = False) -> Tensor:
        """The output of the last layer with the parameters as they are: [B, S, d], with gradients for these alone.

        Args:
            trunk: The batch so far.
            share: Whether another branch will run on the same trunk.
        """
        return self._run(trunk, share=share)

    def frozen(self, trunk: Trunk, *, share: bool = False) -> Tensor:
        """The same with the original parameters, without gradients."""
        if self._frozen is None:
            return self._original(trunk, share=share)
        inputs = trunk.batch.inputs
        if (kept := self._frozen.get(inputs)) is None:
            with self._frozen.claimed(inputs):
                if (kept := self._frozen.get(inputs, again=True)) is None:
                    kept = self._original(trunk, share=share)
                    self._frozen.put(inputs, kept)
        return kept

    def _original(self, trunk: Trunk, *, share: bool) -> Tensor:
        with torch.no_grad(), self.original_parameters():
            return self._run(trunk, share=share)

    @torch.no_grad()
    def now_and_before(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The outputs of the last layer with the parameters as they are and with the original ones, each [B, S, d].

        Nothing is read from a cache or kept in one.
        """
        trunk = Trunk(batch, *self._up_to_first(batch))
        now = self._run(trunk, share=False)
        with self.original_parameters():
            return now, self._run(trunk, share=False)

    def why_not_packed(self, padded: Batch, packed: Batch) -> str | None:
        """Why documents cannot be packed, tried on some of them with the original parameters; None if they can."""

        def activations(batch: Batch) -> Tensor:
            with torch.no_grad(), self.original_parameters():
                output = self._run(Trunk(batch, *self._up_to_first(batch)), share=False)
            return output[batch.attention_mask.bool()].float()

        expected = activations(padded)
        try:
            found = activations(packed)
        except NotPackableError as error:
            return str(error)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"tried without padding, {what_was_raised(error)}"
        # Half the digits of the dtype: batches of another shape round differently.
        differences = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        worst = float(differences.max())
        if worst <= torch.finfo(self._model.dtype).eps ** 0.5:
            return None
        return f"packed, activations of a token differ by {worst:.1g} of their length from what they are with padding"

    @contextmanager
    def original_parameters(self) -> Iterator[None]:
        """Puts the original tensors in; not while a gradient is still to be computed through these parameters."""
        current = {name: parameter.data for name, parameter in self._trained.items()}
        for name, parameter in self._trained.items():
            parameter.data = self.originals[name]
        try:
            yield
        finally:
            for name, parameter in self._trained.items():
                parameter.data = current[name]

    def _run(self, trunk: Trunk, *, share: bool) -> Tensor:
        with self._faster(trunk.batch, range(self.first, self._stop), _onednn_linears):
            with self._sharing(trunk, share=share):
                hidden = self._decoder.run_layers(self.first, self.first + 1, trunk.hidden, trunk.arguments)
            return self._decoder.run_layers(self.first + 1, self._stop, hidden, trunk.arguments)

    @contextmanager
    def _faster(
        self, batch: Batch, layers: range, parts: Callable[[nn.Module], AbstractContextManager[None]]
    ) -> Iterator[None]:
        """Inside, the model runs a packed batch, whose bits need not be the original's, and parts of layers are faster.

        The layers that the branches run apart are the same in both, to the bit: where they do not differ yet, the
        retain loss has to be 0.
        """
        if batch.layout is None:
            yield
        else:
            these = nn.ModuleList(self._decoder.layers[index] for index in layers)
            with packed_attention(self._model), packed_batch(batch.layout), parts(these):
                yield

    @contextmanager
    def _sharing(self, trunk: Trunk, *, share: bool) -> Iterator[None]:
        """Inside, the first updated layer takes from the other branch what both have in common, or keeps it for it."""
        if trunk.shared is not None:
            with _replayed(trunk.shared):
                yield
        elif share:
            with self._recorded() as trunk.shared:
                yield
        else:
            yield

    @contextmanager
    def _recorded(self) -> Iterator[Shared]:
        """Fills a `Shared` while the first updated layer runs inside."""
        recording = _Recording()
        handles = [
            module.register_forward_hook(recording.record_untrained_output, with_kwargs=True)
            for module in self._untrained_modules
        ]
        for owner in self._trained_modules:
            handles.append(owner.register_forward_pre_hook(recording.mark_first_trained_call, with_kwargs=True))
            handles.append(owner.register_forward_hook(recording.record_trained_output, with_kwargs=True))
        inner_first = [module for module in reversed(self._enclosing_modules) if module not in self._trained_modules]
        handles += [
            module.register_forward_hook(recording.detect_pass_through, with_kwargs=True) for module in inner_first
        ]
        try:
            yield recording.shared
        finally:
            for handle in handles:
                handle.remove()
        recording.drop_unneeded()


class _Recording:
    """The hooks that fill a `Shared`.

    Attributes:
        shared: What has been recorded.
    """

    def __init__(self) -> None:
        self.shared = Shared()
        self._first_trained_call: tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None = None
        # What the first trained matrix returned, and its version.
        self._trained_output: tuple[Tensor, int] | None = None

    def record_untrained_output(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """A module without trained parameters has returned."""
        if self._first_trained_call is None:
            self.shared.outputs.setdefault(module, []).append(output)

    def mark_first_trained_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module with trained parameters is called."""
        if self._first_trained_call is None:
            self._first_trained_call = (module, args, kwargs)

    def record_trained_output(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """A module with trained parameters has returned."""
        first = self._first_trained_call is not None and module is self._first_trained_call[0]
        if first and self._trained_output is None and isinstance(output, Tensor):
            self._trained_output = (output, output._version)

    def detect_pass_through(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """A module around the first trained matrix has returned: maybe what that made, unchanged, and nothing else."""
        if self._first_trained_call is None or self._trained_output is None:
            return
        made, version = self._trained_output
        items = output if isinstance(output, tuple) else (output,)
        others = [item for item in items if item is not made and item is not None]
        if made._version == version and not others and any(item is made for item in items):
            owner, args, kwargs = self._first_trained_call
            where = next(place for place, item in enumerate(items) if item is made)
            size = len(items) if isinstance(output, tuple) else None
            self.shared.resumed = (module, _resume(owner, args, kwargs, where, size))

    def drop_unneeded(self) -> None:
        """Forgets outputs inside the module that will be resumed at its trained matrix."""
        if self.shared.resumed is not None:
            inside = set(self.shared.resumed[0].modules())
            self.shared.outputs = {module: kept for module, kept in self.shared.outputs.items() if module not in inside}


def _resume(
    owner: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], where: int, size: int | None
) -> Callable[..., Any]:
    """A forward function that runs only the trained matrix, and returns what its surroundings would have.

    Args:
        owner: The module with the trained matrix.
        args: What it is called with.
        kwargs: Likewise.
        where: The place of what it returns in the tuple that its surroundings return.
        size: That tuple's length, or None if they return no tuple.
    """

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        made = owner(*args, **kwargs)
        return made if size is None else tuple(made if place == where else None for place in range(size))

    return forward


@contextmanager
def _replayed(shared: Shared) -> Iterator[None]:
    """Inside, modules give what they returned when it was recorded."""
    replacements = {module: _give(outputs) for module, outputs in shared.outputs.items()}
    if shared.resumed is not None:
        module, forward = shared.resumed
        replacements[module] = forward
    with replaced_forwards(replacements):
        yield


def _give(outputs: Sequence[Any]) -> Callable[..., Any]:
    in_order = iter(outputs)
    return lambda *_args, **_kwargs: next(in_order)
