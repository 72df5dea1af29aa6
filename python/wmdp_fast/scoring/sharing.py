"""With how many processes an evaluation is shared, and in how many parts; checked before anything is loaded."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.runtime.ranks import Place, place_of_process
from wmdp_fast.scoring.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wmdp_fast.scoring.backend import LoadOptions
    from wmdp_fast.scoring.ranks import Parallel, Ranks

# Each has a journal of its own.
_MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Sharing:
    """How a run is shared.

    Attributes:
        place: The place of this process among those that score.
        shards: In how many parts; None for one each.
        parallel: How the processes hold one model together, all of which is scored by all of them; None if each has its
            own.
    """

    place: Place = field(default_factory=Place)
    shards: int | None = None
    parallel: Parallel | None = None

    @property
    def count(self) -> int:
        """In how many parts the run is scored."""
        return 1 if self.parallel else self.shards or self.place.size

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one part."""
        return self.count > 1

    @property
    def facts(self) -> dict[str, Any]:
        """What of it numbers depend on, by rounding, by the names that messages give it."""
        together = f"{self.parallel} by {self.place.size} processes" if self.parallel else None
        return {"shards": self.count if self.is_cut else None, "parallel": together}

    def on_own_device(self, load: LoadOptions) -> LoadOptions:
        """What to load this rank's model with; raises as `device_of_rank`."""
        from wmdp_fast.scoring.ranks import device_of_rank

        device = device_of_rank(load.device, self.place)
        # What is on several devices is not streamed.
        memory = None if self.parallel else load.memory
        return replace(load, device=device, memory=memory, sharers=self.place.on_machine)

    @contextlib.contextmanager
    def one_model(self, device: str) -> Iterator[None]:
        """Inside, processes that hold one model can load it. Raises as `ranks.one_model`."""
        if self.parallel is None:
            yield
            return
        from wmdp_fast.scoring import ranks

        with ranks.one_model(self.place, device):
            yield

    @contextlib.contextmanager
    def joined(self) -> Iterator[Ranks | None]:
        """The processes of the run once all are there; None for one alone. Raises as `ranks.joined`."""
        if self.place.size == 1 or self.parallel is not None:
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
    sharing = Sharing(place_of_process(), shards, load.parallel)
    size = sharing.place.size
    if size > 1 and load.allow_missing:
        raise ValueError(
            f"each of {size} processes would make up the weights that the checkpoint lacks for itself: score it by one,"
            " or leave allow_missing out"
        )
    if load.parallel is not None:
        _check_parallel(model, load, shards, size)
        return sharing
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
    return sharing


def _check_parallel(model: Any, load: LoadOptions, shards: int | None, size: int) -> None:
    """Raises ValueError if processes cannot hold a model together as they are asked to."""
    if load.parallel not in ("fsdp", "tp"):
        raise ValueError(f"parallel must be fsdp or tp, not {load.parallel!r}")
    if isinstance(model, Server) or not isinstance(model, str | os.PathLike):
        refused = "parallel is for a model that is loaded here from its folder or the hub"
        raise ValueError(refused)  # noqa: TRY004 (the model is right, the combination is not)
    if shards is not None:
        raise ValueError("parallel has all processes score all questions together: leave shards out")
    if load.stream or load.memory not in ("auto", None):
        raise ValueError("a model is streamed (memory, stream) or on several devices (parallel), not both")
    if parts_of(model)[1] is not None:
        raise ValueError(
            "parallel takes a checkpoint as it is, without a delta: `wmdp-fast apply-delta` makes one of base and delta"
        )
    if size == 1:
        raise ValueError("parallel needs a process for each device: start with torchrun, or with --devices")
