"""What enters a layer, kept for models whose layers below it are the same.

Adapters on the upper layers of a base, and checkpoints of a run that trained a few layers, differ from some layer on.
For the first of such models the residual stream that enters this layer is kept, batch by batch. The next ones run the
very same batches from there: their lower layers are replaced by stubs, and everything else is the model's own forward,
masks and angles included. So the bits are those of the whole model.

That is so only if nothing above looks below: a model that hands its layers more than the residual stream, or shares
keys and values across layers, may need what the stubs have left out. Excerpts are scored both ways first, to the bit;
and that the weights below are the same ones is told by their bytes.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.exceptions import InternalError, ModelError
from wmdp_fast.models.adapters import without_adapter
from wmdp_fast.models.decoder import decoder_of, residual_of
from wmdp_fast.models.fused.forwards import replaced_forwards
from wmdp_fast.models.lower_layers import LowerLayers
from wmdp_fast.models.sweep import returned
from wmdp_fast.runtime.memory import in_gigabytes
from wmdp_fast.scoring.padded import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.models.load import LoadedModel

# Of the memory that is free, what the states of a run may take: the rest is for the next model.
_SHARE = 0.25

# With fewer, less than a tenth of a model's time would be saved, or less than what proving it costs: 5 of 30 layers and
# 100 questions saved an eighth.
_LEAST_LAYERS = 2
_LEAST_SHARE = 1 / 8
_LEAST_TOKENS = 1000


def least_layers(num_layers: int) -> int:
    """How many layers models must have in common, of so many, for it to be worth anything."""
    return max(_LEAST_LAYERS, math.ceil(_LEAST_SHARE * num_layers))


@dataclass(frozen=True)
class RunPlan:
    """What decides how a run is cut into batches: equal plans make equal batches.

    Attributes:
        content: Hash of the tokens.
        token_budget: Maximum tokens per batch.
        readout_budget: Maximum readouts per batch.
        start: The first path.
    """

    content: str
    token_budget: int
    readout_budget: int
    start: int


@dataclass
class _Kept:
    """The states of a run: `[1, T, d]` for each batch, and how many things the layer that gave them returns."""

    states: dict[int, Tensor] = field(default_factory=dict)
    form: int | None = None

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.states.values())


class SharedTrunk:
    """Passes what enters a layer on from one model to the next.

    Args:
        below: The number of that layer.

    Attributes:
        below: As given.
        about: What results say of the last run.
    """

    def __init__(self, below: int) -> None:
        self.below = below
        self.about: dict[str, Any] = {}
        self._lower = LowerLayers(below)
        self._of: tuple[RunPlan, str] | None = None
        self._kept = _Kept()
        self._why_unproven: str | None = "it was not tried on excerpts"

    def trial(self) -> SharedTrunk:
        """One for excerpts, with which `prove` shows that this one can be used."""
        trial = SharedTrunk(self.below)
        trial._lower, trial._why_unproven = self._lower, None
        return trial

    def prove(
        self, trial: SharedTrunk, expected: NDArray[np.float64], score: Callable[[], NDArray[np.float64]]
    ) -> None:
        """Remembers whether excerpts have the same scores with the upper layers alone.

        Args:
            trial: What a run over the excerpts with all layers has filled.
            expected: The scores of that run.
            score: Scores them again with the trial.
        """
        if trial._of is None:
            self._why_unproven = trial.about["why_not"]
            return
        try:
            found = score()
        except Exception as error:
            # It is others' code, which may do anything with what a layer has not computed.
            if is_out_of_memory(error):
                raise
            found = None
        same = found is not None and np.array_equal(expected, found)
        self._why_unproven = None if same else "tried on excerpts, the layers above need more than the residual stream"

    def why_not(self, loaded: LoadedModel, tokens: int) -> str | None:
        """Why it is not used for a run of so many tokens, as far as that is known before; else None."""
        if loaded.streamed is not None or loaded.device.type != "cpu":
            return "this is for models in a CPU's memory"
        try:
            layers = len(_decoder(loaded.model).layers)
        except ModelError as error:
            return str(error)
        if not least_layers(layers) <= self.below < layers:
            return f"{self.below} of {layers} layers would save too little"
        if tokens * self.below < _LEAST_TOKENS * layers:
            return f"{tokens} tokens are too few"
        return None

    def refuse(self, why: str) -> None:
        """Says why it has no part in a run."""
        self.about = {"layers": self.below, "states": None, "why_not": why}

    def forget(self) -> None:
        """Lets go of what is kept."""
        self._of, self._kept = None, _Kept()

    def passes(self, loaded: LoadedModel, plan: RunPlan, tokens: int, *, whole: bool) -> Passes:
        """How the batches of a run go through the model.

        Args:
            loaded: The model, as it is called in the run.
            plan: The run.
            tokens: How many tokens it has.
            whole: Whether no batch is left out.
        """
        decoder = _decoder(loaded.model)
        digest = self._lower.digest(decoder)
        if digest is None or self._why_unproven is not None:
            self.refuse(self._why_unproven or "there are hooks or modules of an adapter below")
            return Passes()
        if self._of == (plan, digest):
            self.about = {"layers": self.below, "states": "taken", "bytes": self._kept.nbytes}
            return _Taking(decoder, self.below, self._kept)
        self.forget()
        if not whole:
            self.refuse("parts of the run were finished before")
            return Passes()
        size = tokens * decoder.hidden_size * loaded.dtype.itemsize
        free = _rust.available_memory()
        if free is None or size > _SHARE * free:
            self.refuse(f"{in_gigabytes(size)} of states are too much for the memory that is free")
            return Passes()
        return _Keeping(decoder, self.below, partial(self._keep, (plan, digest)))

    def _keep(self, of: tuple[RunPlan, str], kept: _Kept | None) -> None:
        if kept is None:
            self.refuse("the model changes what a layer returns before the next one is given it")
            return
        self._of, self._kept = of, kept
        self.about = {"layers": self.below, "states": "kept", "bytes": kept.nbytes}


class Passes:
    """How the batches of a run go through the model: as they are."""

    def batch(self, index: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """The context of a batch's forward pass, by its number in the run."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """All batches are done."""


class _Keeping(Passes):
    """What enters a layer is kept."""

    def __init__(self, decoder: Decoder, below: int, done: Callable[[_Kept | None], None]) -> None:
        self._last, self._next = decoder.layers[below - 1], decoder.layers[below]
        self._done = done
        self._kept: _Kept | None = _Kept()

    @contextlib.contextmanager
    def batch(self, index: int) -> Iterator[None]:
        given: list[Tensor] = []

        def last(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            hidden = residual_of(output)
            given.append(hidden)
            if self._kept is not None:
                self._kept.form = len(output) if isinstance(output, tuple) else None
                # A copy: what comes after it may write into it.
                self._kept.states[index] = hidden.clone()
            return output

        def following(forward: Callable[..., Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            if len(given) != 1 or hidden_states is not given[0]:
                self._kept = None
            return forward(hidden_states, *args, **kwargs)

        forwards: dict[nn.Module, Any] = {
            self._last: partial(last, self._last.forward),
            self._next: partial(following, self._next.forward),
        }
        with replaced_forwards(forwards):
            yield

    def finish(self) -> None:
        self._done(self._kept)


class _Taking(Passes):
    """What enters a layer is that of a run before, and what is below it is left out."""

    def __init__(self, decoder: Decoder, below: int, kept: _Kept) -> None:
        self._layers = [decoder.layers[index] for index in range(below)]
        self._kept = kept

    @contextlib.contextmanager
    def batch(self, index: int) -> Iterator[None]:
        states = self._kept.states[index].clone()

        def pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            return returned(hidden_states, self._kept.form)

        def last(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
            if hidden_states.shape != states.shape:
                raise InternalError(f"batch {index} has {hidden_states.shape[1]} tokens, not {states.shape[1]}")
            return returned(states, self._kept.form)

        forwards: dict[nn.Module, Any] = dict.fromkeys(self._layers, pass_on)
        forwards[self._layers[-1]] = last
        with replaced_forwards(forwards):
            yield


def _decoder(model: nn.Module) -> Decoder:
    return decoder_of(without_adapter(model))
