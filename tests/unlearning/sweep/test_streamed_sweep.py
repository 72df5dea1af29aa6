"""Sweeps and evaluated runs of models that are not in memory: the bits of those that are, and of single runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import wmdp_fast as wf
import wmdp_fast.evaluation as evaluate_module
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import WIDER_TYPE
from tests.support.peak_memory import NEEDS_PROC, peak_of
from tests.support.sparse_models import sparse_model
from tests.support.sweep_examples import write_questions
from wmdp_fast import cli, demo
from wmdp_fast.cli import unlearn as cli_unlearn
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.streamed import StreamedModel
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.runtime import cpus
from wmdp_fast.scoring.scores import NumbersError
from wmdp_fast.unlearning import evaluations, memory_plan
from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.rmu.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wmdp_fast.unlearning.sweep.result import SweepResult

pytestmark = WIDER_TYPE

# Layers 1 to 3, 2 to 4 and 3 to 5 of six.
OVER = {"layer_id": [3, 5, 4], "max_steps": [2, 4]}
CONFIG = RMUConfig(layer_id=3, steering_coeff=2.0, alpha=50.0, learning_rate=0.02, batch_size=2, max_length=30)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("questions")
    write_questions(made)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.folder_with_tokenizer(tmp_path_factory.mktemp("model") / "base", "llama", layers=6)


def swept(model: Path, questions: Path, output: Path, over: Any = OVER, **options: Any) -> SweepResult:
    options = {"config": CONFIG, "eval_options": {"template": "mmlu"}, "progress": False, **options}
    return wf.sweep(
        model,
        forget=runs.corpus(runs.documents(1), "forget"),
        retain=runs.corpus(runs.documents(2), "retain"),
        over=over,
        forget_tasks=str(questions / "birds.jsonl"),
        retain_tasks=str(questions / "trees.jsonl"),
        output=output,
        **options,
    )


def told(result: SweepResult) -> str:
    """All of a result but what clocks and folders say, and the scores of every question."""
    found = result.to_json()
    for run in (found["base"], *found["runs"]):
        run["samples"] = samples(result.output / run["results"])
        for name in ("seconds", "command"):
            run.pop(name, None)
    return json.dumps({name: found[name] for name in ("base", "runs", "swept", "settings")})


def samples(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name.split("_20")[0]] = [row["filtered_resps"] for row in rows]
    assert found
    return found


# The same bits


@pytest.mark.parametrize(
    ("family", "dtype", "more"),
    [
        ("llama", torch.float32, {}),
        ("llama", torch.bfloat16, {"tie_word_embeddings": True}),
        ("mixtral", torch.bfloat16, {}),
        ("gemma3_text", torch.float32, {}),
        ("qwen3_moe", torch.float32, {}),
    ],
)
def test_a_streamed_sweep_has_the_bits_of_one_in_memory(
    tmp_path: Path, questions: Path, family: str, dtype: torch.dtype, more: dict[str, Any]
) -> None:
    folder = runs.folder_with_tokenizer(tmp_path / "base", family, dtype, layers=6, **more)
    in_memory = swept(folder, questions, tmp_path / "in memory", keep_best=tmp_path / "kept")
    notes: list[str] = []
    streamed = swept(
        folder, questions, tmp_path / "streamed", stream=True, keep_best=tmp_path / "kept, streamed", note=notes.append
    )
    assert told(streamed) == told(in_memory)
    assert any(note.startswith("layers 1 to 5 stay in memory of ") for note in notes)
    assert (in_memory.kept is None) == (streamed.kept is None)
    if in_memory.kept is not None and streamed.kept is not None:
        for path in in_memory.kept.glob("*.safetensors"):
            assert path.read_bytes() == (streamed.kept / path.name).read_bytes()


def test_every_point_is_what_a_run_and_an_evaluation_in_little_memory_give(
    tmp_path: Path, questions: Path, folder: Path
) -> None:
    result = swept(folder, questions, tmp_path / "out", stream=True)
    for index in (1, 2):
        alone = tmp_path / f"alone {index}"
        config = result.config_of(index)
        found = runs.unlearn(folder, config, output=alone, stream=True)
        run = result.runs[index]
        assert run.measures == {name: found.metrics[-1][name] for name in run.measures}
        tasks = [str(questions / f"{name}.jsonl") for name in ("birds", "trees")]
        scored = wf.evaluate(
            alone, tasks=tasks, template="mmlu", progress=False, stream=True, output=alone / "results", log_samples=True
        )
        assert scored.details["streamed"]["bytes_read"] > 0
        assert {name: scored[name].metrics for name in scored} == run.scores
        assert samples(alone / "results") == samples(tmp_path / "out" / str(run.results))


def test_trained_layers_are_read_once_and_those_below_for_what_training_sees_once(
    tmp_path: Path, questions: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    windows: list[list[int]] = []
    begin, swept_batches = StreamedModel._begin, Windows._swept

    def counted(self: StreamedModel, index: int) -> None:
        if index not in self._arriving and index not in self.resident:
            filled.append(index)
        begin(self, index)

    def window(self: Any, *arguments: Any) -> Any:
        found = swept_batches(self, *arguments)
        windows[-1].append(len(found))
        return found

    def note(line: str) -> None:
        if line.startswith("run "):
            windows.append([])

    monkeypatch.setattr(StreamedModel, "_begin", counted)
    monkeypatch.setattr(Windows, "_swept", window)
    config = dataclasses.replace(CONFIG, max_steps=4)
    swept(folder, questions, tmp_path / "out", {"alpha": [1.0, 50.0, 100.0]}, config=config, stream=True, note=note)
    # Layers 1 to 3 are trained, and those above are read for each of four evaluations.
    assert set(filled) == {0, 4, 5}
    assert filled.count(4) == filled.count(5) == 4
    # One batch to try, four steps of two and two to look at in the end; then only these two are not in the cache.
    assert windows == [[1, 10], [1, 2], [1, 2]]


def test_an_evaluated_run_has_the_bits_of_one_in_memory(tmp_path: Path, questions: Path, folder: Path) -> None:
    options: dict[str, Any] = {
        "eval_tasks": str(questions / "birds.jsonl"),
        "eval_options": {"template": "mmlu"},
        "eval_every": 2,
        "keep_while": "birds.acc>=0",
    }
    config = dataclasses.replace(CONFIG, max_steps=5)
    in_memory, streamed = (
        runs.unlearn(folder, config, output=tmp_path / str(stream), stream=stream, **options)
        for stream in (False, True)
    )
    assert streamed.evaluations == in_memory.evaluations
    assert [one["step"] for one in streamed.evaluations] == [0, 2, 4, 5]
    for name, tensor in in_memory.tensors.items():
        assert torch.equal(tensor, streamed.tensors[name]), name
    for step in (0, 2, 4, 5):
        place = Path("evaluations") / f"step-{step}"
        assert samples(tmp_path / "True" / place) == samples(tmp_path / "False" / place)
    assert json.loads((tmp_path / "True" / "unlearn.json").read_text())["streamed"]["bytes_read"] > 0


# Going on


def test_a_sweep_goes_on_in_memory_or_not(tmp_path: Path, questions: Path, folder: Path) -> None:
    expected = swept(folder, questions, tmp_path / "expected")
    shallow = OVER | {"layer_id": [3]}
    for first, second in ((True, False), (False, True)):
        output = tmp_path / f"{first}"
        swept(folder, questions, output, shallow, stream=first)
        found = swept(folder, questions, output, stream=second, resume=True)
        assert told(found) == told(expected)
        # One that goes less far than what is there: layers above are looked at that it does not hold.
        again = swept(folder, questions, output, shallow, stream=True, resume=True, memory="60GB")
        assert [run.scores for run in again.runs] == [run.scores for run in expected.runs[:2]]


CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.unlearning.sweep.test_streamed_sweep"])


def _killed_sweep(folder: Path, questions: Path, output: Path, after: int, kind: int) -> None:
    torch.set_num_threads(1)
    add, count = RunsFile.add, [0]

    def add_and_die(self: RunsFile, line: Any) -> None:
        count[0] += 1
        if count[0] > after:
            os.kill(os.getpid(), kind)
        add(self, line)

    RunsFile.add = add_and_die  # type: ignore[method-assign]
    swept(folder, questions, output, resume=True, stream=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on(tmp_path: Path, questions: Path, folder: Path, kind: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = swept(folder, questions, tmp_path / "expected")
        for after in (1, 2):
            child = CHILDREN.Process(target=_killed_sweep, args=(folder, questions, tmp_path / "out", after, kind))
            child.start()
            child.join()
            assert child.exitcode == -kind
        found = swept(folder, questions, tmp_path / "out", resume=True, stream=True)
    finally:
        torch.set_num_threads(threads)
    assert told(found) == told(expected)


@pytest.mark.slow
def test_several_processes_share_the_memory(
    tmp_path: Path, questions: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(int(cpus.openmp_threads(2)))
    try:
        expected = swept(folder, questions, tmp_path / "alone")
    finally:
        torch.set_num_threads(threads)
    notes: list[str] = []
    found = swept(folder, questions, tmp_path / "two", devices="cpu:2", stream=True, memory="6GB", note=notes.append)
    assert told(found) == told(expected)
    assert any("stay in memory of 3 GB" in note for note in notes)


@pytest.mark.parametrize("what", ["an evaluation", "a window"])
def test_a_shard_that_is_cut_off_ends_the_sweep_and_is_no_failed_run(
    tmp_path: Path, questions: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    weights = model / "model.safetensors"
    content, over = weights.read_bytes(), {"alpha": [1.0, 50.0]}
    config = dataclasses.replace(CONFIG, max_steps=2)
    expected = swept(model, questions, tmp_path / "expected", over, config=config)
    place: Any = (evaluations, "measure") if what == "an evaluation" else (Windows, "_swept")
    called, calls = getattr(*place), [0]

    def cut(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        # The evaluation after the first of two runs; or what the second one looks at in the end.
        if calls[0] == (2 if what == "an evaluation" else 4):
            os.truncate(weights, len(content) // (2 if what == "an evaluation" else 50))
        return called(*arguments, **options)

    monkeypatch.setattr(*place, cut)
    with pytest.raises(
        ModelError, match=r"model\.safetensors (ends within .*|is no safetensors file, .*); copy"
    ) as raised:
        swept(model, questions, tmp_path / "out", over, config=config, stream=True)
    kept = (
        f"what is finished is kept in {tmp_path / 'out'}: the same again with --resume (resume=True) goes on from there"
    )
    assert raised.value.__notes__ == [kept]
    monkeypatch.undo()
    done = len((tmp_path / "out" / "runs.jsonl").read_text().splitlines())
    assert done == (1 if what == "an evaluation" else 2)
    weights.write_bytes(content)
    assert told(swept(model, questions, tmp_path / "out", over, config=config, stream=True, resume=True)) == told(
        expected
    )


def test_only_numbers_are_a_failed_run(
    tmp_path: Path, questions: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, errors = evaluate_module.evaluate, [None, NumbersError("not a number"), None]

    def raising(*arguments: Any, **options: Any) -> Any:
        if (error := errors.pop(0)) is not None:
            raise error
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluate_module, "evaluate", raising)
    over = {"alpha": [1.0, 50.0], "max_steps": [2]}
    found = swept(folder, questions, tmp_path / "out", over)
    assert [run.failed is None for run in found.runs] == [False, True]
    assert "cannot be scored any more (not a number); lower the learning rate" in str(found.runs[0].failed)
    errors += [None, ModelError("out of memory")]
    with pytest.raises(ModelError, match=r"^out of memory\n.* is kept in"):
        swept(folder, questions, tmp_path / "other", over)


# What is refused


def test_what_cannot_be_streamed_is_refused_before_it_is_loaded(tmp_path: Path, questions: Path, folder: Path) -> None:
    def refused(says: str, kind: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(kind, match=says):
            swept(options.pop("model", folder), questions, tmp_path / "out", **{"stream": True, **options})
        assert not (tmp_path / "out").exists()

    refused("this one is in memory already", model=runs.model("llama"))
    refused(
        r"for npo the model has to fit", config=NPOConfig(max_length=30, batch_size=2), over={"learning_rate": [1e-3]}
    )
    refused("max_kl is measured with the whole model in memory", max_kl=1.0)
    refused("below layer 0, which is trained, there are none", over={"layer_id": [2, 5]})
    refused("memory must be an amount such as 16GB", memory="lots")
    refused("memory 0.1 GB is too little to stream", ModelError, memory="100MB")


def test_a_run_that_could_not_be_scored_is_refused_before_its_steps(
    tmp_path: Path, questions: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "memory_in_use", lambda _device: 9_999_000_000)
    with pytest.raises(ModelError, match=r"memory 10 GB is too little: 10 GB are taken before the run"):
        swept(folder, questions, tmp_path / "out", stream=True, memory="10GB")
    # What the model before scored is kept.
    assert len((tmp_path / "out" / "runs.jsonl").read_text().splitlines()) == 1


def test_the_command_streams_and_prints_commands_that_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", str(demo.model_path()), "--layer-id", "3", "--alpha", "10,30", "--max-steps", "2"]
    command += ["--limit", "4", "--learning-rate", "3e-3"]
    for domain in ("forget", "retain"):
        command += [f"--{domain}", str(demo.corpus_path(domain)), f"--{domain}-tasks", str(demo.questions_path(domain))]
    tables = []
    for output, more in (("first", []), ("second", ["--stream", "--memory", "20GB"])):
        assert cli.main([*command, "--output", str(tmp_path / output), "--json", *more]) == 0
        told = capsys.readouterr()
        tables.append(json.loads(told.out))
    assert "layers 1 to 3 stay in memory of 20 GB; the others are streamed" in told.err
    assert [run["scores"] for run in tables[0]["runs"]] == [run["scores"] for run in tables[1]["runs"]]
    assert all("--memory 20GB --stream" in run["command"] for run in tables[1]["runs"])
    assert all("--memory" not in run["command"] for run in tables[0]["runs"])


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_command_of_an_evaluated_run_reads_layers_when_their_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], evaluated: bool
) -> None:
    read: list[int | None] = []

    @contextlib.contextmanager
    def reading_ahead(_model: str, *, revision: str | None, last_layer: int | None) -> Iterator[None]:
        assert revision is None
        read.append(last_layer)
        yield

    monkeypatch.setattr(cli_unlearn, "reading_ahead", reading_ahead)
    command = ["unlearn", str(demo.model_path()), "--layer-id", "3", "--max-steps", "1", "--stream"]
    command += ["--forget", str(demo.corpus_path("forget")), "--retain", str(demo.corpus_path("retain"))]
    if evaluated:
        command += ["--eval-tasks", str(demo.questions_path("forget")), "--limit", "4"]
    assert cli.main([*command, "--output", str(tmp_path / "out")]) == 0
    assert read == ([] if evaluated else [3])
    assert (re.search(r"streaming \d+ layers of up to", capsys.readouterr().err) is not None) == evaluated


def test_a_model_that_fits_is_not_streamed(tmp_path: Path, questions: Path, folder: Path) -> None:
    notes: list[str] = []
    over = {"max_steps": [2]}
    found = swept(folder, questions, tmp_path / "out", over, memory="64GB", note=notes.append)
    assert not any("stream" in note for note in notes)
    assert told(found) == told(swept(folder, questions, tmp_path / "again", over))


@pytest.mark.slow
@NEEDS_PROC
def test_a_process_keeps_to_its_memory(tmp_path: Path, questions: Path) -> None:
    limit, weights = 1_150_000_000, sparse_model(tmp_path / "model", layers=36)
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"a made-up text, number {number}, of birds"}) + "\n" for number in range(20))
    )
    command = ["sweep", str(tmp_path / "model"), "--forget", str(texts), "--retain", str(texts), "--device", "cpu"]
    command += ["--layer-id", "34", "--max-steps", "1", "--alpha", "1", "--steering-coeff", "2", "--limit", "4"]
    command += ["--forget-tasks", str(questions / "birds.jsonl"), "--retain-tasks", str(questions / "trees.jsonl")]
    command += ["--template", "mmlu", "--output", str(tmp_path / "out"), "--memory", str(limit)]
    peak, told = peak_of(*command)
    assert "layers 32 to 34 stay in memory of 1.1 GB; the others are streamed: 0.94 GB to read for" in told
    # The libraries alone take most of it, so that the whole model would not fit.
    assert weights > 1_000_000_000
    assert peak < limit
