"""How many cores this process may use, by its affinity and by the quota of its control groups, and how OpenMP waits.

Torch goes by the affinity alone. In a container with a quota of one core on a machine that shows more, it starts a
thread for each core it sees; they take the quota from each other, and all stand still until the next period.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Each is a wish of the user's about how threads of OpenMP wait.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that may run threads of this process at the same time, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = core_quota()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def core_quota(own: Path = _OWN, mount: Path = _GROUPS) -> float | None:
    """Cores that the control groups of this process allow on average; None without a limit.

    Args:
        own: What says which groups it is in.
        mount: Where control groups are mounted.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / "cpu" if controllers else mount
        group = root / path.lstrip("/")
        # In a container the path may be that outside, of which only the root is there.
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (found := _quota_of(folder)) is not None:
                quotas.append(found)
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    try:
        if (group / "cpu.max").is_file():
            allowed, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            allowed = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if not allowed.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # `max`, or -1
    return int(allowed) / int(period)


def set_openmp() -> None:
    """Has OpenMP start no more threads than may run at once, and has them sleep where they would spin.

    Beside other busy processes, threads that spin take the time of those that they wait for: a run took 8 times as long
    instead of twice. Alone it makes no difference. OpenMP reads both once, as torch is loaded, so it comes too late
    after that. What the user has said stays.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    quota = core_quota()
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(available_cores())


def openmp_threads(processes: int) -> str:
    """`OMP_NUM_THREADS` of each of several processes: what the user has said, or an even share of the cores."""
    # Under a quota it may be `set_openmp` that has said it, for one process.
    if "OMP_NUM_THREADS" in os.environ and core_quota() is None:
        return os.environ["OMP_NUM_THREADS"]
    return str(max(1, available_cores() // processes))


def about_threads(threads: int) -> str | None:
    """What is wrong with so many threads of torch, or with how they wait, and what to do; None if nothing is.

    Args:
        threads: How many threads torch runs loops on.
    """
    cores = available_cores()
    if threads > cores:
        return (
            f"torch runs {threads} threads where affinity and quota allow {cores}, so that they wait for each other:"
            f" set OMP_NUM_THREADS={cores}"
        )
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "ACTIVE":
        return (
            "OMP_WAIT_POLICY is ACTIVE: threads spin while they wait, and beside other work a run takes several times"
            " as long; unset it, or set it to PASSIVE"
        )
    return None
