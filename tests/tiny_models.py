"""Causal models with random weights, small enough to be run one sequence at a time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import tokenizers_zoo
from wmdp_fast.models.load import LoadedModel, wrap_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 640
FAMILIES = ("llama", "gpt2", "gemma2", "mistral", "qwen2", "mamba")

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def config(family: str) -> AutoConfig:
    match family:
        case "gpt2":
            return AutoConfig.for_model("gpt2", vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        case "gemma2":
            caps = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.3}
            return AutoConfig.for_model("gemma2", **_SIZES, **caps, head_dim=8, sliding_window=4)
        case "mistral":
            return AutoConfig.for_model("mistral", **_SIZES, sliding_window=4)
        case "mamba":
            return AutoConfig.for_model("mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
        case _:
            return AutoConfig.for_model(family, **_SIZES)


def build(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A new model; the weights are large, so that its distributions are far from flat."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config(family)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return model.to(dtype)


def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizers_zoo.tokenizer("llama3")


@functools.cache
def loaded(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return wrap_model(build(family, dtype), tokenizer(), name=family)
