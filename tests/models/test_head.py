"""Where a model is cut between its last hidden states and its logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support import tiny_models
from wmdp_fast.models.head import head_of, logits_at
from wmdp_fast.models.logits import all_logits

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "llama4_text"])
def test_a_model_is_cut_at_what_returns_hidden_states(family: str) -> None:
    if family == "llama4_text":
        # Which calls itself its base.
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    else:
        model = tiny_models.build(family)
    head = head_of(model, torch.device("cpu"))
    assert head is not None
    assert head.base is (model.transformer if family == "gpt2" else model.model)
    tokens, readouts = torch.arange(1, 13).view(2, 6), np.array([[0, 1], [0, 5], [1, 3]])
    with torch.no_grad():
        found, expected = logits_at(head, tokens, readouts), all_logits(model, tokens, readouts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
