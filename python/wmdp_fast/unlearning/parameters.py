"""Which parameters are trained: by what they do, whatever an architecture calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime import requirements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from wmdp_fast.models.decoder import Decoder
    from wmdp_fast.unlearning.lora import LoRA
    from wmdp_fast.unlearning.training_config import TrainingConfig

# Modules whose weights have three dimensions or more and are not stacks of matrices, as those of experts are.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# What stands for every parameter of the model.
ALL = "all"

# So many are listed one by one while a run begins; the record has all of them.
_MOST_TOLD = 64

# The part of a decoder layer that is its feed-forward network, dense or a mixture of experts, fused or listed.
_MLP = r"(mlp|block_sparse_moe|feed_forward|ffn)\.(experts\.(\d+\.)?|shared_experts?\.|shared_mlp\.)?"
_ATTENTION = r"(self_attn|attention|attn)\."

# Roles by name; each pattern fits the whole name of a parameter within its layer. Biases and norms have no role.
ROLES = {
    "mlp": _MLP
    + r"(gate_proj|up_proj|down_proj|gate_up_proj|dense_h_to_4h|dense_4h_to_h|w[123]|c_fc|c_proj|fc[12])(\.weight)?",
    "mlp.down_proj": _MLP + r"(down_proj|dense_4h_to_h|w2|c_proj|fc2)(\.weight)?",
    "mlp.up_proj": _MLP + r"(up_proj|gate_up_proj|dense_h_to_4h|w3|c_fc|fc1)(\.weight)?",
    "mlp.gate_proj": _MLP + r"(gate_proj|gate_up_proj|w1)(\.weight)?",
    "self_attn": _ATTENTION + r"(q_proj|k_proj|v_proj|qkv_proj|query_key_value|c_attn|o_proj|dense|c_proj)\.weight",
    "self_attn.o_proj": _ATTENTION + r"(o_proj|dense|c_proj)\.weight",
    "self_attn.q_proj": _ATTENTION + r"q_proj\.weight",
    "self_attn.k_proj": _ATTENTION + r"k_proj\.weight",
    "self_attn.v_proj": _ATTENTION + r"v_proj\.weight",
}


@dataclass(frozen=True)
class TrainedParameter:
    """A parameter that is trained.

    Attributes:
        name: Its name in the model that runs, such as `layers.5.mlp.down_proj.weight`.
        layer: Its layer's number, or None if it is in none.
        parameter: The tensor itself.
    """

    name: str
    layer: int | None
    parameter: nn.Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size in each dimension."""
        return tuple(self.parameter.shape)

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape))
        megabytes = self.parameter.numel() * self.parameter.element_size() / 1e6
        dtype = str(self.parameter.dtype).removeprefix("torch.")
        return f"{self.name}: {size}, {dtype}, {megabytes:.1f} MB"


def trained_parameters(
    config: TrainingConfig, decoder: Decoder, whole: nn.Module | None, num_layers: int
) -> list[TrainedParameter]:
    """The parameters of a model that a run changes.

    Args:
        config: The settings.
        decoder: The model without its head, or its first layers.
        whole: The whole model, if it is there.
        num_layers: How many layers the whole model has.

    Raises:
        ImportError: PEFT is needed for LoRA and is not installed.
        ModelError: A layer has none of them, some are quantized, or LoRA cannot be put on them.
        ValueError: A regular expression is none.
    """
    if config.lora is not None:
        return lora_targets(decoder, config.trained_layers(num_layers), config.lora)
    if config.parameters == ALL:
        layers = config.trained_layers(num_layers)
        if set(layers) != set(range(num_layers)):
            # What is in no layer is trained with all of them.
            return select_parameters(decoder.layers, decoder.prefix, layers, ".")
        return all_parameters(decoder, whole)
    return select_parameters(decoder.layers, decoder.prefix, config.trained_layers(num_layers), config.parameters)


def told(picked: Sequence[TrainedParameter], lora: LoRA | None = None) -> list[str]:
    """What is trained, as lines for the user; of many parameters only how many there are."""
    if lora is None:
        what = "training"
        several = sum(one.parameter.numel() * one.parameter.element_size() for one in picked)
    else:
        # In float32, whatever the matrices are in.
        several = sum(4 * lora.r * sum(one.parameter.shape) for one in picked)
        what = f"training LoRA factors ({lora}; {several / 1e6:.1f} MB in float32) beside"
    if len(picked) <= _MOST_TOLD:
        return [f"{what}:", *(f"  {one}" for one in picked)]
    size = f", {several / 1e6:.1f} MB" if lora is None else ""
    return [f"{what}: {len(picked)} parameters{size}, from {picked[0].name} to {picked[-1].name}"]


def all_parameters(decoder: Decoder, whole: nn.Module | None) -> list[TrainedParameter]:
    """Every parameter of a model: embeddings, layers, norms and a head. One with several names is there once.

    Args:
        decoder: The model without its head.
        whole: The model with it, if it is there.

    Raises:
        ModelError: Some are quantized.
    """
    names = {id(parameter): name for name, parameter in decoder.model.named_parameters()}
    layers = {id(one): index for index, layer in enumerate(decoder.layers) for one in layer.parameters()}
    picked = [
        TrainedParameter(names.get(id(parameter), name), layers.get(id(parameter)), parameter)
        for name, parameter in (whole or decoder.model).named_parameters()
    ]
    _refuse_quantized(picked)
    return picked


def select_parameters(
    layers: nn.ModuleList, prefix: str, layer_ids: Iterable[int], wanted: str
) -> list[TrainedParameter]:
    """Finds the parameters of a role, or those whose name fits a regular expression, in some layers of a model.

    Args:
        layers: The model's decoder layers.
        prefix: Their name in the model, such as `layers`.
        layer_ids: Numbers of the layers to look in.
        wanted: A role of `ROLES`, or a regular expression that is searched in the names within a layer.

    Raises:
        ModelError: A layer has none of them, or what was selected is quantized.
        ValueError: The regular expression is none, or there is no such layer.
    """
    try:
        pattern = re.compile(f"^(?:{ROLES[wanted]})$" if wanted in ROLES else wanted)
    except re.error as error:
        raise ValueError(
            f"parameters {wanted!r} is neither a role ({', '.join(ROLES)}) nor a regular expression: {error}"
        ) from None
    picked = []
    for index in layer_ids:
        if index >= len(layers):
            raise ValueError(
                f"layer {index} does not exist: the model has {len(layers)} layers, 0 to {len(layers) - 1}"
            )
        names = dict(layers[index].named_parameters())
        found = [
            TrainedParameter(f"{prefix}.{index}.{name}", index, parameter)
            for name, parameter in names.items()
            if pattern.search(name)
        ]
        if not found:
            raise ModelError(_nothing_selected(wanted, index, list(names)))
        picked += found
    _refuse_quantized(picked)
    return picked


def lora_targets(decoder: Decoder, layer_ids: Iterable[int], lora: LoRA) -> list[TrainedParameter]:
    """The weights of linear layers that LoRA puts factors beside.

    Args:
        decoder: The model without its head, or its first layers.
        layer_ids: Numbers of the layers to look in.
        lora: The setting.

    Raises:
        ImportError: PEFT is not installed.
        ModelError: A target fits no linear layer, a layer has none, or weights are quantized or no matrices; or PEFT is
            too old.
    """
    if find_spec("peft") is None:
        raise ImportError("LoRA needs the package peft: pip install 'wmdp-fast[peft]'")
    if problem := requirements.too_old("peft"):
        raise ModelError(problem)
    patterns = {target: re.compile(_target(target)) for target in lora.targets}
    unused = set(patterns)
    picked = []
    for index in layer_ids:
        linears: dict[str, Any] = {
            name: one for name, one in decoder.layers[index].named_modules() if isinstance(one, (nn.Linear, Conv1D))
        }
        fitting = {name: {key for key, one in patterns.items() if one.search(f".{name}.weight")} for name in linears}
        unused -= set().union(*fitting.values())
        found = [name for name in linears if fitting[name] or not patterns]
        _refuse_fused(decoder.layers[index], index, linears, patterns)
        if not found:
            raise ModelError(
                f"targets of lora ({lora}) fit no linear layer of layer {index}, which has"
                f" {', '.join(linears) or 'none'}"
            )
        picked += [
            TrainedParameter(f"{decoder.prefix}.{index}.{name}.weight", index, linears[name].weight) for name in found
        ]
    if unused:
        raise ModelError(
            f"the target {min(unused)} of lora fits no linear layer; layer {index} has {', '.join(linears)}"
        )
    _refuse_quantized(picked)
    return picked


def _target(target: str) -> str:
    """The pattern of a target of LoRA, for a name with a dot before it."""
    return rf"^\.(?:{ROLES[target]})$" if target in ROLES else rf"\.{re.escape(target)}\.weight$"


def _refuse_fused(
    layer: nn.Module, index: int, linears: Mapping[str, nn.Module], patterns: Mapping[str, re.Pattern[str]]
) -> None:
    """Raises ModelError if matrices that LoRA was asked for are not those of linear layers: experts in one tensor."""
    for name, parameter in layer.named_parameters():
        owner = name.rpartition(".")[0]
        named = (f".{name}", f".{name}.weight")
        wanted = not patterns or any(one.search(text) for one in patterns.values() for text in named)
        is_matrices = parameter.dim() > 2 and not isinstance(layer.get_submodule(owner), CONVOLUTIONS)
        if is_matrices and owner not in linears and wanted:
            raise ModelError(
                f"layer {index} has the matrices of its experts in one tensor ({name}), which LoRA is not for: name"
                " linear layers as its targets (targets=self_attn), or train the weights themselves (parameters)"
            )


def _refuse_quantized(picked: Iterable[TrainedParameter]) -> None:
    for one in picked:
        if not one.parameter.is_floating_point() or one.parameter.element_size() < 2:
            raise ModelError(
                f"{one.name} is quantized ({one.parameter.dtype}); unlearn the model in bfloat16 or float32"
            )


def _nothing_selected(wanted: str, index: int, names: Sequence[str]) -> str:
    meaning = "role" if wanted in ROLES else "regular expression"
    return (
        f"the {meaning} {wanted!r} fits no parameter of layer {index}, so it would not be trained; the layer has"
        f" {', '.join(names)}: pass a regular expression that fits some of them, or one of the roles {', '.join(ROLES)}"
    )
