"""A model that is open already and of which this process has not all, in place of one that `evaluate` opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wmdp_fast.models.load import LoadedModel


@dataclass(frozen=True)
class OpenedModel:
    """What `evaluate` takes of a run that trains a model of which it has some layers only, or a part of each.

    Attributes:
        loaded: The model; what is trained is as it is at the time.
    """

    loaded: LoadedModel
