"""Checkpoints of other models than language models: refused, or scored with a word about it."""

from __future__ import annotations

import copy
import json
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.support import tiny_models
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.load import load_model
from wmdp_fast.models.partial import load_first_layers
from wmdp_fast.models.reading import about_architecture
from wmdp_fast.models.tokenizer_only import load_tokenizer_only

if TYPE_CHECKING:
    from pathlib import Path


def saved(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path, family: str) -> None:
    sizes = {"vocab_size": tiny_models.VOCABULARY, "d_model": 32}
    made: Any = {
        "bart": lambda: BartForConditionalGeneration(BartConfig(**sizes, encoder_layers=1, decoder_layers=1)),
        "t5": lambda: T5ForConditionalGeneration(T5Config(**sizes, d_kv=8, d_ff=48, num_layers=1, num_heads=4)),
    }
    folder = saved(tmp_path / "model", made[family]())
    for load in (load_model, load_tokenizer_only):
        with pytest.raises(ModelError, match=rf"is an encoder-decoder model \({family}\), and only decoders"):
            load(folder)


@pytest.mark.parametrize(("kind", "surplus"), [(LlamaForSequenceClassification, True), (LlamaModel, False)])
def test_a_model_without_a_head_of_its_own_is_told(tmp_path: Path, kind: Any, surplus: bool) -> None:
    config: Any = copy.deepcopy(tiny_models.config("llama"))
    config.tie_word_embeddings, config.pad_token_id = True, 0
    folder = saved(tmp_path / "model", kind(config))
    with pytest.warns(WmdpFastWarning) as told:
        loaded = load_model(folder, dtype="float32", device="cpu")
    said = [str(one.message).removeprefix(f"{folder}: ") for one in told]
    [about] = [one for one in said if "no head of a language model" in one]
    assert about == (
        f"config.json says that the checkpoint is a '{kind.__name__}', which has no head of a language model; it is"
        " scored as LlamaForCausalLM"
    )
    assert any("score.weight" in one for one in said) == surplus
    assert sorted(loaded.warnings) == sorted(said)


@pytest.mark.parametrize(
    ("architectures", "told"),
    [
        (["Qwen3Model"], True),
        (["XForReward"], True),
        (["XForRewardModel"], True),
        (["BertForMaskedLM", "BertModel"], True),
        (["GPT2LMHeadModel"], False),
        (["GPT2DoubleHeadsModel"], False),
        (["LlavaForConditionalGeneration"], False),
        (["Mine"], False),
        (["MyLM", "MyModel"], False),
        ([], False),
        (None, False),
        ("LlamaModel", False),
        ([5], False),
    ],
)
def test_names_of_architectures(tmp_path: Path, architectures: Any, told: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert bool(about_architecture(tmp_path, "AnyForCausalLM")) == told
    assert about_architecture(tmp_path, str(architectures and architectures[0])) == []


def test_a_language_model_is_not_told_of(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for family in ("llama", "gpt2", "mamba"):
        folder = saved(tmp_path / family, tiny_models.build(family))
        assert load_model(folder, dtype="float32", device="cpu").warnings == ()
    assert not [one for one in recwarn if issubclass(one.category, WmdpFastWarning)]
    assert AutoModelForCausalLM.from_pretrained(folder).config.architectures == ["MambaForCausalLM"]


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        (
            {"quant_method": "fp8", "weight_block_size": [16, 16]},
            "the checkpoint is quantized ('fp8'), which is not run",
        ),
        ({"quant_method": "own"}, "config.json says that the weights are quantized ('own'), which transformers knows"),
    ],
    ids=["taken back", "unknown"],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, transformers wants FP8 on it")
def test_weights_without_their_quantization_are_told(tmp_path: Path, quantization: dict[str, Any], said: str) -> None:
    folder = saved(tmp_path / "model", tiny_models.build("llama"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    with pytest.warns(WmdpFastWarning, match=re.escape(said)):
        loaded = load_model(folder, dtype="float32", device="cpu")
    assert [one.startswith(said) for one in loaded.warnings] == [True]


def scaled_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale.reshape(1)


def scaled_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


@pytest.mark.parametrize(
    ("quantized", "suffix"),
    [(scaled_fp8, "weight_scale"), (scaled_int8, "weight_scale"), (scaled_int8, "SCB")],
    ids=["FP8", "integers", "bitsandbytes"],
)
@pytest.mark.parametrize("configured", [False, True])
def test_quantized_weights_are_not_read_without_their_scales(
    tmp_path: Path, quantized: Any, suffix: str, configured: bool
) -> None:
    """As by a tool that says how in a file of its own, or by a method that transformers does not know."""
    folder = saved(tmp_path / "model", tiny_models.build("llama"))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for name in [one for one in tensors if "mlp" in one]:
        tensors[name], tensors[name.replace("weight", suffix)] = quantized(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    if configured:
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "modelopt"}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    said = (
        rf"is quantized, but model\.layers\.0\.mlp\.down_proj\.weight .* \(model\.layers\.0\.mlp\.down_proj\.{suffix}\)"
    )
    with pytest.raises(ModelError, match=said):
        load_model(folder, dtype="float32", device="cpu")
    with pytest.raises(ModelError, match=said):
        load_first_layers(folder, 1)


def test_scales_of_something_else_are_only_told(tmp_path: Path) -> None:
    """Of keys and values in a cache, which checkpoints in bfloat16 have too."""
    folder = saved(tmp_path / "model", tiny_models.build("llama"))
    path = tmp_path / "model" / "model.safetensors"
    scales = {f"model.layers.0.self_attn.{name}_scale": torch.ones(1) for name in ("k", "v")}
    save_file({**load_file(path), **scales}, path, metadata={"format": "pt"})
    with pytest.warns(WmdpFastWarning, match=r"no place; they are not used: model.layers.0.self_attn.k_scale"):
        load_model(folder, dtype="float32", device="cpu")


def test_a_method_of_quantization_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    if find_spec("hqq") is not None:
        pytest.skip("hqq is installed")
    folder = saved(tmp_path / "model", tiny_models.build("llama"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*HQQ") as caught:
        load_model(folder, dtype="float32", device="cpu")
    assert "\n" not in str(caught.value)
