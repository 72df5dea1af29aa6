"""LoRA adapters on a model of which never all is in memory: a streamed one, or one that processes hold together.

PEFT puts modules of its own around those of a layer. To do that it needs their shapes, types and device, not their
numbers; so an adapter is put on before there are any, and its factors stay in memory. What is then computed is what
PEFT computes on a model in memory. That is so of factors beside matrices of decoder layers; other adapters are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.weight_files import ADAPTER_CONFIG, read_json
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models import locate
from wmdp_fast.models.adapters import fit_vocabulary, with_adapter
from wmdp_fast.models.reading import failures_as

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from wmdp_fast.models.skeleton import Skeleton

# How the names of factors end, with biases and magnitudes (DoRA) of their own.
_FACTORS = (
    *("lora_A.weight", "lora_B.weight", "lora_A.bias", "lora_B.bias"),
    *("lora_magnitude_vector", "lora_magnitude_vector.weight"),
)

# First values that PEFT makes without looking at the matrices, which others change when they are put on.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "orthogonal")


def refuse_adapter(adapter: str, *, shared: bool = False) -> None:
    """Raises ModelError for an adapter that is more than factors beside matrices of layers.

    Args:
        adapter: Folder, or name on the hub.
        shared: Whether several processes hold the model together. DoRA asks for the norms of whole matrices when it is
            put on, of which each then has a part.

    Raises:
        DataUnavailableError: It is missing or out of reach.
        ModelError: It is refused; says why, and what to do.
    """
    folder = locate.locate_adapter(adapter).folder
    config = read_json(folder / ADAPTER_CONFIG)
    reason = _why_not(config) or _what_else(adapter, folder)
    if reason is None and shared and config.get("use_dora"):
        reason = "is of the kind DoRA, which is put on whole matrices alone"
    if reason is not None:
        raise _refusal(adapter, reason)


def with_adapter_on(
    skeleton: Skeleton, adapter: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[nn.Module, tuple[str, ...]]:
    """Puts an adapter on a model that was built for it; its layers have numbers, or describe them.

    Args:
        skeleton: The model, with as many rows of embedding and head as the tokenizer has tokens.
        adapter: Folder, or name on the hub, of one that is not refused.
        tokenizer: The model's.

    Returns:
        The model with its adapter, of which nothing needs a gradient, and what is to be said of it.

    Raises:
        DataUnavailableError: It is missing or out of reach.
        ModelError: As `with_adapter`; or it changes something else than layers.
    """
    cut = fit_vocabulary(skeleton.model, adapter, tokenizer, skeleton.vocabulary)
    others = {id(one) for one in skeleton.model.parameters()}
    model, notes = with_adapter(skeleton.model, adapter, tokenizer)
    factors = [one for one in model.parameters() if id(one) not in others]
    of_layers = {id(one) for one in skeleton.decoder.layers.parameters()}
    if not factors or any(id(one) not in of_layers or one.is_meta for one in factors):
        raise _refusal(adapter, "changes something else, or nothing")
    return model.requires_grad_(requires_grad=False).eval(), (*cut, *notes)


def _refusal(adapter: str, reason: str) -> ModelError:
    return ModelError(
        f"the adapter {adapter} {reason}, and a model is streamed, or held by several processes, with LoRA factors of"
        " its layers alone: merge it into the model first (PEFT's merge_and_unload and save_pretrained), or score it in"
        " memory"
    )


def _why_not(config: Mapping[str, Any]) -> str | None:
    """Why an adapter of this configuration is refused, as a sentence's part; None if it is not."""
    kind, begins = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        return f"is of the kind {kind!r}"
    if begins not in _PLAIN_BEGINNINGS:
        return f"begins with values that are made from the model's own ({begins!r})"
    for name in ("layer_replication", "target_parameters", "alora_invocation_tokens"):
        if config.get(name):
            return f"has {name}"
    return None


def _what_else(adapter: str, folder: Path) -> str | None:
    """What an adapter's file has besides factors, as a sentence's part; None if there is nothing else."""
    from safetensors import safe_open

    with (
        failures_as(ModelError, f"the adapter {adapter} cannot be read"),
        safe_open(folder / locate.ADAPTER_WEIGHTS, framework="np") as file,
    ):
        names = sorted(file.keys())
    others = [name for name in names if not name.endswith(_FACTORS)]
    return f"has {others[0]}" if others else None
