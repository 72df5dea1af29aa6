"""Several models in one process: the numbers of separate calls, tokens made once, a failure that stops nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import wmdp_fast as wf
from tests.support import tiny_models
from tests.support.expected_warnings import VERDICTS
from wmdp_fast import cli, demo
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.prompts import tokenizer as prompt_tokenizer
from wmdp_fast.several_models import ModelSpec, checkpoints_of

TASKS = {"tasks": demo.questions_path("forget"), "limit": 6, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's model, a model with another tokenizer, and one with the same tokenizer as that."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gpt2"):
        tiny_models.build(family).save_pretrained(folder / family)
        tiny_models.tokenizer().save_pretrained(folder / family)
    return [Path(demo.model_path()), folder / "llama", folder / "gpt2"]


def test_results_are_those_of_separate_calls_and_tokens_are_made_once_for_a_tokenizer(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alone = [wf.evaluate(model, **TASKS) for model in models]
    made = []

    class Counted:
        def __new__(cls, *args: object, **kwargs: object) -> wf.Tokenizer:
            made.append(1)
            return wf.Tokenizer(*args, **kwargs)

    monkeypatch.setattr(prompt_tokenizer, "Tokenizer", Counted)
    given = [models[0], "no-model-of-this-name", *models[1:]]
    # The variable of this name was read when huggingface_hub was imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    together = list(wf.evaluate_many(given, **TASKS, output=tmp_path))
    assert [one.error is None for one in together] == [True, False, True, True]
    assert isinstance(together[1].error, wf.ModelError | wf.DataUnavailableError)
    assert len(made) == 2
    results = [one.result for one in together if one.result is not None]
    for one, other in zip(alone, results, strict=True):
        for name, task in one.tasks.items():
            theirs = other.tasks[name]
            assert dict(task.metrics) == dict(theirs.metrics)
            ours, found = task.outcome, theirs.outcome
            assert np.array_equal(ours.loglikelihood, found.loglikelihood)
        assert other.saved_to is not None
        saved = wf.read_results(other.saved_to)
        assert saved.model_name == one.model_name
    assert len({result.saved_to.parent for result in results if result.saved_to}) == 3


def test_what_is_wrong_with_the_questions_is_said_before_any_model_is_looked_at():
    with pytest.raises(wf.TaskError, match="wmdp_boi"):
        wf.evaluate_many(["nowhere"], tasks="wmdp_boi")
    with pytest.raises(TypeError, match="batch"):
        wf.evaluate_many(["nowhere"], tasks="wmdp_bio", batch=3)
    with pytest.raises(ValueError, match="twice"):
        wf.evaluate_many(["one", "one"], **TASKS, output="somewhere")


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path: Path):
    for step in (1000, 20, 300):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    found = checkpoints_of(tmp_path)
    assert [Path(one.model).name for one in found] == ["checkpoint-20", "checkpoint-300", "checkpoint-1000"]
    adapter = tmp_path / "checkpoint-20"
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    with pytest.raises(ValueError, match="is a PEFT adapter"):
        checkpoints_of(tmp_path)
    assert checkpoints_of(tmp_path, "base")[0] == ModelSpec("base", peft=str(adapter))
    with pytest.raises(ValueError, match="no folders checkpoint-N"):
        checkpoints_of(adapter)


def test_the_command_line_goes_on_after_a_failure_and_ends_with_it(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    for step in (1, 2):
        shutil.copytree(models[1], run / f"checkpoint-{step}")
    weights = run / "checkpoint-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    options = ["--tasks", str(TASKS["tasks"]), "--limit", "4", "--device", "cpu", "--quiet"]
    assert cli.main(["eval", "--checkpoints", str(run), *options, "--timings"]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(f"error: {run / 'checkpoint-1'}: ")
    assert "forward" in err
    assert out.splitlines()[-1].startswith(str(run / "checkpoint-2"))
    assert cli.main(["eval", str(run / "checkpoint-1"), *options]) == 1
    alone = capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")
    assert err.splitlines()[-1] == f"error: {run / 'checkpoint-1'}: {alone}"
    assert cli.main(["eval", str(run / "checkpoint-2"), str(models[2]), *options, "--json"]) == 0
    assert [Path(one["model"]).name for one in json.loads(capsys.readouterr().out)] == ["checkpoint-2", "gpt2"]
    with pytest.raises(SystemExit):
        cli.main(["eval", "--checkpoints", str(run), "--revisions", "a", *options])


@VERDICTS
def test_a_delta_is_named_with_its_base_and_scored_as_the_checkpoint_of_both(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = models[1]
    config = wf.RMUConfig(layer_id=1, learning_rate=0.05, max_steps=2, batch_size=2, steering_coeff=5.0, alpha=1.0)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"words of {word}"}) + "\n" for word in ("one", "two", "three")))
    corpora = {"forget": texts, "retain": texts, "device": "cpu", "progress": False}
    for name, seed in (("a", 0), ("b", 1)):
        wf.unlearn(base, config=replace(config, seed=seed), output=tmp_path / name, **corpora)
    deltas = [tmp_path / name / "delta.safetensors" for name in ("a", "b")]
    wholes = [apply_delta(base, delta, tmp_path / delta.parent.name / "whole") for delta in deltas]
    for dtype in ("auto", "bfloat16"):
        apart = [wf.evaluate(whole, **TASKS, dtype=dtype) for whole in wholes]
        named = [wf.evaluate(f"{base}+{delta}", **TASKS, dtype=dtype) for delta in deltas]
        for one, other in zip(apart, named, strict=True):
            [theirs], [ours] = one.tasks.values(), other.tasks.values()
            assert np.array_equal(theirs.outcome.loglikelihood, ours.outcome.loglikelihood)
    told = f"--deltas {tmp_path / 'a'},{deltas[1]} --limit 6 --device cpu --quiet --tasks {TASKS['tasks']}"
    assert cli.main(["eval", str(base), *told.split(), "--output", str(tmp_path / "out")]) == 0
    assert f"{base}+{tmp_path / 'a'}" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*/results_*.json"))) == 2
    with pytest.raises(wf.ModelError, match="apply-delta BASE DELTA OUT"):
        wf.unlearn(
            f"{base}+{deltas[0]}", forget={"f": ["a text"]}, retain={"r": ["a text"]}, config=config, progress=False
        )
