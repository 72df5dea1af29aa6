"""Models of any size that take no disk: their weights are a hole in a file, which reads as zeros."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support import tiny_models

if TYPE_CHECKING:
    from pathlib import Path


def sparse_model(folder: Path, *, layers: int, vocabulary: int = tiny_models.VOCABULARY, tied: bool = False) -> int:
    """Writes a llama in float32 with layers of 28 MB, and its tokenizer; returns the bytes of its weights."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(config).state_dict()
    if tied:
        del tensors["lm_head.weight"]
    table, at = {}, 0
    for name, tensor in tensors.items():
        table[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    config.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    return at
