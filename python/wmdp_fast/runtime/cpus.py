"""How many cores this process may use, by its affinity and by the quota of its control groups, and how OpenMP waits.

Torch goes by the affinity alone. In a container with a quota of one core on a machine that shows more, it starts a
thread for each core it sees; they take the quota from each other, and all stand still until the next period.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

# Each is a wish of the user's about how threads of OpenMP wait.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")

# How often a thread of GCC's OpenMP looks whether the next loop has come before it sleeps: some tenths of a millisecond
# and a third of that where another process may wait for its core. 60 questions (MMLU, 0-shot, SmolLM2-135M, two cores)
# took 5.0 s with the first, 5.7 with the second, 6.2 with none; beside a busy process 40 took 8.8, 7.6 and 7.6 s,
# beside two 9.8, 9.3 and 9.7.
_SPINS, _SPINS_BESIDE_OTHERS = 10_000, 3_000

_STAT = Path("/proc/stat")
_LOOKS, _SECONDS_BETWEEN_LOOKS = 3, 0.001

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
    """Has OpenMP start no more threads than may run at once, and has them sleep where they would spin for long.

    Beside other busy processes, threads that spin take the time of those that they wait for: a run took 8 times as long
    instead of twice. Threads that sleep at once have to be woken at each loop, of which a layer has some twenty: alone
    on two cores, scoring took a fifth longer than with `_SPINS`. OpenMP reads all of it once, as torch is loaded, so it
    comes too late after that. What the user has said stays.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _WAITING):
        # The first is understood by all of OpenMP's libraries, the second by GCC's, which torch's wheels have.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS if _are_idle() else _SPINS_BESIDE_OTHERS)
    quota = core_quota()
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(available_cores())


def _are_idle(stat: Path = _STAT) -> bool:
    """Whether there is a core for each thread now, that is, whatever else runs on this machine leaves so many."""
    running = []
    for _ in range(_LOOKS):
        try:
            found = re.search(r"^procs_running (\d+)$", stat.read_text(encoding="ascii"), re.MULTILINE)
        except OSError:
            return False
        if found is None:
            return False
        running.append(int(found[1]))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    # This process is one of them. What works for a moment only is not there at each look.
    return min(running) - 1 + available_cores() <= (os.cpu_count() or 1)


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
