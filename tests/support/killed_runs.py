"""Runs of unlearning in processes of their own, which are killed at a moment that is chosen beforehand.

A moment is a kind of event and how many of them are to pass: the layer of a forward or of a backward pass, the end of a
step, a measurement, a state that is half written or has just been put in place, a checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto import tokenization_auto  # noqa: F401 (loaded once, not by every child)
from transformers.models.llama import modeling_llama

import wmdp_fast as wf
from tests.support import unlearning_runs as runs
from wmdp_fast.checkpoints import checkpoint, tensor_file
from wmdp_fast.unlearning import budget, state
from wmdp_fast.unlearning.metrics import Metrics
from wmdp_fast.unlearning.one_run import one_run  # noqa: F401 (likewise)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wmdp_fast.unlearning.training_config import TrainingConfig

MOMENTS = ("forward", "backward", "step", "measurement", "half a state", "state", "checkpoint")

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.support.killed_runs"])


def run(base: Path, config: TrainingConfig, output: Path, moment: tuple[str, int] | None = None) -> int:
    """Goes on with a run from whatever is there; how its process ended, as `Process.exitcode`.

    Args:
        base: Folder of a model.
        config: The settings.
        output: The folder to make.
        moment: When it is killed: the kind of event, and how many of them are to pass; None lets it end.
    """
    child = CHILDREN.Process(target=_run, args=(base, config, output, moment))
    child.start()
    child.join()
    code = child.exitcode
    assert code is not None
    return code


def _run(base: Path, config: TrainingConfig, output: Path, moment: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    if moment is not None:
        _kill_at(*moment)
    wf.unlearn(
        base,
        forget=runs.corpus(runs.documents(1, count=40, longest=12), "forget"),
        retain=runs.corpus(runs.documents(2, count=40, longest=12), "retain"),
        config=config,
        output=output,
        resume=True,
        progress=False,
        max_kl=1e9,
        kl_text=base / "general.jsonl",
        kl_every=3,
    )


def _kill_at(kind: str, count: int) -> None:
    """Has this process kill itself at a moment; no `finally` and no handler runs."""
    left = count

    def event(*_: Any) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    if kind in ("forward", "backward"):
        _watch_layers(event, backward=kind == "backward")
    elif kind == "half a state":
        _watch_writing(event)
    else:
        where = {
            "step": (Metrics, "add"),
            "measurement": (budget, "padded_documents"),
            "state": (state, "sync_folder"),
            "checkpoint": (checkpoint, "write_checkpoint"),
        }
        _watch(*where[kind], event)


def _watch(owner: Any, name: str, event: Callable[..., None]) -> None:
    """Before each call of a function."""
    function = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        event()
        return function(*args, **kwargs)

    setattr(owner, name, watched)


def _watch_layers(event: Callable[..., None], *, backward: bool) -> None:
    """As a layer begins, or as the gradient of its output arrives."""
    forward = modeling_llama.LlamaDecoderLayer.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not backward:
            event()
        out = forward(self, *args, **kwargs)
        if backward and out.requires_grad:
            out.register_hook(event)
        return out

    modeling_llama.LlamaDecoderLayer.forward = watched


def _watch_writing(event: Callable[..., None]) -> None:
    """When half of a state is on the disk."""
    write = tensor_file.write_tensors

    def half(path: Path, *args: Any, **kwargs: Any) -> Any:
        written = write(path, *args, **kwargs)
        if path.name.startswith(state.STATE):
            contents = path.read_bytes()
            os.truncate(path, len(contents) // 2)
            event()
            path.write_bytes(contents)
        return written

    tensor_file.write_tensors = half
