"""A model that is open already and of which not all is in memory, in place of one that `evaluate` opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmdp_fast.models.load import LoadedModel


@dataclass(frozen=True)
class OpenedModel:
    """What `evaluate` takes of a run that trains some layers of a model and has only these in memory.

    Attributes:
        loaded: The model; its trained layers are as they are at the time.
    """

    loaded: LoadedModel
