"""Sweeps: the same results as single runs, whatever was shared and however often the process was killed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wmdp_fast as wf
from tests.reference import pareto as plain
from tests.support import sweep_examples, tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast import cli, demo
from wmdp_fast.cli import sweep as cli_sweep
from wmdp_fast.cli.method_options import config_of
from wmdp_fast.exceptions import JournalError, ModelError, WmdpFastError
from wmdp_fast.report import sources
from wmdp_fast.report import sweep as sweep_page
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.runtime import cpus, workers
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.sweep import pareto, schedule
from wmdp_fast.unlearning.sweep import sweep as module
from wmdp_fast.unlearning.sweep.result import Accuracy, SweepRun
from wmdp_fast.unlearning.sweep.search_space import OptunaSampler, Range, bounds, check_space, grid
from wmdp_fast.unlearning.sweep.trials import Train

CONFIG = RMUConfig(layer_id=2, steering_coeff=2.0, alpha=50.0, learning_rate=0.02, batch_size=2, max_length=30)
OVER = {"alpha": [1.0, 50.0], "max_steps": [2, 4]}

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs the extra `sweep` (Optuna)")


# What is worth having


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_that_of_the_definition(points):
    assert pareto.front(points) == plain.front(points)


def run_of(forget, retain):
    """A run with these accuracies; chance is 0.25."""
    made = [Accuracy(value=value, low=0.0, high=1.0, n=100, chance=0.25) for value in (forget, retain)]
    return SweepRun(settings={"alpha": forget}, steps=1, forget=made[0], retain=made[1])


def test_what_is_no_better_than_the_model_before_is_not_worth_having():
    before = run_of(0.6, 0.6)
    others = [run_of(0.6, 0.6), run_of(0.7, 0.6), run_of(0.4, 0.58), run_of(0.3, 0.4), run_of(0.4, 0.5)]
    assert module._worth_having(before, others) == ([3, 2], 2)
    assert module._worth_having(before, others[:2]) == ([], None)
    # Below chance is no better than chance, so what kept more wins.
    assert module._worth_having(before, [run_of(0.20, 0.5), run_of(0.25, 0.55), run_of(0.22, 0.55)]) == ([1, 2], 1)
    failed = SweepRun(settings={}, steps=1, forget=None, retain=None, failed="NaN")
    assert module._worth_having(before, [failed, run_of(0.4, 0.5)]) == ([1], 1)


@pytest.mark.parametrize(("bound", "best"), [(None, 2), (50, 2), (10, 1), (5, 0), (4.9, None), (0, None)])
def test_the_best_loses_no_more_than_it_may(bound, best):
    before = run_of(0.9, 0.6)
    others = [run_of(0.80, 0.55), run_of(0.6, 0.50), run_of(0.25, 0.20), run_of(0.5, 0.05)]
    front, found = module._worth_having(before, others, bound)
    assert (set(front), found) == ({0, 1, 2}, best)


def test_a_run_that_loses_as_much_as_it_gains_is_not_the_best():
    assert module._worth_having(run_of(0.9, 0.6), [run_of(0.7, 0.4)], 50) == ([0], None)


def test_that_no_setting_meets_the_bound_is_said_plainly():
    result = dataclasses.replace(sweep_examples.result(), best=None, max_loss=1.0)
    said = "every run on the front loses more than 1 points on the retain tasks (max_loss); all runs lose 1.0 to 18.0"
    assert said in result.why_no_best
    assert said in cli_sweep._report(result)
    assert "best" not in [line.split()[-1] for line in str(result).splitlines()]
    assert sweep_examples.result().why_no_best is None


# The space


def test_a_grid_is_every_combination():
    space = check_space({"max_steps": [1, 2, 2], "layer_id": [3, 5], "alpha": [[1.0, 2.0]]}, drawn=False)
    assert list(grid(space)) == [
        {"layer_id": layer, "alpha": (1.0, 2.0), "max_steps": steps} for layer in (3, 5) for steps in (1, 2)
    ]
    space = check_space({"steering_coeff": Range(1, 9, automatic=True), "layer_id": Range(2, 4)}, drawn=True)
    assert next(iter(bounds(space))) == {"layer_id": 2, "steering_coeff": "auto:1"}
    assert list(bounds(space))[-1] == {"layer_id": 4, "steering_coeff": "auto:9"}


@pytest.mark.parametrize(
    ("over", "drawn", "says"),
    [
        ({"seed": [1]}, False, "seed cannot be swept; what can is layer_id"),
        ({}, False, "nothing to sweep"),
        ({"alpha": []}, False, "alpha needs a list"),
        ({"alpha": "1,2"}, False, "alpha needs a list"),
        ({"alpha": Range(1, 2)}, False, "only Optuna can draw from"),
        ({"alpha": Range(2, 1)}, True, "from a lower to a higher"),
        ({"alpha": Range(0, 1)}, True, "begin above 0"),
        ({"max_steps": Range(1.5, 3)}, True, "whole numbers"),
        ({"alpha": Range(1, 2, automatic=True)}, True, "auto is for steering_coeff"),
    ],
)
def test_an_impossible_space_says_what_to_do(over, drawn, says):
    with pytest.raises(ValueError, match=says):
        check_space(over, drawn=drawn)


# Sweeps on a tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer, and made-up questions: two files, each of eight."""
    made = tmp_path_factory.mktemp("sweep")
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.save_pretrained(made / "base")
    tokenizers_zoo.tokenizer("llama3").save_pretrained(made / "base")
    sweep_examples.write_questions(made)
    return made


def swept(folder, output, over=OVER, model=None, **options):
    options = {"config": CONFIG, "eval_options": {"template": "mmlu"}, **options}
    return wf.sweep(
        folder / "base" if model is None else model,
        forget=runs.corpus(runs.documents(1), "forget"),
        retain=runs.corpus(runs.documents(2), "retain"),
        over=over,
        forget_tasks=str(folder / "birds.jsonl"),
        retain_tasks=str(folder / "trees.jsonl"),
        output=output,
        progress=False,
        **options,
    )


def told(result):
    """All of a result but what clocks and folders say."""
    found = result.to_json()
    for run in (found["base"], *found["runs"]):
        del run["seconds"]
    return json.dumps({name: found[name] for name in ("base", "runs", "swept", "settings")})


def test_a_report_of_a_sweep_knows_what_was_to_be_forgotten(folder, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    swept(folder, tmp_path / "out", {"max_steps": [2]})
    found = sources.find([tmp_path / "out"])
    assert found.forget == ("birds",)
    pages = {name: tmp_path / f"{name}.html" for name in ("by its record", "as told")}
    assert cli.main(["report", str(tmp_path / "out"), "--output", str(pages["by its record"])]) == 0
    kept = [
        str(one) for one in sorted((tmp_path / "out" / "evaluations").iterdir(), key=lambda one: one.name != "before")
    ]
    assert cli.main(["report", *kept, "--forget", "birds", "--output", str(pages["as told"])]) == 0
    assert pages["by its record"].read_text(encoding="utf-8") == pages["as told"].read_text(encoding="utf-8")


def test_every_point_is_what_a_run_of_its_own_gives(folder, tmp_path):
    over = {"layer_id": [1, 3], "max_steps": [4, 2]}
    result = swept(folder, tmp_path / "out", over)
    assert [(run.settings["layer_id"], run.settings["max_steps"], run.steps) for run in result.runs] == [
        (1, 4, 4), (1, 2, 2), (3, 4, 4), (3, 2, 2),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*("evaluations", "runs.jsonl", "sweep.json")]
    for index in (1, 2):
        alone = wf.unlearn(
            folder / "base",
            forget=runs.corpus(runs.documents(1)),
            retain=runs.corpus(runs.documents(2)),
            config=result.config_of(index),
            output=tmp_path / f"alone{index}",
            progress=False,
        )
        run = result.runs[index]
        last = alone.metrics[-1]
        assert run.measures == {name: last[name] for name in run.measures}
        assert run.steering_coeffs == alone.steering_coeffs
        for name, accuracy in (("birds", run.forget), ("trees", run.retain)):
            measured = wf.evaluate(
                tmp_path / f"alone{index}", tasks=str(folder / f"{name}.jsonl"), template="mmlu", progress=False
            )
            assert run.scores[name] == measured[name].metrics
            kept = wf.read_results(tmp_path / "out" / run.results)
            assert kept[name].metrics == measured[name].metrics
            assert (accuracy.value, accuracy.n, accuracy.chance) == (measured[name]["acc"], 8, 0.25)
    before = wf.evaluate(folder / "base", tasks=str(folder / "trees.jsonl"), template="mmlu", progress=False)
    assert result.base.retain.value == before["trees"]["acc"]


def test_with_a_schedule_every_number_of_steps_is_a_run_of_its_own(folder, tmp_path):
    config = dataclasses.replace(CONFIG, schedule="linear")
    notes: list[str] = []
    result = swept(folder, tmp_path / "out", {"max_steps": [2, 4]}, config=config, note=notes.append)
    assert len([note for note in notes if note.startswith("run ")]) == 2
    alone = runs.unlearn(folder / "base", result.config_of(0))
    assert result.runs[0].measures == {name: alone.metrics[-1][name] for name in result.runs[0].measures}


def test_a_model_in_memory_has_its_weights_back_and_runs_its_steps_once(folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    notes: list[str] = []
    result = swept(folder, tmp_path / "out", model=model, tokenizer=tokenizer, note=notes.append)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert told(result) == told(swept(folder, tmp_path / "again")).replace(json.dumps(str(folder / "base")), "null")
    # Two runs of four steps, each measured twice; the second reads the frozen targets that the first one has kept.
    runs_told = [note for note in notes if note.startswith("run ")]
    assert runs_told == ["run 1 of 2: alpha 1", "run 2 of 2: alpha 50"]
    assert "trunk cache: 4 activations read, 4 computed and written" in notes[-1]
    assert result.command(0) is None


def test_more_values_on_resuming_run_only_what_is_new(folder, tmp_path):
    swept(folder, tmp_path / "out", {"alpha": [50.0]}, config=dataclasses.replace(CONFIG, max_steps=2))
    with pytest.raises(FileExistsError, match="--resume"):
        swept(folder, tmp_path / "out")
    notes: list[str] = []
    config = dataclasses.replace(CONFIG, max_steps=2)
    result = swept(
        folder,
        tmp_path / "out",
        {"alpha": [50, 7.0], "learning_rate": [0.02]},
        config=config,
        resume=True,
        note=notes.append,
    )
    assert len([note for note in notes if note.startswith("run ")]) == 1
    assert [run.settings["alpha"] for run in result.runs] == [50.0, 7.0]
    # Higher layers and more steps than before read more of model and corpora; what was found stays valid.
    further = {"alpha": [50.0], "layer_id": [2, 3], "max_steps": [2, 5]}
    again = swept(folder, tmp_path / "out", further, config=config, resume=True)
    assert again.runs[0] == result.runs[0]
    assert told(again) == told(swept(folder, tmp_path / "anew", further, config=config))
    assert swept(folder, tmp_path / "out", {"alpha": [50.0]}, config=config, resume=True).runs == [result.runs[0]]
    with pytest.raises(ModelError, match="a sweep with other evaluation options, settings") as refused:
        swept(
            folder,
            tmp_path / "out",
            {"alpha": [50.0]},
            config=dataclasses.replace(config, seed=7),
            eval_options={"template": "mmlu", "limit": 4},
            resume=True,
        )
    # The same again would be refused again.
    assert not hasattr(refused.value, "__notes__")


def test_weights_that_explode_are_a_failed_run_and_not_the_end(folder, tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=3)
    result = swept(folder, tmp_path / "out", {"learning_rate": [1e38, 0.02]}, config=config)
    assert "lower the learning rate" in result.runs[0].failed
    assert result.runs[1].failed is None
    assert 0 not in result.front
    assert "failed" in result.table()


def test_corpora_that_end_early_give_both_points_the_same_run(folder, tmp_path):
    with pytest.warns(wf.WmdpFastWarning, match="last for 15 steps"):
        result = swept(folder, tmp_path / "out", {"max_steps": [15, 20, 30]})
    assert [run.steps for run in result.runs] == [15, 15, 15]
    assert result.runs[0].scores == result.runs[1].scores == result.runs[2].scores


def test_impossible_sweeps_are_refused_before_anything_is_loaded(tmp_path):
    def refused(says, kind=ValueError, **options):
        options = {"over": OVER, "forget_tasks": "a", "retain_tasks": "b", **options}
        with pytest.raises(kind, match=says):
            wf.sweep("nowhere", forget="f", retain="r", output=tmp_path / "out", **options)

    refused("lies above layer_id 1", over={"layer_id": [1, 3]}, config=RMUConfig(layer_id=3, update_layer_ids=(2,)))
    refused("steering_coeff must be", over={"steering_coeff": ["often"]})
    refused("2 values for 1 forget corpora", over={"alpha": [(1.0, 2.0)]})
    refused("forget_tasks is empty", forget_tasks="")
    refused("over must map settings to the values to try", kind=TypeError, over=["alpha"])
    refused("alpha needs a list of the values to try, not 3", over={"alpha": 3})
    refused("config must be settings such as", kind=TypeError, config={"alpha": 3})
    refused("trials must be", trials=0)
    assert not (tmp_path / "out").exists()


def test_a_missing_optuna_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(WmdpFastError, match=re.escape("pip install 'wmdp-fast[sweep]'")):
        wf.sweep("m", forget="f", retain="r", over=OVER, forget_tasks="a", retain_tasks="b", output="o", trials=3)


# Killed


def test_a_line_that_was_cut_short_is_dropped_and_damage_is_told(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ')
    with RunsFile(path) as file:
        assert file.lines == [{"a": 1}, {"a": 2}]
        with pytest.raises(JournalError, match="another process"):
            RunsFile(path)
        file.add({"a": 3})
    with RunsFile(path) as file:
        assert file.lines[-1] == {"a": 3}
    path.write_bytes(b'{"a": 1}\n?\n{"a": 2}\n')
    with pytest.raises(JournalError, match="line 2 is damaged"):
        RunsFile(path)


CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.unlearning.sweep.test_sweep"])


def _killed_sweep(folder, output, after, halfway, options):
    """A sweep whose process dies while it writes its nth result: before it, in the middle, or after it."""
    torch.set_num_threads(1)
    add, count = RunsFile.add, [0]

    def add_and_die(self, line):
        count[0] += 1
        if count[0] <= after:
            return add(self, line)
        if halfway:
            os.write(self._file.fileno(), json.dumps(line).encode()[:50])
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    RunsFile.add = add_and_die
    swept(folder, output, resume=True, **options)


def assert_survives(folder, tmp_path, moments, **options):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        without = swept(folder, tmp_path / "without", **options)
        for after, halfway in moments:
            child = CHILDREN.Process(target=_killed_sweep, args=(folder, tmp_path / "out", after, halfway, options))
            child.start()
            child.join()
            assert child.exitcode == -signal.SIGKILL
        notes: list[str] = []
        result = swept(folder, tmp_path / "out", resume=True, note=notes.append, **options)
    finally:
        torch.set_num_threads(threads)
    assert told(result) == told(without)
    assert str(result) == str(without)
    lines = [(tmp_path / name / "runs.jsonl").read_text().splitlines() for name in ("without", "out")]
    settings = [[json.loads(line)["settings"] for line in one] for one in lines]
    assert settings[0] == settings[1]
    return notes


@pytest.mark.slow
def test_killed_at_any_result_and_resumed_it_gives_the_same_table(folder, tmp_path):
    notes = assert_survives(folder, tmp_path, [(0, False), (2, True), (1, False)])
    # Three results were safe, with that of the model before; two of four points are left.
    assert len([note for note in notes if note.startswith("  after step")]) == 2


@needs_optuna
@pytest.mark.slow
def test_drawn_points_are_the_same_after_a_kill(folder, tmp_path):
    over = {
        "layer_id": Range(0, 3),
        "steering_coeff": Range(1, 9, automatic=True),
        "alpha": [1.0, 50.0],
        "max_steps": Range(1, 3),
    }
    assert_survives(folder, tmp_path, [(3, True), (4, False)], over=over, trials=12)
    points = [json.loads(line)["settings"] for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()[1:]]
    assert len({json.dumps(point) for point in points}) == len(points) > 6
    assert all(0 <= point["layer_id"] <= 3 and 1 <= point["max_steps"] <= 3 for point in points)
    assert all(1 <= float(point["steering_coeff"].removeprefix("auto:")) <= 9 for point in points)


# On several devices


@pytest.mark.slow
def test_points_on_two_devices_are_those_of_one_also_if_a_process_is_killed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(int(cpus.openmp_threads(2)))
    try:
        alone = swept(folder, tmp_path / "alone", {"alpha": [1.0, 50.0], "max_steps": [2, 3]})
    finally:
        torch.set_num_threads(threads)
    start, began, notes = workers._start, [], []
    monkeypatch.setattr(workers, "_start", lambda *given: began.append(start(*given)) or began[-1])

    def note(line):
        busy = [worker for worker in began if isinstance(worker.job, Train)]
        if line.startswith("run ") and not any(one.startswith("run ") for one in notes):
            os.kill(busy[0].process.pid, signal.SIGKILL)
        notes.append(line)

    with pytest.warns(wf.WmdpFastWarning, match="the process on cpu was killed by SIGKILL"):
        result = swept(
            folder, tmp_path / "two", {"alpha": [1.0, 50.0], "max_steps": [2, 3]}, devices="cpu:2", note=note
        )
    assert told(result) == told(alone)
    assert str(result) == str(alone)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["evaluations", "runs.jsonl", "sweep.json"]


def test_what_cannot_be_shared_among_devices_is_refused(folder, tmp_path, monkeypatch):
    def refused(says, **options):
        with pytest.raises(ValueError, match=says):
            swept(folder, tmp_path / "out", **options)

    refused("device and devices exclude each other", device="cpu", devices="cpu:2")
    refused("a model in memory cannot be shared", model=runs.model("llama"), devices="cpu:2")
    refused("must be all, a number of GPUs", devices="tpu")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    refused("where torchrun has started them", devices="cpu:2")


@needs_optuna
def test_points_drawn_at_once_know_of_each_other_and_follow_from_their_number_alone():
    sampler = OptunaSampler(check_space({"alpha": Range(1, 1000)}, drawn=True), seed=1)

    def drawn(at_once):
        results, jobs = FakeResults(), []

        def do(given):
            jobs.append([job for job in given if isinstance(job, Train)])
            # Whoever is done first tells first.
            for job in reversed(jobs[-1]):
                results.known[job.points[0]["alpha"]] = run_of(*[1 / job.points[0]["alpha"]] * 2)

        points = schedule.drawn(sampler, 14, at_once, results=results, do=do)
        assert [len(one) for one in jobs] == [at_once] * (14 // at_once) + [14 % at_once] * (14 % at_once > 0)
        return [point["alpha"] for point in points]

    class FakeResults:
        def __init__(self):
            self.known = {}

        def left(self, job):
            return job

        def of(self, point):
            return self.known[point["alpha"]]

    assert drawn(4) == drawn(4)
    assert len(set(drawn(4))) == 14
    assert drawn(1)[0] == drawn(4)[0]
    # Twelve points without a model of what is good come first, with seeds of their own.
    assert drawn(1)[:4] == drawn(4)[:4]


# What is shown


def test_the_table_has_the_best_the_front_the_failed_and_the_model_before():
    lines = [line.split() for line in str(sweep_examples.result()).splitlines()]
    assert lines[0][:2] == ["layer_id", "alpha"]
    assert [(*line[:3], line[-1]) for line in lines[2:7]] == [
        ("7", "100", "0.2400", "front"),
        ("5", "100", "0.3000", "front"),
        ("7", "1200", "0.3300", "best"),
        ("5", "1200", "0.4100", "front"),
        ("9", "100", "0.5000", "+0.1800"),
    ]
    assert lines[7] == ["9", "1", "failed", "failed"]
    assert (lines[8][0], lines[8][-1]) == ("0.6400", "before")


def test_a_command_has_every_setting_that_is_not_the_default(tmp_path):
    result = sweep_examples.result("it's mine")
    config = RMUConfig(
        update_layer_ids=(4,), raw_lines=(True, False), master_weights=True, grad_clip=0.1 + 0.2, learning_rate=3e-6,
        schedule="linear", warmup=0.1, weight_decay=0.01,
    )  # fmt: skip
    result = dataclasses.replace(result, config=config, swept=("layer_id", "alpha", "learning_rate"))
    words = shlex.split(result.command(3, output=str(tmp_path)))
    given = vars(cli._parser().parse_args(words[1:]))
    assert (given["model"], given["forget"], given["retain"]) == ("it's mine", ["it's mine"], ["it's mine"])
    assert config_of(argparse.Namespace(**given)) == result.config_of(3)


# The command line


def demo_arguments(tmp_path, *more):
    corpora = [str(demo.corpus_path(domain)) for domain in ("forget", "retain")]
    questions = [str(demo.questions_path(domain)) for domain in ("forget", "retain")]
    return [
        *("sweep", str(demo.model_path()), "--forget", corpora[0], "--retain", corpora[1]),
        *("--forget-tasks", questions[0], "--retain-tasks", questions[1], "--template", "mmlu", "--limit", "12"),
        *(
            "--layer-id",
            "1",
            "--parameters",
            "proj",
            "--mode",
            "masked",
            "--learning-rate",
            "3e-3",
            "--dtype",
            "float32",
            "--quiet",
        ),
        *("--output", str(tmp_path / "sweep"), *more),
    ]


@pytest.mark.slow
def test_the_command_prints_the_front_and_how_to_make_it_again(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    page, best = tmp_path / "pages" / "sweep.html", tmp_path / "best"
    more = ["--steering-coeff", "auto:5", "--alpha", "30,300", "--max-steps", "20"]
    arguments = demo_arguments(tmp_path, *more, "--html", str(page), "--keep-best", str(best), "--max-loss", "50")
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "chance: forget 0.2500, retain 0.2500; forget is 12 questions, retain 12" in printed
    assert str(best) in printed
    commands = [line for line in printed.splitlines() if line.startswith("wmdp-fast unlearn")]
    record = json.loads((best / "unlearn.json").read_text())
    # The command of the best run makes the very same checkpoint.
    [command] = [one for one in commands if f"--alpha {record['settings']['alpha']:g} " in one]
    assert cli.main([*shlex.split(command)[1:-1], str(tmp_path / "again"), "--quiet"]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (best / name).read_bytes(), name
    again = json.loads((tmp_path / "again" / "unlearn.json").read_text())
    assert {**record["settings"], "save_every": 50} == again["settings"]

    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == len(sweep_page._SIZES)  # one for each width of screen, of which one is shown
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    assert "http:" not in html.replace("http://www.w3.org/", "")
    for command in commands:
        assert command in html.replace("&#39;", "'")

    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["settings"]["alpha"] for run in found["runs"]] == [30.0, 300.0]
    assert sum(run["best"] for run in found["runs"]) == 1
    assert found["kept"] == str(best)


def test_the_command_refuses_what_is_no_value(capsys):
    base = [
        "sweep",
        "m",
        "--forget",
        "f",
        "--retain",
        "r",
        "--forget-tasks",
        "a",
        "--retain-tasks",
        "b",
        "--output",
        "o",
    ]
    for option, value in (("--alpha", "1,much"), ("--layer-id", "1.5"), ("--optuna", "0"), ("--alpha", "1..x")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*base, option, value])
        assert option in capsys.readouterr().err
    assert cli.main([*base, "--alpha", "1..2"]) == 1
    assert "only Optuna can draw from" in capsys.readouterr().err
    assert cli.main(base) == 1
    assert "nothing to sweep" in capsys.readouterr().err
