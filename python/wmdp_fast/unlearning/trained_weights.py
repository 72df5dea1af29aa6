"""The trained parameters of a run: as they were, as they are, and as they will be saved."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from wmdp_fast.checkpoints import checkpoint
from wmdp_fast.checkpoints.saved_dtype import Saving, choose

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from wmdp_fast.unlearning.source import Source


class TrainedWeights:
    """The parameters that a run trains.

    Args:
        parameters: By their names in the model that runs. They must have their original values.
        source: The model.
        save_dtype: The setting of that name.

    Attributes:
        parameters: As given.
        originals: Copies of the parameters as they were in the beginning.
        device: Of the first parameter.
        dtype: Likewise.

    Raises:
        ValueError: `save_dtype` is set for a model that has no files.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], source: Source, save_dtype: str) -> None:
        self.parameters = dict(parameters)
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        self._source, self._save_dtype = source, save_dtype
        # The types that the checkpoint has trained parameters in; those in memory if it is the model that has none.
        self._stored = {name: parameter.dtype for name, parameter in self.parameters.items()}
        if source.base is not None:
            self._stored = checkpoint.stored_dtypes(source.decoder.model, self.parameters, source.base)
        elif save_dtype not in ("auto", "checkpoint"):
            raise ValueError("save_dtype is for a model on disk: one in memory is saved in the type that it has there")
        self.originals = self.copies()

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
            return checkpoint.stored_tensors(self._source.decoder.model, self.parameters, self._source.base, dtype)
        return {name: tensor.detach().cpu().clone() for name, tensor in self.parameters.items()}

    @torch.no_grad()
    def _round(self, saving: Saving) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(saving.rounded(name, parameter))


@contextlib.contextmanager
def as_found(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, only trained parameters need gradients and nothing is in training mode; afterwards all is as before."""
    training = [(module, module.training) for module in model.modules()]
    needing = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in needing:
            parameter.requires_grad_(flag)
