"""With which processes a run holds its model together; checked before anything is loaded."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.runtime.ranks import place_of_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wmdp_fast.runtime.ranks import Place
    from wmdp_fast.unlearning.request import Request
    from wmdp_fast.unlearning.shared_batches import SharedBatches
    from wmdp_fast.unlearning.training_config import TrainingConfig


def place_in_run(
    parallel: str | None, model: Any, request: Request, device: str, **others: object
) -> tuple[Place | None, str]:
    """The place of this process among those of a run, None for a run that it makes alone; and its device.

    Args:
        parallel: How they hold the model together: `fsdp`; None if this one has all of it.
        model: What is to be unlearned.
        request: What the user asked for.
        device: `auto`, `cpu` or `cuda`; of a run alone, any.
        others: Settings that do not go with it, by name; what is neither None nor False is refused.

    Raises:
        ModelError: There are fewer GPUs than processes on this machine.
        ValueError: It cannot be done with this model, method or request, or nothing started several processes.
    """
    if parallel is None:
        return None, device
    if parallel != "fsdp":
        raise ValueError(f"parallel of unlearn must be fsdp, not {parallel!r}")
    _check_method(request.config)
    if not isinstance(model, (str, os.PathLike)) or parts_of(os.fspath(model))[1] is not None:
        raise ValueError("parallel takes a checkpoint as it is, by its folder or name on the hub")
    if given := [name for name, value in others.items() if value is not None and value is not False]:
        raise ValueError(f"parallel and {given[0]} exclude each other: leave one of them out")
    place = place_of_process()
    if place.size == 1:
        raise ValueError("parallel needs a process for each device: start with torchrun, or with --devices")
    from wmdp_fast.scoring.ranks import device_of_rank

    return place, device_of_rank(device, place)


def _check_method(config: TrainingConfig) -> None:
    """Raises ValueError for a method whose batches cannot be shared, or that trains what is shared out."""
    if not config.shares_batches:
        instead = "run it on one device"
        if config.method_name == "rmu":
            instead = "it loads a few layers only: run it on one device, with memory (--memory) if they do not fit"
        raise ValueError(
            f"parallel is for methods that can share the documents of a batch; {config.method_name} does not: {instead}"
        )
    if config.lora is None:
        raise ValueError(
            "parallel shares out weights that stay as they are, so that it needs lora and save_adapter (--lora"
            " r=16 --save-adapter); to train the weights themselves, run on one device"
        )
    if not config.save_adapter:
        raise ValueError(
            "no process has whole matrices to merge factors into, so that parallel needs save_adapter (--save-adapter)"
        )


@contextlib.contextmanager
def sharing(place: Place | None, device: str) -> Iterator[SharedBatches | None]:
    """Inside, the processes of a run are there, and only the first one warns; None for one alone.

    Args:
        place: The place of this one.
        device: Its device.

    Raises:
        ModelError: The first process cannot be reached, this torch has no NCCL for GPUs, or another process has ended.
    """
    if place is None:
        yield None
        return
    from wmdp_fast.scoring.ranks import one_model
    from wmdp_fast.unlearning.shared_batches import SharedBatches

    with one_model(place, device), warnings.catch_warnings():
        if place.rank > 0:
            warnings.simplefilter("ignore", WmdpFastWarning)
        yield SharedBatches()


def silenced(request: Request) -> Request:
    """The same request by a process that says nothing, as the first one speaks for all."""
    return replace(request, progress=False, note=lambda _line: None, report_to=[])
