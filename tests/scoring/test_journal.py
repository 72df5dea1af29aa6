"""A run that is stopped loses nothing: what a journal holds is read again, and what is resumed gives the same bits."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.support import tiny_models
from tests.support.killed_runs import CHILDREN
from wmdp_fast import Requests, cli
from wmdp_fast.exceptions import JournalError, WmdpFastWarning
from wmdp_fast.scoring import scores as scores_module
from wmdp_fast.scoring.journal import Journal, Plan
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score_trie

if TYPE_CHECKING:
    from pathlib import Path

RUN = {"model files": "abc", "dtype": "float32"}
PLAN = Plan("trie", "auto", 2048, 3)


def write(folder: Path) -> Path:
    """A journal of two batches, closed."""
    journal = Journal.open(folder, RUN, resume=False)
    journal.plan_from(Plan("trie", "auto", 4096, 0))
    journal.add(np.array([0, 2]), np.array([-1.5, -np.inf]), np.array([True, False]))
    journal.plan_from(PLAN)
    journal.add(np.array([1]), np.array([-0.1]), np.array([False]))
    journal.close()
    return journal.path


def read(folder: Path) -> tuple[list[int], list[float], list[bool], Plan | None]:
    journal = Journal.open(folder, RUN, resume=True)
    journal.close()
    return journal.choices.tolist(), journal.loglikelihood.tolist(), journal.is_greedy.tolist(), journal.plan


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    assert read(tmp_path) == ([0, 2, 1], [-1.5, -np.inf, -0.1], [True, False, False], PLAN)


def test_a_record_that_is_cut_short_is_dropped_wherever_the_cut_is(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    seen = set()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        choices, *_ = read(tmp_path)
        assert choices == [0, 2, 1][: len(choices)]
        seen.add(len(choices))
        # What is appended next is read as well.
        journal = Journal.open(tmp_path, RUN, resume=True)
        journal.add(np.array([7]), np.array([-7.0]), np.array([True]))
        journal.close()
        assert read(tmp_path)[0] == [*choices, 7]
    assert seen == {0, 2}


def test_a_byte_that_changed_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match=rf"{path.name} is damaged: .* at byte \d+; delete the file"):
            read(tmp_path)


def test_an_unfinished_run_is_not_overwritten_and_another_one_not_resumed(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(JournalError, match="this is the same run: go on from there with --resume"):
        Journal.open(tmp_path, RUN, resume=False)
    with pytest.raises(JournalError, match=r"another one. What differs: dtype \(then float32, now bfloat16\)"):
        Journal.open(tmp_path, RUN | {"dtype": "bfloat16"}, resume=True)
    other = Journal.open(tmp_path, RUN | {"dtype": "bfloat16"}, resume=False)
    assert path.exists()
    # One that is being written is not what somebody wants to resume.
    path.unlink()
    Journal.open(tmp_path, RUN, resume=True).remove()
    other.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_write_the_same_journal(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, RUN, resume=False)
    with pytest.raises(JournalError, match="another process is scoring this very run"):
        Journal.open(tmp_path, RUN, resume=True)
    journal.close()
    Journal.open(tmp_path, RUN, resume=True).close()


TOKENS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@st.composite
def requests(draw: st.DrawFn) -> Requests:
    stem = list(range(1, 14))
    contexts = [draw(st.sampled_from([[], stem[:4], stem])) + draw(TOKENS) for _ in range(draw(st.integers(1, 6)))]
    choices = [draw(st.lists(TOKENS, min_size=1, max_size=4)) for _ in contexts]
    return Requests.from_tokens(contexts, choices, max_length=24)


@pytest.mark.parametrize("scoring", [score_trie, score_padded])
@settings(max_examples=12, deadline=None)
@given(requests(), st.sampled_from([1, 5, 12, 40, "auto"]), st.integers(0, 30), st.integers(0, 30))
def test_a_resumed_run_gives_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, scoring: Any, drawn: Requests, budget: Any, first: int, second: int
) -> None:
    """Stopped twice, after some batches each."""
    loaded, folder = tiny_models.loaded("llama"), tmp_path_factory.mktemp("journal")
    whole = scoring(loaded, drawn, token_budget=budget)
    batches, done = [], 0
    for stop_after in (first, second, None):
        journal = Journal.open(folder, RUN, resume=True)
        partial = PartialScores.resumed(drawn.num_choices, journal)
        assert done <= (done := int(partial.finished.sum()))

        def stop(*_: int, after: int | None = stop_after, partial: PartialScores = partial) -> None:
            if after is not None and partial.batches > after:
                raise KeyboardInterrupt

        try:
            found = scoring(loaded, drawn, token_budget=budget, partial=partial, progress=stop)
        except KeyboardInterrupt:
            found = None
        batches.append(partial.batches)
        journal.close()
    assert found is not None
    np.testing.assert_array_equal(found.loglikelihood, whole.loglikelihood)
    np.testing.assert_array_equal(found.is_greedy, whole.is_greedy)
    if scoring is score_padded:
        assert sum(batches) == whole.batches


def test_what_one_engine_has_finished_the_other_does_not_score_again(tmp_path: Path) -> None:
    contexts = [[*range(1, 20), n, 3] for n in range(20, 28)]
    drawn = Requests.from_tokens(contexts, [[[1], [2, 3], [2, 4, 5]]] * 8, max_length=128)
    loaded = tiny_models.loaded("llama")
    whole = score_trie(loaded, drawn)
    for first, second in ((score_trie, score_padded), (score_padded, score_trie)):
        partial = PartialScores.resumed(drawn.num_choices, Journal.open(tmp_path, RUN, resume=True))

        def stop(done: int, total: int) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            first(loaded, drawn, token_budget=24, partial=partial, progress=stop)
        partial.journal.close()
        kept = partial.finished.copy()
        assert 0 < kept.sum() < drawn.num_choices
        journal = Journal.open(tmp_path, RUN, resume=True)
        resumed = PartialScores.resumed(drawn.num_choices, journal)
        found = second(loaded, drawn, token_budget=64, partial=resumed)
        np.testing.assert_array_equal(found.loglikelihood[kept], partial.loglikelihood[kept])
        np.testing.assert_allclose(found.loglikelihood, whole.loglikelihood, rtol=0, atol=2e-5)
        journal.remove()


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "birds.jsonl"
    rows = [
        {"question": f"Which of these is bird {i}?" * (1 + i % 3), "choices": ["wren", "oak", "ox", "ant"], "answer": 1}
        for i in range(30)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def evaluate(model: Path, birds: Path, output: Path | None, **options: Any) -> Any:
    return wf.evaluate(model, tasks=birds, device="cpu", token_budget=64, output=output, progress=False, **options)


class StopError(Exception):
    """What stops a run in these tests."""


def stop_in_batch(monkeypatch: pytest.MonkeyPatch, batch: int, error: BaseException) -> None:
    add, calls = PartialScores.add, []

    def stopping(self: PartialScores, *arguments: Any) -> None:
        if self.journal is not None:
            calls.append(None)
            if len(calls) == batch:
                raise error
        add(self, *arguments)

    monkeypatch.setattr(scores_module.PartialScores, "add", stopping)


def test_an_error_in_a_batch_says_how_to_go_on_and_the_results_are_the_same(
    llama_dir: Path, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(llama_dir, birds, None)
    with monkeypatch.context() as patch:
        stop_in_batch(patch, 4, StopError("the disk burns"))
        with pytest.raises(StopError) as caught:
            evaluate(llama_dir, birds, tmp_path)
    [note] = caught.value.__notes__
    assert "of 120 choices are scored and kept in" in note
    assert "--resume" in note
    [journal] = tmp_path.rglob("unfinished_*.scores")

    # Other questions, or a model that was saved again: not the same run.
    with pytest.raises(JournalError, match="questions and their tokens"):
        evaluate(llama_dir, birds, tmp_path, limit=3, resume=True)
    weights = llama_dir / "model.safetensors"
    times = weights.stat()
    os.utime(weights)
    with pytest.raises(JournalError, match="model files"):
        evaluate(llama_dir, birds, tmp_path, resume=True)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))

    found = evaluate(llama_dir, birds, tmp_path, resume=True)
    np.testing.assert_array_equal(found["birds"].outcome.loglikelihood, expected["birds"].outcome.loglikelihood)
    assert found.details["choices_resumed"] > 0
    assert not journal.exists()
    assert found.saved_to is not None
    assert found.saved_to.exists()


def test_a_run_that_stops_before_its_first_batch_leaves_nothing(
    llama_dir: Path, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_batch(monkeypatch, 1, StopError())
    with pytest.raises(StopError):
        evaluate(llama_dir, birds, tmp_path)
    assert list(tmp_path.rglob("unfinished_*")) == []


def test_results_that_cannot_be_saved_are_resumed_without_scoring(
    llama_dir: Path, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wf.EvalResult, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full", "results")))
        with pytest.raises(OSError, match="full") as caught:
            evaluate(llama_dir, birds, tmp_path)
    assert "120 of 120 choices are scored" in caught.value.__notes__[0]
    found = evaluate(llama_dir, birds, tmp_path, resume=True)
    assert (found.details["choices_resumed"], found.details["tokens_run"]) == (120, 0)


def test_what_cannot_be_resumed_is_refused_or_said(llama_dir: Path, birds: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume needs an output folder"):
        evaluate(llama_dir, birds, None, resume=True)
    with pytest.raises(ValueError, match="resume is for models on disk"):
        wf.evaluate(tiny_models.build("llama"), tasks=birds, output=tmp_path, resume=True)
    with pytest.warns(WmdpFastWarning, match="there is nothing to resume"):
        first = evaluate(llama_dir, birds, tmp_path, limit=2, resume=True)
    assert first.saved_to is not None
    with pytest.warns(WmdpFastWarning, match=rf"scored again: {first.saved_to.name} is of another run: limit \(then 2"):
        evaluate(llama_dir, birds, tmp_path, limit=3, resume=True)
    with pytest.raises(ValueError, match="leave resume out, or allow_missing if it lacks none"):
        evaluate(llama_dir, birds, tmp_path, limit=2, resume=True, allow_missing=True)


@pytest.mark.parametrize("options", [{}, {"shards": 2}, {"stream": True}, {"memory": "3GB"}])
def test_what_is_finished_is_read_back(
    llama_dir: Path, birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    first = evaluate(llama_dir, birds, tmp_path, **options)
    with monkeypatch.context() as patch:
        patch.setattr(
            "wmdp_fast.scoring.model_source._loaded", lambda *_: pytest.fail("a finished model is loaded again")
        )
        again = evaluate(llama_dir, birds, tmp_path, resume=True, **options)
        assert isinstance(again, wf.SavedResults)
        assert again.path == first.saved_to
        assert again["birds"]["acc"] == first["birds"]["acc"]
        header, row = again.table().splitlines()[0].split(), again.table().splitlines()[2].split()
        assert header == first.table().splitlines()[0].split()
        assert row == first.table().splitlines()[2].split()
    # Sums of other parts are rounded in another way: that is another run.
    with pytest.warns(WmdpFastWarning, match=r"is scored again: .*: shards \(then (null|2), now 3\)$"):
        assert isinstance(evaluate(llama_dir, birds, tmp_path, resume=True, shards=3), wf.EvalResult)


def test_finished_results_that_contradict_their_samples_are_not_read_back(
    llama_dir: Path, birds: Path, tmp_path: Path
) -> None:
    first = evaluate(llama_dir, birds, tmp_path, log_samples=True)
    raw = json.loads(first.saved_to.read_text(encoding="utf-8"))
    raw["results"]["birds"]["acc,none"] = 1.0
    first.saved_to.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.warns(WmdpFastWarning, match=r"is scored again: .*the results file says acc = 1\.0, its samples give"):
        again = evaluate(llama_dir, birds, tmp_path, log_samples=True, resume=True)
    assert again["birds"]["acc"] == first["birds"]["acc"] < 1


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_stops_the_command_with_a_word_on_how_to_go_on(
    llama_dir: Path,
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    word: str,
) -> None:
    argv = ["eval", str(llama_dir), "--tasks", str(birds), "--device", "cpu", "--token-budget", "64", "--quiet"]
    argv += ["--output", str(tmp_path)]
    add = PartialScores.add

    def signalled(self: PartialScores, *arguments: Any) -> None:
        add(self, *arguments)
        if self.batches == 3 and self.journal is not None:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(scores_module.PartialScores, "add", signalled)
        assert cli.main(argv) == code
    stopped, note = capsys.readouterr().err.splitlines()[-2:]
    assert stopped == word
    assert "--resume" in note
    assert cli.main(argv) == 1
    assert "go on from there with --resume" in capsys.readouterr().err
    assert cli.main([*argv, "--resume"]) == 0


def evaluate_and_be_killed(model: Path, questions: Path, output: Path, moment: tuple[int, int] | None) -> None:
    """Writes so many records, and of the last one so many bytes; None gets as far as saving the results."""
    write, written = os.write, 0

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_or_kill(file: int, data: bytes) -> int:
        # Records of this run: the run, a plan, then a record a batch.
        nonlocal written
        written += 1
        if moment is not None and written == moment[0]:
            write(file, data[: moment[1]])
            kill()
        return write(file, data)

    os.write = write_or_kill
    wf.EvalResult.save = kill  # type: ignore[method-assign, assignment]
    evaluate(model, questions, output)


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with_to_the_last_bit(llama_dir: Path, birds: Path, tmp_path: Path) -> None:
    """Killed before its first record is whole, in the middle of a later one, and before saving."""
    expected = evaluate(llama_dir, birds, None)["birds"].outcome
    moments = ((1, 7), (8, 20), None)
    killed = [
        CHILDREN.Process(target=evaluate_and_be_killed, args=(llama_dir, birds, tmp_path / str(number), moment))
        for number, moment in enumerate(moments)
    ]
    for child in killed:
        child.start()
    for number, child in enumerate(killed):
        child.join(timeout=240)
        assert child.exitcode == -signal.SIGKILL
        output = tmp_path / str(number)
        assert list(output.rglob("results_*.json")) == []
        if number == 0:
            with pytest.warns(WmdpFastWarning, match="nothing to resume"):
                found = evaluate(llama_dir, birds, output, resume=True)
        else:
            found = evaluate(llama_dir, birds, output, resume=True)
        assert (found.details["choices_resumed"] > 0) == (number > 0)
        np.testing.assert_array_equal(found["birds"].outcome.loglikelihood, expected.loglikelihood)
        np.testing.assert_array_equal(found["birds"].outcome.is_greedy, expected.is_greedy)
        assert list(output.rglob("unfinished_*")) == []
