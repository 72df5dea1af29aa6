"""The trained parameters of a run: as they were, as they are, and as they will be saved."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from wmdp_fast.checkpoints import checkpoint, tensor_file
from wmdp_fast.checkpoints.saved_dtype import Saving, choose
from wmdp_fast.checkpoints.shard_copies import ShardCopies
from wmdp_fast.exceptions import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from wmdp_fast.unlearning.parameters import TrainedParameter
    from wmdp_fast.unlearning.source import Source


class TrainedWeights:
    """The parameters that a run trains.

    Args:
        picked: The parameters. They must have their original values.
        source: The model.
        save_dtype: The setting of that name.

    Attributes:
        parameters: By their names in the model that runs; see `Setup.trained`.
        originals: Copies of the parameters as they were in the beginning.
        device: Of the first parameter.
        dtype: Of the first parameter in the model.

    Raises:
        ValueError: `save_dtype` is set for a model that has no files.
    """

    def __init__(self, picked: Iterable[TrainedParameter], source: Source, save_dtype: str) -> None:
        self.parameters = {one.name: one.parameter for one in picked}
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        self._source, self._save_dtype = source, save_dtype
        # Other names that the checkpoint has a trained parameter by too, as a head that is tied to the embedding.
        self._aliases = _aliases(source, self.parameters)
        # The types that the checkpoint has trained parameters in; those in memory if it is the model that has none.
        self._stored = {name: parameter.dtype for name, parameter in self.parameters.items()}
        self._patched: set[str] = set()
        if source.base is not None:
            self._stored = checkpoint.stored_dtypes(source.decoder.model, self.parameters, source.base)
            self._patched = self._to_be_patched(source.base)
        elif save_dtype not in ("auto", "checkpoint"):
            raise ValueError("save_dtype is for a model on disk: one in memory is saved in the type that it has there")
        self.originals = self._first_values()

    @property
    def model(self) -> nn.Module:
        """The model that has them, or as much of it as there is."""
        return self._source.whole or self._source.decoder.model

    @property
    def narrow(self) -> str | None:
        """The type of what is trained, if it is narrower than float32."""
        dtype = next(iter(self.parameters.values())).dtype
        return None if dtype.itemsize >= 4 else str(dtype).removeprefix("torch.")

    @contextlib.contextmanager
    def in_model(self, *, keep: bool = True) -> Iterator[None]:
        """Inside, the model has what is trained, and only that needs gradients. What was raised undoes the training.

        Args:
            keep: Whether the training stays in the model otherwise.
        """
        kept = False
        with as_found(self.model):
            only_trained(self.model, self.parameters.values())
            try:
                yield
                kept = keep
            finally:
                if not kept:
                    self.put_back()

    @contextlib.contextmanager
    def training(self, step: int, seed: int) -> Iterator[None]:  # noqa: ARG002
        """Inside, a step is computed; what is random in it follows from the step and the seed."""
        yield

    @contextlib.contextmanager
    def as_original(self) -> Iterator[None]:
        """Inside, the model is the original one. Not while a gradient through it is still to be computed."""
        with exchanged(self.parameters, self.originals):
            yield

    def copies(self) -> dict[str, Tensor]:
        """Copies of the parameters as they are, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Gives the parameters other values, by name."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def put_back(self) -> None:
        """Gives the parameters their original values."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.originals[name])

    def digest(self) -> str:
        """SHA-256 of the model's weights as they were in the beginning, as far as a run changes them."""
        return tensor_file.digest_of(self.originals)

    def saving(self) -> Saving:
        """In what type the weights would be saved now, and what that loses."""
        return choose(self._save_dtype, self.parameters, self.originals, self._stored)

    @contextlib.contextmanager
    def as_saved(self) -> Iterator[None]:
        """Inside, the model has the weights that would be saved now: what is measured is what others will load."""
        saving = self.saving()
        if not saving.lost:
            yield
            return
        exact = self.copies()
        self._round(saving)
        try:
            yield
        finally:
            self.put(exact)

    def round(self) -> Saving:
        """Gives the model the weights that are saved, and says what that changes."""
        saving = self.saving()
        if saving.lost:
            self._round(saving)
        return saving

    def changed(self, saving: Saving) -> dict[str, Tensor]:
        """The trained tensors, by the checkpoint's names and in the types they are saved in if there is one."""
        if self._source.base is not None:
            dtype = None if saving.as_checkpoint else next(iter(saving.dtypes.values()))
            named = self.parameters | {alias: self.parameters[name] for alias, name in self._aliases.items()}
            return checkpoint.stored_tensors(self._source.decoder.model, named, self._source.base, dtype)
        return {name: tensor.detach().cpu().clone() for name, tensor in self.parameters.items()}

    def shard_copies(self, folder: Path) -> ShardCopies | None:
        """Begins to copy the shards into which changed tensors will be written at the end, if that is how it will be.

        Args:
            folder: Where to.
        """
        base = self._source.base
        if base is None or not self._patched:
            return None
        return ShardCopies(base.folder, [base.shards[name] for name in self._patched], folder)

    def saved_from_memory(self, saved: checkpoint.Checkpoint) -> tuple[str, dict[str, Tensor]]:
        """Of a model in memory that was saved: the digest of what was there before, and what is, by the saved names."""
        base = self._source.decoder.model
        before = checkpoint.stored_tensors(base, self.originals, saved)
        changed = checkpoint.stored_tensors(base, self.parameters, saved)
        return tensor_file.digest_of(before), changed

    def write_adapter(self, folder: Path, base: str) -> None:
        """Writes what is trained as an adapter, if it is one."""
        raise InternalError(f"{base} has no adapter to write to {folder}")

    def _first_values(self) -> dict[str, Tensor]:
        return self.copies()

    def _to_be_patched(self, base: checkpoint.Checkpoint) -> set[str]:
        """The checkpoint's names of what is trained; none if its shards are to be written anew in another type."""
        if self._save_dtype not in ("auto", "checkpoint"):
            return set()
        shapes = {name: torch.empty_like(parameter, device="meta") for name, parameter in self.parameters.items()}
        return {*checkpoint.by_stored_name(self._source.decoder.model, shapes, base), *self._aliases}

    @torch.no_grad()
    def _round(self, saving: Saving) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(saving.rounded(name, parameter))


@contextlib.contextmanager
def exchanged(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, parameters have other tensors in their place; nothing is copied."""
    current = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = values[name]
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = current[name]


@contextlib.contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Afterwards modules are in training mode, and parameters need gradients, as before."""
    training = [(module, module.training) for module in model.modules()]
    needing = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in needing:
            parameter.requires_grad_(flag)


def only_trained(model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Nothing is in training mode any more, and only what is trained needs gradients."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def _aliases(source: Source, parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """What else the checkpoint calls a trained parameter that the model has in several places, and its name here.

    Transformers ties an embedding and a head that are both in a checkpoint only if they are equal.
    """
    if source.whole is None or source.base is None:
        return {}
    names = {id(parameter): name for name, parameter in parameters.items()}
    places = source.whole.named_parameters(remove_duplicate=False)
    found = {place: names[id(one)] for place, one in places if id(one) in names and place in source.base.shards}
    several = {name for name in found.values() if list(found.values()).count(name) > 1}
    return {place: name for place, name in found.items() if name in several and source.base.stored_name(name) != place}
