"""The state of a run on disk, from which it goes on as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.checkpoints.checkpoint import sync_folder
from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import explain_full_disk

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STATE = "state.safetensors"


@dataclass
class State:
    """Everything that a continued run needs besides its input.

    Attributes:
        step: Steps done.
        tensors: Trained weights (`weights.NAME`), the optimizer's state (`first.NAME`, ...), what the method
            remembers (of RMU `control.TOPIC`), and the weights of the best step so far (`best.NAME`).
        method: What else the method remembers, as JSON has it.
        evaluations: Accuracies by step.
        best_step: The step that the best weights belong to, or None.
        seconds: Time spent so far.
        kl: The distance from the original model by step, if that is limited.
    """

    step: int
    tensors: dict[str, Tensor]
    method: Any
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    seconds: float = 0.0
    kl: list[dict[str, Any]] = field(default_factory=list)


def save_state(folder: Path, state: State, identity: dict[str, Any]) -> None:
    """Replaces the saved state. Whenever this is cut off, the old or the new one is there, whole.

    Args:
        folder: The run's working folder.
        state: What to save.
        identity: What a run must agree in to go on from here.

    Raises:
        OSError: The disk is full; the previous state is still there.
    """
    described = {
        "step": state.step,
        "method": state.method,
        "evaluations": state.evaluations,
        "best_step": state.best_step,
        "seconds": state.seconds,
        "kl": state.kl,
        "identity": identity,
    }
    fresh = folder / f"{STATE}.new"
    try:
        tensor_file.write_tensors(fresh, state.tensors, {"state": strict_json.dumps(described)})
        fresh.replace(folder / STATE)
        sync_folder(folder)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise explain_full_disk(error, folder / STATE) from error


def load_state(folder: Path, identity: dict[str, Any]) -> State | None:
    """The saved state, or None if the run had not come that far.

    Raises:
        ModelError: It belongs to a run with other settings or data, or is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        tensors, metadata = tensor_file.read_tensors(path)
    except ModelError as error:
        raise ModelError(f"{error}; remove {folder} to start over") from None
    now = json.loads(json.dumps(identity))
    try:
        described = json.loads(metadata["state"])
        before = described.pop("identity")
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        # One of another version of this package differs in its identity, and may differ in its fields.
        state = None if differing else State(tensors=tensors, **described)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error!r}); remove {folder} to start over") from None
    if differing:
        raise ModelError(
            f"{path} belongs to a run with other {', '.join(differing)}; resume with the same settings and data, or"
            f" remove {folder} to start over"
        )
    return state
