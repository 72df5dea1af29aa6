"""How many cores a process may use, and what OpenMP is told."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from wmdp_fast.runtime import cpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/not/seen/inside\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "3:cpu,cpuacct:/a\n1:memory:/\n",
            {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, own: str, files: dict[str, str], quota: float | None):
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "own").write_text(own)
    assert cpus.core_quota(tmp_path / "own", tmp_path / "groups") == quota


def test_openmp_is_told_of_a_quota_and_to_sleep_unless_the_user_has_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(cpus, "core_quota", lambda: 1.5)
    for idle, spins in ((True, "10000"), (False, "3000")):
        monkeypatch.setattr(cpus, "_are_idle", lambda idle=idle: idle)
        monkeypatch.setattr(os, "environ", {})
        cpus.set_openmp()
        assert os.environ == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": spins, "OMP_NUM_THREADS": "1"}
    said = {"KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "7"}
    monkeypatch.setattr(os, "environ", dict(said))
    cpus.set_openmp()
    assert os.environ == said


@pytest.mark.parametrize(("running", "idle"), [(1, True), (3, True), (4, False), (20, False)])
def test_cores_are_idle_if_one_is_left_for_each_thread(
    running: int, idle: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(cpus, "available_cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  1 2 3\nprocesses 7\nprocs_running {running}\nprocs_blocked 0\n", encoding="ascii")
    assert cpus._are_idle(stat) is idle


def test_cores_of_which_nothing_is_known_are_not_called_idle(tmp_path: Path):
    assert not cpus._are_idle(tmp_path / "missing")
    (tmp_path / "stat").write_text("cpu  1 2 3\n", encoding="ascii")
    assert not cpus._are_idle(tmp_path / "stat")


def test_more_threads_than_cores_and_spinning_ones_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpus, "core_quota", lambda: 1.0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert cpus.about_threads(1) is None
    assert "OMP_NUM_THREADS=1" in (cpus.about_threads(2) or "")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "spin" in (cpus.about_threads(1) or "")


def test_the_affinity_counts():
    core = min(os.sched_getaffinity(0))
    limited = f"import os; os.sched_setaffinity(0, [{core}])"
    command = f"{limited}\nfrom wmdp_fast.runtime import cpus; print(cpus.available_cores())"
    assert subprocess.run([sys.executable, "-c", command], capture_output=True, check=True).stdout == b"1\n"
