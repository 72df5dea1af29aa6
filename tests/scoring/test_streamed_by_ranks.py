"""A model that several processes stream together: the scores of one, and its bits if the shards are the same."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import killed_ranks, ranks
from wmdp_fast import cli
from wmdp_fast.models.fits import memory_to_stream_in
from wmdp_fast.models.locate import locate_model
from wmdp_fast.models.read_together import owners_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> dict[str, Any]:
    """What is asked of which model: batches are so small that each process has several chunks."""
    asked = ranks.questions_and_text(tmp_path_factory.mktemp("questions"), 30, 9)
    return {"model": llama_dir, **asked, "token_budget": 8}


@pytest.fixture(scope="module")
def in_memory(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The scores of one process with the model in memory, in three shards."""
    folder = tmp_path_factory.mktemp("alone")
    assert ranks.evaluate(1, folder, **options, shards=3) == [0]
    return ranks.scores_in(folder)[0]


def details_in(folder: Path) -> dict[str, Any]:
    [results] = folder.rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))["wmdp_fast"]
    return found


def test_ranks_that_stream_together_have_the_bits_of_one_process_in_memory(
    options: dict[str, Any], in_memory: np.ndarray, tmp_path: Path
) -> None:
    read = {}
    for size in (1, 2):
        folder = tmp_path / str(size)
        codes = ranks.evaluate(size, folder, **options, shards=3, stream=True, output=folder)
        assert codes == [0] * size
        for rank in range(size):
            np.testing.assert_array_equal(ranks.scores_in(folder, rank)[0], in_memory)
        read[size] = details_in(folder)["streamed"]["bytes_read"]
        assert list(folder.rglob("unfinished_*")) == []
    # The trials are each process's own, and two shards go through the layers at once.
    assert 0 < read[2] < read[1]


def test_ranks_with_a_part_each_have_the_scores_of_one_process(
    options: dict[str, Any], in_memory: np.ndarray, tmp_path: Path
) -> None:
    assert ranks.evaluate(2, tmp_path, **options, stream=True, output=tmp_path) == [0, 0]
    np.testing.assert_allclose(ranks.scores_in(tmp_path)[0], in_memory, rtol=2e-5)
    assert details_in(tmp_path)["shards"] == 2


@pytest.mark.parametrize(("kind", "count"), [("batch", 15), ("layer", 3)])
def test_a_rank_that_is_gone_ends_the_others(kind: str, count: int, options: dict[str, Any], tmp_path: Path) -> None:
    killed = killed_ranks.Moment(1, kind, count)
    codes = ranks.evaluate(2, tmp_path, **options, stream=True, output=tmp_path, killed=killed, stop_others=False)
    assert codes == [1, -signal.SIGKILL]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "kind", "count"), [(0, "batch", 15), (1, "batch", 12), (1, "layer", 5)])
def test_a_killed_rank_loses_nothing_whoever_goes_on(
    rank: int, kind: str, count: int, options: dict[str, Any], in_memory: np.ndarray, tmp_path: Path
) -> None:
    moment = killed_ranks.Moment(rank, kind, count)
    first = tmp_path / "killed"
    codes = ranks.evaluate(2, first, **options, shards=3, stream=True, output=first, killed=moment)
    assert codes[rank] == -signal.SIGKILL
    kept = killed_ranks.scores_in_journals(first)
    assert len(kept) >= killed_ranks.scored_until(first)
    for size, stream in ((1, True), (2, False), (3, True)):
        folder = tmp_path / str(size)
        shutil.copytree(first, folder)
        codes = ranks.evaluate(size, folder, **options, shards=3, stream=stream, output=folder, resume=True)
        assert codes == [0] * size
        np.testing.assert_array_equal(ranks.scores_in(folder)[0], in_memory)


def test_devices_share_the_memory(
    options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        monkeypatch.setenv(name, value)
    argv = ["eval", str(options["model"]), "--tasks", str(options["tasks"]), "--devices", "cpu:2"]
    assert cli.main([*argv, "--stream", "--memory", "8GB", "--json", "--output", str(tmp_path)]) == 0
    printed = capfd.readouterr()
    assert "in memory of 4 GB for each of 2 processes, which read them together" in printed.err
    assert len(json.loads(printed.out)["wmdp_fast"]["ranks"]) == 2


def test_processes_on_a_cpu_have_an_even_share_of_its_memory(llama_dir: Path) -> None:
    files = locate_model(str(llama_dir), revision=None)
    asked: dict[str, Any] = {"stream": True, "dtype": "auto", "device": "cpu"}
    assert memory_to_stream_in(files, memory="12GB", sharers=3, **asked) == 4_000_000_000
    alone, shared = (memory_to_stream_in(files, memory="auto", sharers=count, **asked) for count in (1, 4))
    assert alone is not None
    assert shared is not None
    assert shared < alone


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 5))
def test_each_reads_alike_much(sizes: list[int], count: int) -> None:
    owners = owners_of(sizes, count)
    assert len(owners) == len(sizes)
    load = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == one) for one in range(count)]
    assert max(load) - min(load) <= max(sizes, default=0)
