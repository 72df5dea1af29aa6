"""With how many processes an evaluation is shared, and in how many parts; checked before anything is loaded."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.runtime.ranks import Place, place_of_process
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wmdp_fast.scoring.backend import LoadOptions
    from wmdp_fast.scoring.ranks import Ranks

# Each has a journal of its own.
_MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Sharing:
    """How a run is shared.

    Attributes:
        place: The place of this process among those that score.
        shards: In how many parts; None for one each.
    """

    place: Place = field(default_factory=Place)
    shards: int | None = None

    @property
    def count(self) -> int:
        """In how many parts the run is scored."""
        return self.shards or self.place.size

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one part."""
        return self.count > 1

    def on_own_device(self, load: LoadOptions) -> LoadOptions:
        """What to load this rank's model with; raises as `device_of_rank`."""
        from wmdp_fast.scoring.ranks import device_of_rank

        return replace(load, device=device_of_rank(load.device, self.place))

    @contextlib.contextmanager
    def joined(self) -> Iterator[Ranks | None]:
        """The processes of the run once all are there; None for one alone. Raises as `ranks.joined`."""
        if self.place.size == 1:
            yield None
            return
        from wmdp_fast.scoring import ranks

        with ranks.joined(self.place) as found:
            yield found

    @contextlib.contextmanager
    def warnings_once(self) -> Iterator[None]:
        """Inside, this package's warnings are those of the first rank, which are those of all."""
        if self.place.rank == 0:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WmdpFastWarning)
            yield


def sharing_of(model: Any, load: LoadOptions, shards: int | None) -> Sharing:
    """How this process shares an evaluation, by its environment and the number of shards asked for.

    Raises:
        ValueError: The environment is wrong, there are fewer shards than processes, or it cannot be shared.
    """
    if shards is not None and not 1 <= shards <= _MOST_SHARDS:
        raise ValueError(f"shards must be a number from 1 to {_MOST_SHARDS}, not {shards}")
    sharing = Sharing(place_of_process(), shards)
    size = sharing.place.size
    if shards is not None and shards < size:
        raise ValueError(f"shards must be at least the number of processes, {size}, not {shards}")
    if not sharing.is_cut:
        return sharing
    if isinstance(model, Server):
        refused = "a served model is asked by one process and not in shards: that is up to the server"
        raise ValueError(refused)  # noqa: TRY004 (the model is right, the combination is not)
    if size > 1 and not isinstance(model, str | os.PathLike):
        refused = f"a model in memory cannot be shared by {size} processes: name its folder"
        raise ValueError(refused)
    if load.stream or load.memory not in ("auto", None):
        raise ValueError("a model that is streamed (memory, stream) is scored by one process and without shards")
    return sharing
