"""`evaluate` as a whole: which engine runs, and that the results say so."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import wmdp_fast as wf
from tests.support import tiny_models
from wmdp_fast import cli
from wmdp_fast.evaluate_options import EvaluateOptions
from wmdp_fast.exceptions import ModelError, TemplateError, WmdpFastWarning

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "birds.jsonl"
    rows = [
        {"question": f"Which of these is bird {i}?", "choices": ["wren", "oak", "carp", "mint"], "answer": i % 4}
        for i in range(24)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_the_trie_is_the_default_and_the_results_say_what_it_saved(llama_dir: Path, birds: Path) -> None:
    fast = wf.evaluate(llama_dir, tasks=birds, device="cpu", progress=False)
    slow = wf.evaluate(llama_dir, tasks=birds, device="cpu", engine="padded", progress=False)
    np.testing.assert_allclose(
        fast["birds"].outcome.loglikelihood, slow["birds"].outcome.loglikelihood, rtol=0, atol=2e-5
    )
    recorded, padded = (result.to_json()["wmdp_fast"] for result in (fast, slow))
    assert (recorded["engine"], recorded["why_not_trie"]) == ("trie", None)
    assert (padded["engine"], padded["why_not_trie"]) == ("padded", None)
    assert recorded["tokens_useful"] <= recorded["tokens_run"] <= 1.05 * recorded["tokens_useful"]
    assert recorded["tokens_run"] < padded["tokens_useful"] <= padded["tokens_run"]
    assert 0 < recorded["seconds_waiting"] < recorded["seconds"]["forward"]


@pytest.mark.parametrize("way", [{}, {"engine": "padded"}, {"stream": True}], ids=["trie", "padded", "streamed"])
def test_autocast_around_the_call_changes_no_number(llama_dir: Path, birds: Path, way: dict[str, Any]) -> None:
    def scored() -> np.ndarray:
        result = wf.evaluate(llama_dir, tasks=birds, text={"a": ["Owls hoot."]}, dtype="float32", progress=False, **way)
        [task], [text] = result.tasks.values(), result.texts.values()
        return np.array([*task.outcome.loglikelihood, text.metrics["byte_perplexity"]])

    expected = scored()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(scored(), expected)


def test_a_model_that_has_no_trie_is_named_once_and_scored_all_the_same(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_models.build("mamba").save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    reason = "MambaForCausalLM takes no position_ids"
    with pytest.warns(WmdpFastWarning, match=reason) as caught:
        result = wf.evaluate(tmp_path, tasks=birds, device="cpu", limit=2, progress=False)
    assert len([warning for warning in caught if issubclass(warning.category, WmdpFastWarning)]) == 1
    recorded = result.to_json()["wmdp_fast"]
    assert (recorded["engine"], recorded["why_not_trie"]) == ("padded", reason)
    with pytest.raises(ModelError, match=re.escape(reason)):
        wf.evaluate(tmp_path, tasks=birds, device="cpu", engine="trie", limit=2, progress=False)
    options = ["--tasks", str(birds), "--device", "cpu", "--limit", "2", "--quiet", "--engine", "trie"]
    assert cli.main(["eval", str(tmp_path), *options]) == 1
    assert "cannot be scored by trie: MambaForCausalLM takes no position_ids; engine auto" in capsys.readouterr().err


def test_the_bar_counts_the_inputs_of_the_engine_that_runs(
    llama_dir: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wf.evaluate(llama_dir, tasks=birds, device="cpu", progress=True)
    assert "scoring: 100%" in (shown := capsys.readouterr().err)
    assert "24/24" in shown


def test_another_tokenizer_can_be_named_and_is_written_down(llama_dir: Path, birds: Path, tmp_path: Path) -> None:
    named = {file.name: file for file in llama_dir.iterdir() if file.name.startswith(("tokenizer", "special"))}
    for name, file in named.items():
        file.rename(tmp_path / name)
    try:
        result = wf.evaluate(llama_dir, tokenizer=tmp_path, tasks=birds, device="cpu", limit=2, progress=False)
    finally:
        for name, file in named.items():
            (tmp_path / name).rename(file)
    assert result.to_json()["config"]["model_args"]["tokenizer"] == str(tmp_path)


@pytest.mark.parametrize(("template", "renderer"), [("{{ question }}?", "rust"), ("{{ question|title }}?", "jinja2 ")])
def test_results_say_what_rendered_a_template(llama_dir: Path, birds: Path, template: str, renderer: str) -> None:
    result = wf.evaluate(llama_dir, tasks=birds, template=template, device="cpu", limit=2, progress=False)
    assert result.details["template_renderer"]["birds"].startswith(renderer)
    assert not wf.evaluate(llama_dir, tasks=birds, device="cpu", limit=2, progress=False).details["template_renderer"]


def test_a_template_that_fails_does_so_before_the_model_is_looked_for(birds: Path) -> None:
    with pytest.raises(TemplateError, match=r"'hint' is undefined.*fields are question, choices, answer"):
        wf.evaluate("no-such/model", tasks=birds, template="{{ hint }}", progress=False)


def test_its_options_as_a_type_are_its_parameters() -> None:
    parameters = list(inspect.signature(wf.evaluate).parameters)
    assert list(EvaluateOptions.__annotations__) == [name for name in parameters if name not in ("model", "resume")]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"engine": "tire"}, "engine must be auto, trie or padded, not 'tire'"),
        ({"score_mode": "Model"}, "score_mode must be float32 or model, not 'Model'"),
        ({"token_budget": "lots"}, "token_budget must be a number of tokens from 1 to .*, not 'lots'"),
        ({"token_budget": 2.5}, "token_budget must be a number of tokens from 1 to .*, not 2.5"),
        ({"max_length": "5"}, "max_length must be a number of tokens from 1 to .*, not '5'"),
        ({"num_fewshot": "2"}, "num_fewshot is '2'; it must be a whole number"),
        ({"num_fewshot": 2.0}, "num_fewshot is 2.0; it must be a whole number"),
    ],
)
def test_a_misspelt_value_is_not_taken_for_another(birds: Path, option: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wf.evaluate("no-such-model", tasks=birds, **option)


def test_what_is_no_model_is_told_so(birds: Path) -> None:
    for wrong in (None, 3, ["a", "b"]):
        with pytest.raises(TypeError, match=f"model must be a folder, .*, not {type(wrong).__name__}"):
            wf.evaluate(wrong, tasks=birds)  # type: ignore[call-overload]


@pytest.mark.filterwarnings("ignore:scoring LlamaModel on padded rows:wmdp_fast.exceptions.WmdpFastWarning")
def test_a_base_without_a_head_is_told_so(birds: Path) -> None:
    base = tiny_models.build("llama").model
    for engine in ("auto", "padded"):
        with pytest.raises(ModelError, match=r"LlamaModel gives no logits: .*AutoModelForCausalLM"):
            wf.evaluate(base, tokenizer=tiny_models.tokenizer(), tasks=birds, engine=engine, progress=False)


def test_a_device_of_torch_is_a_device(llama_dir: Path, birds: Path, tmp_path: Path) -> None:
    options: Any = {"tasks": birds, "progress": False, "output": tmp_path}
    first = wf.evaluate(llama_dir, device="cpu", **options)
    again = wf.evaluate(llama_dir, device=torch.device("cpu"), resume=True, **options)
    assert isinstance(again, wf.SavedResults)
    assert again.path == first.saved_to


def test_a_model_that_is_nowhere_is_named_before_data_out_of_reach(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    mistyped = f"{llama_dir}a"
    for models in ([mistyped], [str(llama_dir), mistyped]):
        assert cli.main(["eval", *models, "--tasks", "wmdp_bio", "--device", "cpu", "--quiet"]) == 1
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith(f"error: {mistyped} is neither a folder nor a name on the hub")
        assert second.startswith("nor could this be found: wmdp_bio: cais/wmdp at revision")
    # A model that is there leaves it at the data.
    assert cli.main(["eval", str(llama_dir), "--tasks", "wmdp_bio", "--device", "cpu", "--quiet"]) == 1
    [only] = capsys.readouterr().err.splitlines()
    assert only.startswith("error: wmdp_bio: cais/wmdp at revision")
