"""Jobs that processes do side by side: none is lost when one is killed, and what goes wrong is raised here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wmdp_fast.exceptions import DatasetError, ModelError, WmdpFastWarning
from wmdp_fast.runtime import workers
from wmdp_fast.runtime.devices import Devices, devices_of

if TYPE_CHECKING:
    from collections.abc import Callable

TWO = Devices("cpu", (0, 1))


def begin(folder: str, device: str) -> Callable[[str, Callable[[str], None]], None]:
    """What the processes do: a job is a word."""
    import warnings

    def work(job: str, tell: Callable[[str], None]) -> None:
        warnings.warn("each of them says so", WmdpFastWarning, stacklevel=1)
        if job == "fail":
            raise DatasetError("birds", "no owl", 3)
        if job == "die" or (job == "die once" and not (Path(folder) / "died").exists()):
            (Path(folder) / "died").touch()
            tell("half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "wait":
            time.sleep(600)
        tell(f"{job} on {device} of {os.getpid()}")

    return work


def done(folder: object, *calls: list[str]) -> list[str]:
    """What two processes tell of jobs, call after call."""
    with workers.started(begin, folder, TWO) as two:
        return [told for jobs in calls for told in two.each(jobs, left=lambda job: job)]


def test_jobs_are_done_by_whoever_is_free_and_again_if_one_is_killed(tmp_path: Path) -> None:
    jobs = ["die once", *(f"job {number}" for number in range(8))]
    with pytest.warns(WmdpFastWarning) as warned:
        told = done(str(tmp_path), jobs, ["job 8"])  # the one that is left goes on
    assert sorted(one.partition(" on ")[0] for one in told) == ["die once", "half of it", *jobs[1:], "job 8"]
    said = [str(one.message) for one in warned]
    assert said.count("each of them says so") == 1
    assert [one for one in said if "the process on cpu was killed by SIGKILL" in one]


@pytest.mark.filterwarnings("ignore:each of them", "ignore:the process on cpu")
def test_what_is_raised_in_one_ends_all_and_all_killed_is_an_error(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(DatasetError, match="birds, row 3: no owl") as caught:
        done(str(tmp_path), ["wait", "fail"])
    assert caught.value.__notes__ == ["on cpu"]
    assert "in work" in str(caught.value.__cause__)
    with pytest.raises(ModelError, match="every process has ended, the last one killed by SIGKILL"):
        done(str(tmp_path), ["die"])
    assert time.monotonic() - begun < 100


def test_what_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(ValueError, match="classes must be in a file that can be"):
        done(lambda: None)


def test_devices_are_what_the_option_says() -> None:
    assert devices_of("cpu:2").names == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="must be all, a number of GPUs"):
        devices_of("tpu")
