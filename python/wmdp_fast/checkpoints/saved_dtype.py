"""The type in which trained weights are saved, and what is lost by it.

A bfloat16 number has 8 significant bits. A weight of 0.03 lies on a grid of 0.0001 to 0.0002, which is no less than a
cautious run changes it by: trained in float32 and saved in the bfloat16 of its checkpoint, a weight may come back to
where it was. How much of a run is lost is measured here: the error of rounding, as a share of what training changed
(both as Euclidean norms over all trained weights). Up to a tenth, rounding is noise beside the change, and the
checkpoint keeps its type; beyond, weights are saved in the type that they were trained in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Largest error of rounding, as a share of the change, at which a checkpoint keeps its type.
BEARABLE = 0.1

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Saving:
    """How trained weights are saved.

    Attributes:
        dtypes: The type of each trained parameter, by its name in the model.
        as_checkpoint: Whether these are the checkpoint's own.
        trained_in: The type that they were trained in.
        lost: Norm of what rounding to `dtypes` changes, as a share of the norm of what training changed. 0 where
            nothing is rounded; infinite where training changed nothing.
        lost_as_checkpoint: The same for the checkpoint's types.
    """

    dtypes: dict[str, torch.dtype]
    as_checkpoint: bool
    trained_in: torch.dtype
    lost: float
    lost_as_checkpoint: float

    @property
    def dtype(self) -> str:
        """The type's name; several, comma-separated."""
        return ", ".join(sorted({_name(dtype) for dtype in self.dtypes.values()}))

    @property
    def reason(self) -> str | None:
        """Why weights are saved in another type than they were trained in or than the checkpoint has, or None."""
        trained = _name(self.trained_in)
        if self.as_checkpoint and not self.lost:
            return None
        if self.as_checkpoint:
            return (
                f"weights were trained in {trained} and are saved in {self.dtype}, the checkpoint's: rounding changes"
                f" them by {_percent(self.lost)} of what training did. Evaluations are of the rounded weights"
            )
        why = f"saved in {self.dtype}, not in the checkpoint's type"
        if self.lost_as_checkpoint > 0:
            why += f": rounding to that would change them by {_percent(self.lost_as_checkpoint)} of what training did"
        return f"weights trained in {trained} are {why}. config.json names the wider type, so loading takes more memory"

    @property
    def is_to_be_known(self) -> bool:
        """Whether someone who expects the checkpoint's type and the trained weights would be wrong."""
        return not self.as_checkpoint or self.lost > BEARABLE

    def rounded(self, name: str, tensor: Tensor) -> Tensor:
        """A trained parameter with the values that are saved, in its own type."""
        return tensor.to(self.dtypes[name]).to(tensor.dtype)

    def to_json(self) -> dict[str, Any]:
        """What the record says of it."""
        return {
            "dtype": self.dtype,
            "trained_in": _name(self.trained_in),
            "lost_to_rounding": self.lost,
            "lost_if_saved_as_checkpoint": self.lost_as_checkpoint,
            "reason": self.reason,
        }


@torch.no_grad()
def choose(
    wanted: str, trained: Mapping[str, Tensor], originals: Mapping[str, Tensor], stored: Mapping[str, torch.dtype]
) -> Saving:
    """Decides how the weights are saved as they are now.

    Args:
        wanted: `auto`, `checkpoint`, or a type by name.
        trained: The trained parameters by name.
        originals: What they were before.
        stored: The types that the checkpoint has them in.
    """
    trained_in = next(iter(trained.values())).dtype
    lost_stored = _lost(trained, originals, stored)
    if wanted == "checkpoint" or (wanted == "auto" and lost_stored <= BEARABLE):
        dtypes, lost = dict(stored), lost_stored
    elif wanted == "auto":
        dtypes, lost = dict.fromkeys(trained, trained_in), 0.0
    else:
        dtypes = dict.fromkeys(trained, _DTYPES[wanted])
        lost = _lost(trained, originals, dtypes)
    return Saving(dtypes, dtypes == dict(stored), trained_in, lost, lost_stored)


def _lost(trained: Mapping[str, Tensor], originals: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> float:
    """Norm of what rounding changes over the norm of what training changed."""
    if all(torch.promote_types(tensor.dtype, dtypes[name]) == dtypes[name] for name, tensor in trained.items()):
        return 0.0  # every type is wide enough
    error, change = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    for name, tensor in trained.items():
        values = tensor.detach().float()
        error += (values - values.to(dtypes[name]).float()).square().sum(dtype=torch.float64).cpu()
        change += (values - originals[name].float()).square().sum(dtype=torch.float64).cpu()
    if not float(error):
        return 0.0
    return math.sqrt(float(error) / float(change)) if float(change) else math.inf


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
