"""Small models, corpora and settings for tests of unlearning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from wmdp_fast.prompts.documents import CorpusTokens
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 100
PAD = 2
LAYERS = 4

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": PAD,
    "bos_token_id": 1,
    "pad_token_id": PAD,
}
_OWN = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "opt": {"ffn_dim": 48},
}
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_neox", "mixtral", "qwen3_moe",
)  # fmt: skip


def model(family: str, dtype: torch.dtype = torch.float32, layers: int = LAYERS, **more):
    """A model with random weights, larger than usual so that its layers do something."""
    torch.manual_seed(0)
    # Which some versions of transformers would leave out in torch's attention.
    options = {"attn_implementation": "eager"} if family == "gemma2" else {}
    sizes = _SIZES | _OWN.get(family, {}) | {"num_hidden_layers": layers} | more
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    return made.to(dtype).eval()


def saved_model(folder: Path, family: str, dtype: torch.dtype = torch.float32, shard_size: str = "1GB") -> Path:
    model(family, dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def folder_with_tokenizer(folder: Path, family: str, dtype: torch.dtype = torch.float32, **more) -> Path:
    """A model folder as a method needs it that runs the whole model."""
    made = model(family, dtype, **more)
    made.resize_token_embeddings(640)
    made.save_pretrained(folder)
    tokenizers_zoo.tokenizer("llama3").save_pretrained(folder)
    return folder


def documents(seed: int, count: int = 30, longest: int = 40) -> list[list[int]]:
    """Random documents of random lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, rng.integers(3, longest)).tolist() for _ in range(count)]


def corpus(rows: list[list[int]], name: str = "made up") -> CorpusTokens:
    offsets = np.cumsum([0] + [len(row) for row in rows])
    return CorpusTokens(
        name, np.array([token for row in rows for token in row], dtype=np.int64), offsets, f"hash of {name}"
    )


def unlearn(model, config, **options):
    """A run on the documents of two seeds."""
    return wf.unlearn(
        model,
        forget=corpus(documents(1), "forget"),
        retain=corpus(documents(2), "retain"),
        config=config,
        progress=False,
        **options,
    )


CONFIG = RMUConfig(
    layer_id=2,
    steering_coeff=2.0,
    alpha=50.0,
    learning_rate=0.05,
    batch_size=2,
    max_steps=4,
    max_length=30,
)
