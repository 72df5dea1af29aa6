"""Scoring beside busy processes: whole seconds of this package and of lm-eval, alone and in company.

    python benches/busy_cores.py MODEL --tasks NAMES --data DIR [--limit N]

Each run is a process of its own, beside none, one and two processes that do nothing but count. *As it is* is this
package's command line, which tells OpenMP how long threads spin before they sleep; *passive* has them sleep at once and
*active* has them spin for as long as they wait (OMP_WAIT_POLICY). Then on one core (taskset), with twice as many
threads as there are cores, and, for root, in a control group with a quota of one core, as a container has it. To be run
alone, on two cores about ten minutes. The last column is the time over what the share of the cores allows: with as many
threads as cores, n busy ones beside them leave cores / (cores + n) of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.worker import Job
from wmdp_fast.runtime.tables import in_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUPS = Path("/sys/fs/cgroup")
CORES = len(os.sched_getaffinity(0))
WAYS = ("as it is", "passive", "active", "lm-eval")


@contextlib.contextmanager
def beside(busy: int) -> Iterator[None]:
    """So many processes that keep a core busy each, if they get one."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables that processes started meanwhile have."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def on_cores(number: int) -> Iterator[None]:
    """Only so many cores for processes started meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def with_quota(cores: int) -> Iterator[None]:
    """A control group for processes started meanwhile, with a quota as a container has; needs root.

    Raises:
        OSError: No group can be made here.
    """
    new_names = (_GROUPS / "cgroup.controllers").is_file()
    group = _GROUPS / ("busy-cores" if new_names else "cpu/busy-cores")
    group.mkdir()
    try:
        if new_names:
            (group / "cpu.max").write_text(f"{cores * 100_000} 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(cores * 100_000))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def seconds(way: str, given: argparse.Namespace) -> float:
    """A run's whole seconds, from exec to exit."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        if way == "lm-eval":
            job = Job(model=given.model, tasks=given.tasks, data=given.data, limit=given.limit, worker="lm-eval")
            run_worker("wmdp_fast.bench.worker", job, Path(name))
        else:
            command = [sys.executable, "-m", "wmdp_fast", "eval", given.model, "--tasks", given.tasks]
            command += ["--data", given.data, "--limit", str(given.limit), "--dtype", "float32", "--quiet"]
            with environment(**({} if way == "as it is" else {"OMP_WAIT_POLICY": way.upper()})):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=20)
    given = parser.parse_args()
    rows = [["beside", "way", "seconds", "times alone", "over its share"]]
    alone = {}

    def enter(where: str, way: str, share: float) -> None:
        took = seconds(way, given)
        alone.setdefault(way, took)
        ratio = took / alone[way]
        rows.append([where, way, f"{took:.1f}", f"{ratio:.2f}", f"{ratio * share:.2f}"])
        print(" ".join(rows[-1]), file=sys.stderr)

    seconds("passive", given)  # Files into the page cache.
    for busy in (0, 1, 2):
        for way in WAYS:
            with beside(busy):
                enter(f"{busy} busy", way, CORES / (CORES + busy))
    for way in WAYS:
        with on_cores(1):
            enter("one core by taskset", way, 1 / CORES)
    for way in WAYS:
        with environment(OMP_NUM_THREADS=str(2 * CORES)):
            enter(f"OMP_NUM_THREADS={2 * CORES}", way, 1.0)
    try:
        with with_quota(1):
            pass
    except OSError as error:
        print(f"a quota was not tried: {error}", file=sys.stderr)
    else:
        for way in WAYS:
            with with_quota(1):
                enter("a quota of one core", way, 1 / CORES)
        with with_quota(1), environment(OMP_NUM_THREADS=str(CORES)):
            enter(f"a quota of one core, OMP_NUM_THREADS={CORES}", "passive", 1 / CORES)
    print("\n".join(in_columns(rows, "llrrr")))


if __name__ == "__main__":
    main()
