"""Several models in one process: the numbers of separate calls, tokens made once, a failure that stops nothing."""

from __future__ import annotations

import gc
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import wmdp_fast as wf
from tests.support import tiny_models
from tests.support.expected_warnings import SAME_CORPORA, VERDICTS
from wmdp_fast import cli, demo
from wmdp_fast.checkpoints.checkpoint import apply_delta
from wmdp_fast.models import load
from wmdp_fast.prompts import tokenizer as prompt_tokenizer
from wmdp_fast.several_models import ModelSpec, checkpoints_of, models_table

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
    with pytest.raises(ValueError, match="models of their own, not adapters: leave base out"):
        checkpoints_of(tmp_path, "base")
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


@SAME_CORPORA
@VERDICTS
@pytest.mark.parametrize("named", ["bfloat16", None])
def test_a_delta_does_not_widen_a_model_of_which_tensors_are_stored_in_a_wider_type(
    models: list[Path], named: str | None, tmp_path: Path
) -> None:
    """Those that are trained, here; the configuration, or the first tensor, says that the model is in bfloat16."""
    base = tmp_path / "base"
    shutil.copytree(models[1], base)
    tensors = load_file(base / "model.safetensors")
    stored = {name: one if ".1.mlp" in name else one.bfloat16() for name, one in tensors.items()}
    assert {one.dtype for one in stored.values()} == {torch.float32, torch.bfloat16}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**described, "dtype": named}))
    config = wf.RMUConfig(layer_id=1, update_layer_ids=(1,), learning_rate=0.05, max_steps=2, batch_size=2)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"words of {word}"}) + "\n" for word in ("one", "two", "three")))
    whole = tmp_path / "run"
    wf.unlearn(base, forget=texts, retain=texts, config=config, output=whole, device="cpu", progress=False)
    [theirs] = wf.evaluate(whole, **TASKS).tasks.values()
    result = wf.evaluate(f"{base}+{whole}", **TASKS)
    [ours] = result.tasks.values()
    assert np.array_equal(theirs.outcome.loglikelihood, ours.outcome.loglikelihood)


@SAME_CORPORA
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


@pytest.fixture(scope="module")
def adapters(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of several kinds, for the model `llama`, whose vocabulary is larger than the tokenizer."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {
        "lora": (peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False), True),
        "ia3": (peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[], init_ia3_weights=False), True),
        "dora": (peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False, use_dora=True), True),
        "head": (
            peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["lm_head"]),
            False,
        ),
        "prompt": (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), False),
        # Takes a part of the base's own weights into the adapter, and changes the base by that.
        "pissa": (peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights="pissa"), True),
    }
    for name, (config, as_the_tokenizer) in kinds.items():
        base = AutoModelForCausalLM.from_pretrained(models[1])
        if as_the_tokenizer:
            base.resize_token_embeddings(len(tiny_models.tokenizer()))
        torch.manual_seed(len(name))
        peft.get_peft_model(base, config).save_pretrained(folder / name)
    return {name: folder / name for name in kinds}


@pytest.fixture
def loadings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are read from files."""
    read, every = load.read_pretrained, []

    def counted(auto_class: object, where: str, **options: object) -> object:
        every.append(where)
        return read(auto_class, where, **options)

    monkeypatch.setattr(load, "read_pretrained", counted)
    return every


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_base_of_several_adapters_is_loaded_once_and_each_has_the_numbers_it_has_alone(
    models: list[Path], adapters: dict[str, Path], loadings: list[str], monkeypatch: pytest.MonkeyPatch
):
    base, names = models[1], ("lora", "ia3", "missing", "dora", "lora")
    folders = [adapters.get(name, Path(f"no-adapter-of-the-name-{name}")) for name in names]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    alone = {name: wf.evaluate(base, peft=folder, **TASKS) for name, folder in adapters.items() if name in names}
    assert len(loadings) == 3
    loadings.clear()
    read = []
    monkeypatch.setattr("wmdp_fast.several_models.read_ahead", lambda model, **options: read.append((model, options)))
    found, most = [], []
    for scored in wf.evaluate_many([ModelSpec(base, peft=folder) for folder in folders], **TASKS):
        found.append(scored)
        gc.collect()
        most.append(sum(type(one).__name__ == "PeftModelForCausalLM" for one in gc.get_objects()))
    assert [one.error is None for one in found] == [True, True, False, True, True]
    assert loadings == [str(base)]
    assert max(most) <= 1
    assert most[-1] == 0
    # Of adapters their own files alone; when one cannot be loaded, the next one's turn is at once.
    ahead = [(folders[place], {}) for place in (1, 2, 4)]
    assert read == [(base, {"revision": None, "peft": folders[0]}), *ahead]
    for name, scored in zip(names, found, strict=True):
        if scored.result is not None:
            [ours], [theirs] = scored.result.tasks.values(), alone[name].tasks.values()
            assert np.array_equal(ours.outcome.loglikelihood, theirs.outcome.loglikelihood)
            assert scored.result.config == alone[name].config
    sums = {name: next(iter(one.tasks.values())).outcome.loglikelihood.sum() for name, one in alone.items()}
    assert len(set(sums.values())) == 3


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:.*as logits_to_keep:wmdp_fast.exceptions.WmdpFastWarning")
@pytest.mark.filterwarnings("ignore:.*the others are cut off where an adapter:wmdp_fast.exceptions.WmdpFastWarning")
# PEFT 0.18 says so of the adapter with a head of its own; it goes on to do what later ones do.
@pytest.mark.filterwarnings("ignore:.*a tied layer is part of the adapter:wmdp_fast.exceptions.WmdpFastWarning")
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("lora", "head"), "its vocabulary was cut or grown for .*lora, and not to what this one needs"),
        (("prompt", "prompt"), "PEFT has no way to take .*prompt off it"),
        (("pissa", "lora"), "PEFT cannot take .*pissa off it without a trace"),
    ],
)
def test_a_base_that_is_not_as_it_was_is_loaded_again_and_that_is_said(
    names: tuple[str, str], reason: str, models: list[Path], adapters: dict[str, Path], loadings: list[str]
):
    alone = [wf.evaluate(models[1], peft=adapters[name], **TASKS, engine="padded") for name in names]
    loadings.clear()
    specs = [ModelSpec(models[1], peft=adapters[name]) for name in names]
    with pytest.warns(wf.WmdpFastWarning, match=f"the base is loaded again for {adapters[names[1]]}: {reason}"):
        together = list(wf.evaluate_many(specs, **TASKS, engine="padded"))
    assert loadings == [str(models[1])] * 2
    for scored, one in zip(together, alone, strict=True):
        assert scored.result is not None
        [ours], [theirs] = scored.result.tasks.values(), one.tasks.values()
        assert np.array_equal(ours.outcome.loglikelihood, theirs.outcome.loglikelihood)


@SAME_CORPORA
@VERDICTS
@pytest.mark.filterwarnings("ignore:.*the others are cut off where an adapter:wmdp_fast.exceptions.WmdpFastWarning")
def test_models_that_differ_in_upper_layers_share_what_enters_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")
    monkeypatch.setattr("wmdp_fast.scoring.trunk._LEAST_TOKENS", 0)
    base = demo.model_path()
    for seed, layers in enumerate(([4, 5], [4], [0])):
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=layers, init_lora_weights=False
        )
        peft.get_peft_model(model, config).save_pretrained(tmp_path / f"adapter-{seed}")
    settings = wf.RMUConfig(layer_id=4, learning_rate=0.05, max_steps=1, batch_size=2, steering_coeff=5.0, alpha=1.0)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"words of {word}"}) + "\n" for word in ("one", "two", "three")))
    wf.unlearn(base, forget=texts, retain=texts, config=settings, output=tmp_path / "out", device="cpu", progress=False)
    adapters = [ModelSpec(base, peft=tmp_path / f"adapter-{seed}") for seed in range(3)]
    specs = [
        ModelSpec(base),
        *adapters,
        ModelSpec(base),
        ModelSpec(f"{base}+{tmp_path / 'out'}"),
        ModelSpec(tmp_path / "out"),
    ]
    options = {**TASKS, "limit": 20, "engine": "trie", "dtype": "float32"}
    together = list(wf.evaluate_many(specs, **options))
    told = []
    for scored in together:
        assert scored.result is not None
        alone = wf.evaluate(scored.spec.model, peft=scored.spec.peft, **options)
        for name, task in alone.tasks.items():
            ours, theirs = scored.result.tasks[name].outcome, task.outcome
            assert np.array_equal(ours.loglikelihood, theirs.loglikelihood)
        trunk = scored.result.to_json()["wmdp_fast"].get("shared_trunk")
        told.append(None if trunk is None else (trunk["layers"], trunk["states"]))
        assert "shared_trunk" not in alone.details
    given = ["eval", str(base), "--adapters", f"{tmp_path / 'adapter-0'},{tmp_path / 'adapter-1'}", "--timings"]
    assert cli.main([*given, "--tasks", str(TASKS["tasks"]), "--limit", "20", "--device", "cpu", "--quiet"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("layers 0 to 3: their output")]
    assert [line.split(") ")[1] for line in lines] == ["was kept for the next model", "is that of a model before"]
    # For an adapter the embedding is cut to the tokenizer; the one on layer 0 has nothing in common with its neighbors.
    assert told == [(4, "kept"), (4, "kept"), (4, "taken"), None, (2, "kept"), (2, "taken"), (2, "taken")]


class Finished:
    """Two models that were scored into a folder; counts what is loaded afterwards."""

    def __init__(self, models: list[Path], folder: Path, loadings: list[str]) -> None:
        self.models, self.folder, self.loadings = models, folder, loadings
        self.options = {**TASKS, "output": folder / "out"}
        self.first = list(wf.evaluate_many(models[:2], **self.options))
        loadings.clear()

    def again(self, *models: Path | ModelSpec, **options: object) -> list[wf.ScoredModel]:
        self.loadings.clear()
        return list(wf.evaluate_many(models, **{**self.options, "resume": True, **options}))


@pytest.fixture
def finished(models: list[Path], tmp_path: Path, loadings: list[str]) -> Finished:
    copies = [shutil.copytree(model, tmp_path / model.name) for model in models]
    return Finished(copies, tmp_path, loadings)


def test_what_is_finished_is_read_back_and_only_the_rest_is_scored(
    finished: Finished, recwarn: pytest.WarningsRecorder
):
    one, two, three = finished.models
    found = finished.again(one, three, two)
    assert finished.loadings == [str(three)]
    assert not [warning for warning in recwarn if issubclass(warning.category, wf.WmdpFastWarning)]
    assert [scored.spec.model for scored in found] == [one, three, two]
    for scored, before in ((found[0], finished.first[0]), (found[2], finished.first[1])):
        assert isinstance(scored.result, wf.SavedResults)
        assert before.result is not None
        assert scored.result.path == before.result.saved_to
        for name in before.result:
            for metric in ("acc", "acc_stderr", "acc,none"):
                assert scored.result[name][metric] == before.result[name][metric]
    assert isinstance(found[1].result, wf.EvalResult)
    table = models_table(found).splitlines()
    assert len(table) == 5
    # What was scored by `evaluate` alone is as good, and a second time everything is there.
    assert finished.again(*finished.models)
    assert finished.loadings == []
    with pytest.raises(KeyError, match="has no metric 'f1'; it has acc"):
        next(iter(found[0].result.tasks.values()))["f1"]


def test_without_resume_everything_is_scored_again(finished: Finished):
    finished.again(*finished.models[:2], resume=False)
    assert finished.loadings == [str(model) for model in finished.models[:2]]


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"limit": 5}, r"limit \(then 6, now 5\); questions and how they are asked$"),
        ({"dtype": "bfloat16"}, r'dtype \(then "auto", now "bfloat16"\)'),
        ({"score_mode": "model"}, r'score mode \(then "float32", now "model"\)'),
        ({"template": "{{statement}}", "choices": "texts"}, "questions and how they are asked"),
        ({"num_fewshot": 1, "fewshot_file": demo.questions_path("retain")}, "questions and how they are asked"),
        ({"text": {"gulls": ["A gull.", "Two gulls."]}}, "texts"),
        ({"log_samples": True}, r"has no samples of glimmer_brewing"),
    ],
)
def test_a_run_of_something_else_is_not_taken_for_finished_and_what_differs_is_said(
    finished: Finished, options: dict[str, object], differs: str
):
    model = finished.models[0]
    with pytest.warns(wf.WmdpFastWarning, match=f"{model} is scored again: results_.*{differs}"):
        [scored] = finished.again(model, **options)
    assert finished.loadings == [str(model)]
    assert isinstance(scored.result, wf.EvalResult)
    # Of what is there now, the newest that fits is taken.
    [scored] = finished.again(model, **options)
    assert isinstance(scored.result, wf.SavedResults)
    [scored] = finished.again(model)
    assert isinstance(scored.result, wf.SavedResults)


def test_other_files_and_other_answers_are_another_run(finished: Finished, tmp_path: Path):
    model = finished.models[1]
    os.utime(model / "model.safetensors")
    with pytest.warns(wf.WmdpFastWarning, match=r"is scored again: .*model files$"):
        finished.again(model)
    assert finished.loadings == [str(model)]
    (model / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.warns(wf.WmdpFastWarning, match=r"is scored again: .*tokenizer files$"):
        finished.again(model)
    rows = [json.loads(line) for line in Path(TASKS["tasks"]).read_text().splitlines()[:6]]
    rows[3]["answer"] = (rows[3]["answer"] + 1) % 4
    edited = tmp_path / "edited" / Path(TASKS["tasks"]).name
    edited.parent.mkdir()
    edited.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(wf.WmdpFastWarning, match="questions and how they are asked"):
        finished.again(model, tasks=edited)
    # The same questions in another place are the same.
    shutil.copytree(edited.parent, tmp_path / "moved")
    finished.again(model, tasks=tmp_path / "moved" / edited.name)
    assert finished.loadings == []


def test_damaged_results_are_said_and_a_model_that_fails_is_not_finished(finished: Finished):
    assert finished.first[0].result is not None
    file = finished.first[0].result.saved_to
    file.write_text(file.read_text()[:-40])
    with pytest.warns(wf.WmdpFastWarning, match=r"is scored again: results_.* cannot be read \(.*JSON"):
        finished.again(finished.models[0])
    assert finished.loadings == [str(finished.models[0])]
    (finished.models[1] / "config.json").unlink()
    [scored] = finished.again(finished.models[1])
    assert isinstance(scored.error, wf.ModelError)


@pytest.mark.filterwarnings("default::wmdp_fast.exceptions.WmdpFastWarning")
def test_one_model_on_the_command_line_is_read_back_too(finished: Finished, capsys: pytest.CaptureFixture[str]):
    model, before = str(finished.models[0]), finished.first[0].result
    assert before is not None
    told = f"--tasks {TASKS['tasks']} --device cpu --output {finished.options['output']} --resume"
    assert cli.main(["eval", model, *told.split(), "--limit", "6"]) == 0
    out, err = capsys.readouterr()
    assert f"finished before, read from: {before.saved_to}" in err
    assert out.splitlines()[0].split() == ["task", "n", "shots", "metric", "value", "stderr"]
    assert finished.loadings == []
    assert cli.main(["eval", model, *told.split(), "--limit", "6", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["model_name"] == model
    # Another run is scored, and one that fails fails with its error.
    assert cli.main(["eval", model, *told.split(), "--limit", "5", "--quiet"]) == 0
    assert "limit (then 6, now 5)" in capsys.readouterr().err
    assert finished.loadings == [model]
    (Path(model) / "config.json").unlink()
    assert cli.main(["eval", model, *told.split(), "--limit", "4", "--quiet"]) == 1
    assert "has no config.json" in capsys.readouterr().err
    # Streaming changes no number.
    other = str(finished.models[1])
    finished.loadings.clear()
    assert cli.main(["eval", other, *told.split(), "--limit", "6", "--stream"]) == 0
    assert "finished before, read from" in capsys.readouterr().err
    assert finished.loadings == []


def test_the_command_line_says_what_was_finished(finished: Finished, capsys: pytest.CaptureFixture[str]):
    given = [str(model) for model in finished.models[:2]]
    told = f"--tasks {TASKS['tasks']} --limit 6 --device cpu --output {finished.options['output']} --resume"
    assert cli.main(["eval", *given, *told.split()]) == 0
    out, err = capsys.readouterr()
    for model, before in zip(given, finished.first, strict=True):
        assert before.result is not None
        assert f"finished before, read from: {before.result.saved_to}" in err
        assert before.result.table().splitlines()[0].split()[0] in out
        assert out.splitlines()[-2:][given.index(model)].startswith(model)
    assert cli.main(["eval", *given, *told.split(), "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert [one["model_name"] for one in json.loads(out)] == given
    assert err == ""
    assert finished.loadings == []
