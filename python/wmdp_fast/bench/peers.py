"""Engines that `wmdp-fast bench eval` runs in environments of their own: which there are, and what they cannot do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from wmdp_fast.bench.worker import Job

PEERS = ("vllm", "evalution")


def check_peers(job: Job, against: Collection[str], pythons: Collection[tuple[str, str]]) -> None:
    """Refuses what peers cannot do.

    Raises:
        ValueError: The model has no folder, or an interpreter is not there or of no baseline that is run.
    """
    peers = [name for name in against if name in PEERS]
    if peers and job.shape is not None:
        raise ValueError(f"{peers[0]} reads a model's folder: give one in place of a shape")
    for name, python in pythons:
        if name not in peers:
            raise ValueError(f"--peer-python {name}={python}: it is for {' and '.join(PEERS)}, named in --against")
        if shutil.which(python) is None:
            raise ValueError(f"--peer-python {name}={python}: there is no such program")
