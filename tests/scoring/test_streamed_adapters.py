"""Adapters on models that are streamed, or held by several processes: the numbers of those in memory, or refused."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import wmdp_fast as wf
from tests.support import ranks, tiny_models
from tests.support.adapters import save_adapter
from tests.support.tries import some_requests
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models import locate
from wmdp_fast.models.adapter_on_parts import refuse_adapter
from wmdp_fast.models.load import load_model, load_streamed
from wmdp_fast.models.tokenizer_only import load_tokenizer_only
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.models.load import LoadedModel

pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")

TOKENS = len(tiny_models.tokenizer())

# Of each family the matrices that have factors; GPT-2 has them the other way round.
FAMILIES = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gemma2": ["q_proj", "o_proj", "gate_proj"],
    "qwen3_moe": ["k_proj", "o_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "falcon": ["query_key_value"],
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("bases") / family
        tiny_models.build(family).save_pretrained(folders[family])
        tiny_models.tokenizer().save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path]) -> dict[str, Any]:
    """What is asked of which model with which adapter."""
    folder = tmp_path_factory.mktemp("asked")
    adapter = save_adapter(folder / "adapter", bases["llama"], TOKENS, r=2, target_modules=FAMILIES["llama"])
    return {"model": bases["llama"], "peft": adapter, **ranks.questions_and_text(folder, 12, 4)}


def streamed(base: Path, adapter: Path, dtype: str = "float32") -> LoadedModel:
    name = str(base)
    files = locate.locate_model(name, revision=None)
    opened = load_tokenizer_only(name, tokenizer=None, revision=None, trust_remote_code=False, files=files)
    return load_streamed(name, 1 << 40, dtype=dtype, device="cpu", opened=opened, peft=str(adapter))


def base_with_rows(folder: Path, rows: int) -> Path:
    config: Any = tiny_models.config("llama")
    config.vocab_size = rows
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


def responses(result: Any) -> np.ndarray:
    return np.concatenate([task.outcome.loglikelihood for task in result.tasks.values()])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "dora"), [*((family, False) for family in FAMILIES), ("llama", True)])
def test_streamed_scores_are_those_of_the_adapter_in_memory(
    family: str, dora: bool, dtype: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    turned = {"fan_in_fan_out": True} if family == "gpt2" else {}
    save_adapter(tmp_path, bases[family], TOKENS, r=2, target_modules=FAMILIES[family], use_dora=dora, **turned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = load_model(str(bases[family]), dtype=dtype, device="cpu", peft=str(tmp_path))
        expected = score(whole, some_requests(), token_budget=16)
        bare = score(load_model(str(bases[family]), dtype=dtype, device="cpu"), some_requests(), token_budget=16)
        found = streamed(bases[family], tmp_path, dtype)
        assert found.streamed is not None
        for most_tokens in (1, 40, 1 << 30):
            chunked = replace(found, streamed=replace(found.streamed, most_tokens=most_tokens))
            scores = score(chunked, some_requests(), token_budget=16)
            np.testing.assert_array_equal(scores.loglikelihood, expected.loglikelihood)
    assert scores.engine == expected.engine
    assert np.abs(expected.loglikelihood - bare.loglikelihood).max() > 0.05
    assert found.warnings == whole.warnings
    # Only factors are in memory.
    layers = found.streamed.skeleton.decoder.layers
    assert {"lora" in name for name, one in layers.named_parameters() if not one.is_meta} == {True}
    assert not any(one.requires_grad for one in layers.parameters() if not one.is_meta)


def test_layers_with_and_without_factors_are_tried(bases: dict[str, Path], tmp_path: Path) -> None:
    some = {"target_modules": ["q_proj"], "layers_to_transform": [1]}
    save_adapter(tmp_path, bases["llama"], TOKENS, r=2, use_rslora=True, lora_dropout=0.5, **some)
    with pytest.warns(WmdpFastWarning, match="has 447 tokens and the model 640; as in lm-eval, the others are cut off"):
        found = streamed(bases["llama"], tmp_path)
    assert found.streamed is not None
    assert found.streamed.one_of_each().order == (0, 1)
    assert found.streamed.skeleton.head.matrix is not None
    assert found.streamed.skeleton.head.matrix.shape[0] == TOKENS


@pytest.mark.filterwarnings("ignore:.*the others are cut off:wmdp_fast.exceptions.WmdpFastWarning")
def test_evaluations_with_adapters_are_streamed(options: dict[str, Any], tmp_path: Path) -> None:
    asked = {**options, "device": "cpu", "progress": False, "output": tmp_path / "one"}
    expected = wf.evaluate(**{**asked, "output": None})
    found = wf.evaluate(**asked, stream=True)
    assert found.details["streamed"]["bytes_read"] > 0
    assert found.to_json()["results"] == expected.to_json()["results"]
    assert found.to_json()["config"] == expected.to_json()["config"]
    again = wf.evaluate(**asked, resume=True)
    assert isinstance(again, wf.SavedResults)
    # Several, each of which reads the base.
    bare = wf.ModelSpec(options["model"])
    specs = [bare, wf.ModelSpec(options["model"], peft=options["peft"])]
    given = {name: options[name] for name in ("tasks", "choices", "token_budget")}
    scored = list(wf.evaluate_many(specs, **given, device="cpu", stream=True, progress=False))
    assert [one.error for one in scored] == [None, None]
    np.testing.assert_array_equal(responses(scored[1].result), responses(expected))
    assert np.abs(responses(scored[0].result) - responses(expected)).max() > 0.05


def test_several_processes_stream_a_model_with_its_adapter(options: dict[str, Any], tmp_path: Path) -> None:
    assert ranks.evaluate(1, tmp_path / "one", **options, shards=2) == [0]
    assert ranks.evaluate(2, tmp_path / "two", **options, shards=2, stream=True) == [0, 0]
    np.testing.assert_array_equal(ranks.scores_in(tmp_path / "two")[0], ranks.scores_in(tmp_path / "one")[0])


@pytest.mark.skipif(
    not {"fsdp_size", "tp_plan"} <= inspect.signature(DistributedConfig).parameters.keys(),
    reason="this transformers (5.12 and before) cannot be told how many devices have a model",
)
@pytest.mark.parametrize(("parallel", "dtype"), [("fsdp", "bfloat16"), ("fsdp", "float32"), ("tp", "float32")])
def test_two_processes_hold_a_model_and_its_adapter(
    parallel: str, dtype: str, options: dict[str, Any], tmp_path: Path
) -> None:
    asked = {**options, "dtype": dtype, "engine": "trie"}
    if parallel == "tp":
        # Of which the embedding need not be cut.
        asked["model"] = base_with_rows(tmp_path / "base", TOKENS)
    assert ranks.evaluate(1, tmp_path / "one", **asked) == [0]
    assert ranks.evaluate(2, tmp_path / "two", **asked, parallel=parallel) == [0, 0]
    expected, _ = ranks.scores_in(tmp_path / "one")
    for rank in range(2):
        found, _ = ranks.scores_in(tmp_path / "two", rank)
        if dtype == "bfloat16":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=2e-5)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "is of the kind 'IA3'": ("IA3Config", {"target_modules": ["v_proj"], "feedforward_modules": []}),
    "begins with values that are made from the model's own ('pissa')": (
        "LoraConfig",
        {"target_modules": ["v_proj"], "init_lora_weights": "pissa"},
    ),
    "has base_model.model.transformer.h.0.attn.c_attn.base_layer.bias": (
        "LoraConfig",
        {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True},
    ),
    "has base_model.model.lm_head.weight": (
        "LoraConfig",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "changes something else, or nothing": ("LoraConfig", {"target_modules": ["q_proj", "lm_head"]}),
}


@pytest.mark.parametrize("says", REFUSED)
def test_other_adapters_are_refused_with_a_way_out(says: str, bases: dict[str, Path], tmp_path: Path) -> None:
    kind, settings = REFUSED[says]
    family = "gpt2" if "bias" in says else "llama"
    save_adapter(tmp_path, bases[family], TOKENS, kind, **settings)
    with pytest.raises(ModelError) as raised:
        streamed(bases[family], tmp_path)
    assert f"the adapter {tmp_path} {says}, and a model is streamed" in str(raised.value)
    assert "merge it into the model first (PEFT's merge_and_unload" in str(raised.value)


def test_dora_is_refused_where_processes_share_matrices(bases: dict[str, Path], tmp_path: Path) -> None:
    save_adapter(tmp_path, bases["llama"], TOKENS, target_modules=["v_proj"], use_dora=True)
    refuse_adapter(str(tmp_path))
    with pytest.raises(ModelError, match="is of the kind DoRA, which is put on whole matrices alone, and a model is"):
        refuse_adapter(str(tmp_path), shared=True)


def test_rows_that_would_be_made_up_are_refused(tmp_path: Path) -> None:
    base = base_with_rows(tmp_path / "base", 440)
    adapter = save_adapter(tmp_path / "adapter", base, 440, r=2, target_modules=["q_proj"])
    with pytest.raises(ModelError, match=r"the tokenizer has 447 tokens and .* 440: rows for the others would have"):
        streamed(base, adapter)
