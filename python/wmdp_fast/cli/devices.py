"""`--devices`: starts a process for each device, with torch's own launcher, the one of `torchrun`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from typing import TYPE_CHECKING, Any

from wmdp_fast.runtime import cpus
from wmdp_fast.runtime.devices import devices_of
from wmdp_fast.runtime.ranks import place_of_process

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def run(devices: str, argv: Sequence[str]) -> int:
    """Runs a command once for each device, the processes as ranks of one run; returns its exit code.

    Args:
        devices: What `--devices` was given.
        argv: The command's arguments.

    Raises:
        ValueError: `devices` is none of what it can be, or these processes have been started already.
        KeyboardInterrupt: It was stopped with Ctrl-C; with SIGTERM, the subclass of the command line.
    """
    if place_of_process().size > 1:
        raise ValueError("--devices starts the processes itself: leave it out where torchrun has started them")
    named = devices_of(devices)
    number = len(named.numbers)
    if named.numbers != tuple(range(number)):
        # They see no others.
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[one].strip() for one in named.numbers)
    os.environ["OMP_NUM_THREADS"] = cpus.openmp_threads(number)
    # When one ends, torch's C++ in the others would say so with its own stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    command, *rest = _without(argv)
    return _launch(number, ["-m", "wmdp_fast", command, "--device", named.kind, *rest])


def _without(argv: Iterable[str]) -> list[str]:
    """Arguments without `--devices` and what it was given."""
    left: list[str] = []
    skip = False
    for argument in argv:
        if not skip and argument != "--devices" and not argument.startswith("--devices="):
            left.append(argument)
        skip = argument == "--devices" and not skip
    return left


def _launch(number: int, command: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    # What it says of processes that end is said in one line, by them or below.
    logging.disable(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        return _about(error.failures)
    except SignalException as error:
        # The first rank has said what it leaves behind.
        return 143 if error.sigval == signal.SIGTERM else 130
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _about(failures: dict[int, Any]) -> int:
    """The exit code of a run with ranks that failed; says so if one was killed, as that one could not."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    # Those that are left when one has failed are stopped by the launcher.
    stopped = (-signal.SIGTERM, 128 + signal.SIGTERM)
    failed = {rank: code for rank, code in codes.items() if code not in stopped} or codes
    killed = {rank: code for rank, code in failed.items() if code < 0}
    for rank, code in killed.items():
        name = signal.Signals(-code).name
        print(
            f"error: rank {rank} was killed by {name}: with --output, the same with --resume goes on from what is done",
            file=sys.stderr,
        )
    return 1 if killed else max(failed.values())
