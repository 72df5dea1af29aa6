"""Quantized weights have the values of libraries and of the definition, and the model that is asked has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from tests.reference import quantization as plain
from tests.support import robustness as support
from tests.support import tiny_models
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import ModelError
from wmdp_fast.robustness.attacks.quantize import Quantize
from wmdp_fast.robustness.matrices import changeable, share_of, weight_matrices
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.quantization import FORMATS, int4, int8, nf4
from wmdp_fast.robustness.subject import Subject, fingerprint

if TYPE_CHECKING:
    from pathlib import Path


def weights(*shape: int) -> torch.Tensor:
    """With a row of zeros, and one far off the rest."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.02
    made[1], made[2] = 0, made[2].abs() * 30
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_the_definition(name: str) -> None:
    matrix = weights(5, 150)
    kind, *rest = name.split()
    if kind == "int4":
        expected = plain.int4(matrix.tolist(), int(rest[-1]), rest[0] == "symmetric")
    else:
        expected = {"int8": plain.int8, "nf4": plain.nf4}[kind](matrix.tolist())
    found = FORMATS[name](matrix)
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-5, atol=1e-9)
    assert not found[1].any()


def test_values_are_those_of_bitsandbytes() -> None:
    """Run with bitsandbytes 0.50.2."""
    functional = pytest.importorskip("bitsandbytes").functional
    matrix = weights(48, 192)
    rounded = functional.dequantize_4bit(
        *functional.quantize_4bit(matrix, blocksize=64, quant_type="nf4", compress_statistics=False)
    )
    assert torch.allclose(nf4(matrix), rounded, rtol=1e-6)
    # There a row of zeros is divided by zero.
    matrix[1] = weights(48, 192)[3]
    codes, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(matrix.clone(), 0.0)
    assert torch.allclose(int8(matrix), codes.float() * scales[:, None] / 127, rtol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64])
def test_values_are_those_of_torchao(symmetric: bool, group: int) -> None:
    """Run with torchao 0.18.0."""
    quantization = pytest.importorskip("torchao.quantization")
    granularity = pytest.importorskip("torchao.quantization.granularity")
    mapping = pytest.importorskip("torchao.quantization.quant_primitives").MappingType
    layer = torch.nn.Linear(192, 48, bias=False)
    matrix = weights(48, 192)
    layer.weight.data.copy_(matrix)
    how = quantization.IntxWeightOnlyConfig(
        weight_dtype=torch.int4,
        granularity=granularity.PerGroup(group),
        mapping_type=mapping.SYMMETRIC if symmetric else mapping.ASYMMETRIC,
    )
    quantization.quantize_(torch.nn.Sequential(layer), how)
    found = int4(matrix, group=group, symmetric=symmetric)
    assert torch.allclose(found, layer.weight.dequantize(), rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "per_layer"), [("llama", 7), ("mixtral", 6), ("qwen3_moe", 6), ("gpt2", 4), ("gpt_oss", 6)]
)
def test_matrices_are_those_of_linear_layers_and_experts(family: str, per_layer: int) -> None:
    model = tiny_models.build(family)
    matrices = weight_matrices(model)
    assert len(matrices) == per_layer * model.config.num_hidden_layers
    names = " ".join(one.name for one in matrices)
    assert not any(word in names for word in ("embed", "wte", "wpe", "lm_head", "norm", "router", "bias"))
    width = model.config.hidden_size
    for one in matrices:
        shapes = {tuple(view.shape) for view in one.views()}
        if "down_proj" in one.name or ".mlp.c_proj" in one.name:
            assert {shape[0] for shape in shapes} == {width}
        elif "gate_up_proj" in one.name or "c_fc" in one.name or "c_attn" in one.name:
            assert {shape[1] for shape in shapes} == {width}
    assert 0 < share_of(matrices, model) < 1


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    made: Path = tmp_path_factory.mktemp("quantized")
    folder = support.save_model(made / "model", "mixtral")
    return support.subject(folder, support.save_questions(made / "birds.jsonl"))


def test_what_is_asked_is_a_model_with_those_weights(subject: Subject) -> None:
    before = fingerprint(subject.network)
    [reading] = Quantize().run(subject, Setting(values={"format": "int4 symmetric groups of 32"}))
    assert fingerprint(subject.network) == before
    assert 0.5 < reading.figures["share of parameters"] < 1
    assert 0.02 < reading.figures["relative change"] < 0.2
    # The same model with weights that were rounded by themselves, as if it had been read from a file.
    with subject.restored():
        for one in weight_matrices(subject.network):
            stack = one.parameter.data if one.parameter.dim() == 3 else one.parameter.data[None]
            stack.copy_(torch.stack([torch.tensor(plain.int4(matrix.tolist(), 32, True)) for matrix in stack]))
        expected = subject.ask()
    assert reading.answers.to_json() == expected.to_json() != subject.ask().to_json()


def test_an_adapter_is_merged_for_that_time() -> None:
    peft = pytest.importorskip("peft")
    model = runs.model("llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    subject = SimpleNamespace(network=adapted, restored=lambda names=None: Subject.restored(subject, names))
    inputs = torch.arange(12)[None]
    expected, before = adapted(inputs).logits, fingerprint(adapted)
    alone = adapted.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    with changeable(subject) as matrices:
        assert len(matrices) == 7 * runs.LAYERS
        assert not torch.equal(next(iter(matrices[0].views())), alone)
        assert torch.allclose(adapted(inputs).logits, expected, atol=1e-4)
    assert fingerprint(adapted) == before
    assert torch.equal(adapted(inputs).logits, expected)


def test_a_model_that_is_quantized_already_is_refused() -> None:
    model = runs.model("llama")
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight is quantized already \(torch.int8\)"):
        weight_matrices(model)
