"""Adapters of PEFT on small models, with factors that change what these say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path


def save_adapter(folder: Path, base: Path, rows: int, kind: str = "LoraConfig", **settings: Any) -> Path:
    """Makes an adapter for a model folder whose embedding gets so many rows first; returns the adapter's folder."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'wmdp-fast[peft]'")
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != model.config.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder
