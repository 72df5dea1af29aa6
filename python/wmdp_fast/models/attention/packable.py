"""Whether a model can run packed rows, as far as its classes and configuration tell."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from wmdp_fast.models.adapters import begins_at_tokens, without_adapter
from wmdp_fast.models.attention.requirements import left_out
from wmdp_fast.models.row_length import keys_kept, length_rules

if TYPE_CHECKING:
    from collections.abc import Sequence


def why_not(
    model: torch.nn.Module, longest: int = 0, *, arguments: Sequence[str] = ("position_ids", "logits_to_keep")
) -> str | None:
    """Why a model cannot run packed rows as far as its classes and configuration tell, or None.

    Args:
        model: A causal model of transformers, or one that PEFT has wrapped.
        longest: Tokens of the longest row, for what depends on that.
        arguments: What it must take.
    """
    if any(parameter.is_cuda for parameter in model.parameters()) and find_spec("triton") is None:
        return "packed attention on a GPU needs Triton, which is not installed"
    if (reason := _why_not_with_its_adapter(model)) is not None:
        return reason
    base = without_adapter(model)
    name = type(base).__name__
    if not getattr(base, "_can_set_attn_implementation", lambda: False)():
        return f"{name} does not attend through transformers' AttentionInterface"
    parameters = inspect.signature(base.forward).parameters
    if missing := [name for name in arguments if name not in parameters]:
        return f"{name} takes no {missing[0]}"
    config = base.config.get_text_config()
    if base.config.is_encoder_decoder or not getattr(config, "is_causal", True):
        return f"{name} is not a causal decoder"
    if getattr(config, "alibi", False):
        return f"{name} adds to its scores by distance (ALiBi)"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"{name} has layers of the kind {', '.join(sorted(kinds)) or 'chunked_attention'}"
    for layer in base.modules():
        if isinstance(layer, torch.nn.Conv1d | torch.nn.RNNBase):
            return f"{name} mixes tokens by {type(layer).__name__}, not by attention alone"
    return _why_not_as_long(base, longest) or _why_not_as_it_is_set(base)


def _why_not_with_its_adapter(model: torch.nn.Module) -> str | None:
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its adapter puts tokens of its own before every row"
    # Excerpts, out of which the middle of long contexts is left, may have none of these tokens.
    if begins_at_tokens(model):
        return "its adapter (aLoRA) begins where it finds certain tokens in a row, and a trie has many rows in one"
    return None


def _why_not_as_it_is_set(model: torch.nn.Module) -> str | None:
    """By trie everything that a model asks of its attention is done, which what it is set to may leave out."""
    if needs := left_out(model):
        return f"its attention (sdpa) leaves out the {' and '.join(needs)} that its configuration asks for"
    return None


def _why_not_as_long(model: torch.nn.Module, longest: int) -> str | None:
    """What depends on the longest row of a batch differs from what a row has by itself."""
    if keys_kept(model) is not None:
        return "its attention picks the best keys of a row (top-k), and a trie has those of many rows in one"
    for rule in length_rules(model, longest):
        return f"its {rule.what} depend on a row's length beyond {rule.limit} tokens; one has {longest}"
    return None
