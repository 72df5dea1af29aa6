"""Causal models with random weights, small enough to be run one sequence at a time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support import tokenizers_zoo
from wmdp_fast.models.load import LoadedModel, wrap_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 640
FAMILIES = ("llama", "gpt2", "gemma2", "mistral", "qwen2", "mamba")

# Families that a trie must score as padded rows do: every kind of attention, position and expert there is among them.
TRIE_FAMILIES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "olmo2"),
    *("gpt_neox", "gpt2", "granite", "deepseek_v3", "gpt_oss"),
)
# Families that cannot be scored by trie, with what is said of them.
PADDED_FAMILIES = {
    "falcon": "FalconForCausalLM does not attend through transformers' AttentionInterface",
    "mamba": "MambaForCausalLM takes no position_ids",
}

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
_MULTI_HEAD = {name: size for name, size in _SIZES.items() if name != "num_key_value_heads"}
_RANKS = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_GROUPED_EXPERTS = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
_CAPS = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.3}

_OPTIONS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {**_SIZES, **_EXPERTS, **_RANKS, **_GROUPED_EXPERTS, "num_key_value_heads": 4},
    "falcon": _MULTI_HEAD,
    "gemma2": {**_SIZES, **_CAPS, "head_dim": 8, "sliding_window": 4},
    "gemma3_text": {**_SIZES, **_WINDOWS, "head_dim": 8},
    "gemma3n_text": {
        **_SIZES,
        **_WINDOWS,
        "head_dim": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 2,
        "altup_num_inputs": 2,
        "pad_token_id": 0,
    },
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": _MULTI_HEAD,
    "gpt_oss": {**_SIZES, **_WINDOWS, "head_dim": 8, "num_local_experts": 4},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
    "mistral": {**_SIZES, "sliding_window": 4},
    "mixtral": {**_SIZES, "num_local_experts": 4, "sliding_window": 4},
    "phi3": {**_SIZES, "pad_token_id": 0, "sliding_window": 4},
    "qwen3": {**_SIZES, **_WINDOWS, "head_dim": 8, "use_sliding_window": True},
    "qwen3_moe": {**_SIZES, **_EXPERTS, "head_dim": 8, "num_experts": 4},
}


def config(family: str) -> AutoConfig:
    return AutoConfig.for_model(family, **_OPTIONS.get(family, _SIZES))


def build(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A new model; the weights are large, so that its distributions are far from flat."""
    torch.manual_seed(0)
    # Which some versions of transformers would leave out in torch's attention.
    options = {"attn_implementation": "eager"} if family in ("gemma2", "gpt_oss") else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config(family), **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.3)
    return model.to(dtype)


def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizers_zoo.tokenizer("llama3")


@functools.cache
def loaded(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return wrap_model(build(family, dtype), tokenizer(), name=family)
