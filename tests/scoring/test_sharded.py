"""Evaluations that several processes share: the numbers of one, and its bits if the shards are the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.support import killed_ranks, ranks, tiny_models
from tests.support.thorough import THOROUGH
from wmdp_fast import Requests, cli
from wmdp_fast._rust import Trie
from wmdp_fast.cli import devices as cli_devices
from wmdp_fast.exceptions import JournalError
from wmdp_fast.runtime.ranks import Place, place_of_process
from wmdp_fast.scoring.shards import shards_of

if TYPE_CHECKING:
    from pathlib import Path

# What `options` asks for: the choices of all questions, and a text of one window.
ALL = 30 * 4 + 1

TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.data(),
)
def test_shards_hold_each_question_that_is_left_once(
    asked: list[tuple[list[int], list[list[int]]]], count: int, data: st.DataObject
) -> None:
    requests = Requests.from_tokens([context for context, _ in asked], [choices for _, choices in asked], 8)
    offsets = requests.choice_offsets
    size = requests.num_choices
    finished = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    shards = shards_of(requests, count, finished)
    left = [q for q in range(len(asked)) if not finished[offsets[q] : offsets[q + 1]].all()]
    choices = np.concatenate([np.empty(0, dtype=np.int64), *(shard.choices for shard in shards)])
    assert sorted(choices) == [choice for q in left for choice in range(offsets[q], offsets[q + 1])]
    for shard in shards:
        assert shard.requests.num_choices == len(shard.choices)
        for own, choice in enumerate(shard.choices):
            np.testing.assert_array_equal(shard.requests.continuation(own), requests.continuation(choice))
        questions = np.unique(np.searchsorted(offsets, shard.choices, side="right") - 1)
        contexts = [shard.requests.context(own).tolist() for own in range(shard.requests.num_questions)]
        assert contexts == [asked[question][0] for question in questions]


def test_shards_have_alike_work_and_few_tokens_twice() -> None:
    rng = np.random.default_rng(0)
    subjects = [rng.integers(1, 500, size=60).tolist() for _ in range(6)]
    contexts = [subjects[q % 6] + rng.integers(1, 500, size=rng.integers(10, 50)).tolist() for q in range(120)]
    requests = Requests.from_tokens(contexts, [[[1], [2, 3]]] * 120, 256)
    shards = shards_of(requests, 4, np.zeros(240, dtype=np.bool_))
    tokens = [Trie(shard.requests).num_tokens for shard in shards]
    assert max(tokens) / min(tokens) < 1.1
    # No more than a subject's beginning for each cut.
    assert sum(tokens) <= Trie(requests).num_tokens + 3 * 60


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> dict[str, Any]:
    """What is asked of which model."""
    return {"model": llama_dir, **ranks.questions_and_text(tmp_path_factory.mktemp("questions"), 30, 9)}


@pytest.fixture(scope="module")
def alone(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, np.ndarray]:
    """The scores of one process, by the number of shards."""
    found = {}
    for shards in (None, 3):
        folder = tmp_path_factory.mktemp("alone")
        assert ranks.evaluate(1, folder, **options, shards=shards) == [0]
        found[shards] = ranks.scores_in(folder)[0]
    return found


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def journals(folder: Path) -> list[Path]:
    return [*folder.rglob("unfinished_*")]


def test_ranks_have_the_scores_of_one_process(
    options: dict[str, Any], alone: dict[int | None, np.ndarray], tmp_path: Path
) -> None:
    assert_close(alone[3], alone[None])
    for size, shards in ((2, None), (2, 3)):
        folder = tmp_path / f"{size} {shards}"
        assert ranks.evaluate(size, folder, **options, shards=shards, output=folder) == [0] * size
        for rank in range(size):
            found = ranks.scores_in(folder, rank)[0]
            (np.testing.assert_array_equal if shards else assert_close)(found, alone[shards])
        [results] = folder.rglob("results_*.json")
        details = json.loads(results.read_text(encoding="utf-8"))["wmdp_fast"]
        assert details["shards"] == (shards or size)
        assert [one["batches"] > 0 for one in details["ranks"]] == [True] * size
        assert journals(folder) == []
        assert ranks.evaluate(size, folder, **options, shards=shards, output=folder, resume=True) == [0] * size
        read = [(folder / f"{rank}.read").read_text(encoding="utf-8") for rank in range(size)]
        assert (read, ranks.scored_by(folder, size)) == ([str(results)] * size, 0)


def test_a_rank_that_is_gone_ends_the_others(options: dict[str, Any], tmp_path: Path) -> None:
    killed = killed_ranks.Moment(1, "batch", 2)
    codes = ranks.evaluate(2, tmp_path, **options, output=tmp_path, killed=killed, stop_others=False)
    assert codes == [1, -signal.SIGKILL]


MOMENTS = killed_ranks.drawn(random.Random(19))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MOMENTS)) if THOROUGH else (4, 6, 8, 9))
def test_a_killed_rank_loses_nothing_whoever_goes_on(
    number: int, options: dict[str, Any], alone: dict[int | None, np.ndarray], tmp_path: Path
) -> None:
    moment, shards = MOMENTS[number], 3 if number % 2 else None
    first = tmp_path / "killed"
    codes = ranks.evaluate(2, first, **options, shards=shards, output=first, killed=moment)
    assert codes[moment.rank] == -signal.SIGKILL
    assert codes[1 - moment.rank] in (1, -signal.SIGTERM)
    kept = killed_ranks.scores_in_journals(first)
    assert len(kept) == len(set(kept))  # none was scored by both
    saved = list(first.rglob("results_*.json"))
    if moment.kind != "deleting":
        assert len(kept) >= killed_ranks.scored_until(first)
        assert bool(saved) == (moment.kind == "saved")
    for size in (1, 2, 3) if THOROUGH else (1 + number % 3,):
        folder = tmp_path / str(size)
        shutil.copytree(first, folder)
        assert ranks.evaluate(size, folder, **options, shards=shards, output=folder, resume=True) == [0] * size
        if saved and (shards or size) == (shards or 2):
            # It was finished: all ranks read that, and what was left of its journals is deleted.
            read = [(folder / f"{rank}.read").read_text(encoding="utf-8") for rank in range(size)]
            assert read == [str(next(folder.rglob("results_*.json")))] * size
            assert (ranks.scored_by(folder, size), journals(folder)) == (0, [])
            continue
        (np.testing.assert_array_equal if shards else assert_close)(ranks.scores_in(folder)[0], alone[shards])
        assert ranks.scored_by(folder, size) == ALL - len(kept)  # what was finished is not scored again
        assert journals(folder) == []


def test_one_process_goes_on_with_shards_and_shards_with_one_process(
    options: dict[str, Any], alone: dict[int | None, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**options, "device": "cpu", "output": tmp_path, "progress": False, "text": ()}
    expected = alone[None][: len(alone[None]) - 1]
    with monkeypatch.context() as patch:
        patch.setattr(wf.EvalResult, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full", "results")))
        with pytest.raises(OSError, match="full"):
            wf.evaluate(**asked, shards=3)
    assert len(journals(tmp_path)) == 3
    with pytest.raises(JournalError, match="go on from there with --resume"):
        wf.evaluate(**asked)
    with monkeypatch.context() as patch:
        patch.setattr(wf.EvalResult, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full", "results")))
        with pytest.raises(OSError, match="full"):
            wf.evaluate(**asked, resume=True)
    assert len(journals(tmp_path)) == 1
    found = wf.evaluate(**asked, shards=2, resume=True)
    assert (found.details["choices_resumed"], found.details["tokens_run"]) == (120, 0)
    assert_close(found["birds"].outcome.loglikelihood, expected)
    assert journals(tmp_path) == []


def test_devices_starts_the_ranks_itself(
    options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        # What the command sets for its processes is put back after the test.
        monkeypatch.setenv(name, value)
    argv = ["eval", str(options["model"]), "--tasks", str(options["tasks"]), "--devices", "cpu:2"]
    assert cli.main([*argv, "--json", "--output", str(tmp_path)]) == 0
    printed = capfd.readouterr()
    assert len(json.loads(printed.out)["wmdp_fast"]["ranks"]) == 2
    assert printed.err.count("scoring: 100%") == 1  # of the first rank alone
    assert len(list(tmp_path.rglob("results_*.json"))) == 1


@pytest.mark.parametrize(
    ("codes", "named", "code"),
    [
        ({0: -15, 1: -9}, ["rank 1 was killed by SIGKILL"], 1),
        ({0: -15, 1: -15}, ["rank 0 was killed by SIGTERM", "rank 1 was killed by SIGTERM"], 1),
        ({0: -9, 1: -11, 2: 1}, ["rank 0 was killed by SIGKILL", "rank 1 was killed by SIGSEGV"], 1),
        ({0: -15, 1: 2}, [], 2),
        ({0: 143, 1: 1}, [], 1),
        ({0: 143, 1: 143}, [], 143),
    ],
)
def test_ranks_that_the_launcher_has_stopped_are_not_blamed(
    codes: dict[int, int], named: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = {rank: SimpleNamespace(exitcode=one) for rank, one in codes.items()}
    assert cli_devices._about(failures) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("error: ").partition(":")[0] for line in lines] == named


def test_devices_that_are_not_there_are_refused(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", str(options["model"]), "--tasks", str(options["tasks"]), "--devices"]
    for devices, said in {
        "9999": "there are",
        "cuda:9000": "there are",
        "tpu": "must be all, a number of GPUs",
        "cuda:1,cuda:1": "twice",
    }.items():
        assert cli.main([*argv, devices]) == 1
        assert said in capsys.readouterr().err
    for option in (["--device", "cpu"], ["--allow-missing"]):
        with pytest.raises(SystemExit):
            cli.main([*argv, "cpu:2", *option])
        assert f"--devices and {option[0]} exclude each other" in capsys.readouterr().err


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_what_cannot_be_shared_is_refused(
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert place_of_process() == Place()
    server = wf.Server(model="m", protocol="openai", base_url="http://localhost:1/v1")
    with pytest.raises(ValueError, match="a served model is asked by one process"):
        wf.evaluate(server, tasks=options["tasks"], shards=2)
    with pytest.raises(ValueError, match="shards must be a number from 1"):
        wf.evaluate(**options, shards=0)
    as_rank(monkeypatch, "1", "2")
    with pytest.raises(ValueError, match="at least the number of processes, 2, not 1"):
        wf.evaluate(**options, shards=1)
    with pytest.raises(ValueError, match="each of 2 processes would make up the weights"):
        wf.evaluate(**options, allow_missing=True)
    with pytest.raises(ValueError, match="a model in memory cannot be shared by 2 processes"):
        wf.evaluate(tiny_models.build("llama"), tokenizer=tiny_models.tokenizer(), tasks=options["tasks"])
    with pytest.raises(ValueError, match="device cuda:1 is a single one"):
        wf.evaluate(**options, device="cuda:1")
    with pytest.raises(ValueError, match="several models are scored by one process, not by 2"):
        wf.evaluate_many([options["model"]], tasks=options["tasks"])
    with pytest.raises(SystemExit):
        cli.main(["eval", "a", "b", "--tasks", str(options["tasks"])])
    assert "several models are scored by one process" in capsys.readouterr().err
    as_rank(monkeypatch, "2", "2")
    with pytest.raises(ValueError, match=r"the environment names no rank of a run \(RANK=2, WORLD_SIZE=2"):
        place_of_process()
