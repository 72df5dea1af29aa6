"""Which parameters are trained: by what they do, whatever an architecture calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

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
        layer: Its layer's number.
        parameter: The tensor itself.
    """

    name: str
    layer: int
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
    for one in picked:
        if not one.parameter.is_floating_point() or one.parameter.element_size() < 2:
            raise ModelError(
                f"{one.name} is quantized ({one.parameter.dtype}); unlearn the model in bfloat16 or float32"
            )
    return picked


def _nothing_selected(wanted: str, index: int, names: Sequence[str]) -> str:
    meaning = "role" if wanted in ROLES else "regular expression"
    return (
        f"the {meaning} {wanted!r} fits no parameter of layer {index}, so it would not be trained; the layer has"
        f" {', '.join(names)}: pass a regular expression that fits some of them, or one of the roles {', '.join(ROLES)}"
    )
