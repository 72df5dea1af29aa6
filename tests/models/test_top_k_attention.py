"""Attention that picks keys by an index of its own (top-k): each row has the numbers that it has alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.reference import scoring as reference
from tests.support import tiny_models, unlearning_runs
from wmdp_fast import Requests, RMUConfig, unlearn
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.load import wrap_model
from wmdp_fast.models.row_length import LengthRule, keys_kept, length_rules
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from tests.reference.batching import Question

_SIZES = {
    "vocab_size": tiny_models.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_RANKS = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_INDEX = {"index_topk": 4, "index_head_dim": 16, "index_n_heads": 2}
_INDEXED = {**_SIZES, **_EXPERTS, **_RANKS, **_INDEX}

FAMILIES: dict[str, dict[str, Any]] = {
    "axk2": {**_INDEXED, "head_dim": 8},
    "deepseek_v32": {**_INDEXED, "head_dim": 8, "first_k_dense_replace": 1},
    "deepseek_v4": {
        **{name: size for name, size in _SIZES.items() if name != "intermediate_size"},
        **_INDEX,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "doge": {**_SIZES, "keep_window_size": 4},
    "glm_moe_dsa": {**_INDEXED, "head_dim": 8, "first_k_dense_replace": 1},
    "hy_v4": {**_INDEXED, "head_dim": 16},
    "minimax_m3_vl_text": {
        **_SIZES,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 24,
        "rotary_dim": 4,
        "index_n_heads": 4,
        "index_head_dim": 8,
        "index_block_size": 2,
        "index_topk_blocks": 4,
    },
}


def build(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.3)
    return model


def some_questions() -> list[Question]:
    """Rows of 5 to 33 tokens, choices of one and of several tokens; several rows have the same length."""
    contexts = [[1 + (number * place) % 97 for place in range(length)] for number, length in enumerate(range(4, 30))]
    return [(context, [[1], [2], [3, 4, 5], [7, 8, 9, 11]]) for context in contexts]


def some_requests() -> Requests:
    return Requests.from_tokens(*map(list, zip(*some_questions(), strict=True)), max_length=64)


def alone(model: Any) -> list[float]:
    """Log-likelihoods by plain forward passes, a row in each."""
    with torch.no_grad():
        return [found for found, _ in reference.score(model, some_questions(), 64)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in CONFIG_MAPPING])
def test_each_row_has_the_numbers_that_it_has_alone(family: str) -> None:
    model, requests = build(family), some_requests()
    expected = alone(model)
    loaded = wrap_model(model, tiny_models.tokenizer(), name=family)
    assert keys_kept(model) == 4
    together = score_padded(loaded, requests, token_budget=100_000)
    assert together.batches < len(requests.choice_offsets) * 2
    np.testing.assert_allclose(together.loglikelihood, expected, rtol=0, atol=2e-4)
    with pytest.warns(
        WmdpFastWarning,
        match=r"its attention picks the best keys of a row \(top-k\)|of the kind (indexed|heavily_compressed)_",
    ):
        scored = score(loaded, requests)
    assert scored.engine == "padded"
    np.testing.assert_allclose(scored.loglikelihood, expected, rtol=0, atol=2e-4)


def test_rows_that_keep_all_keys_share_a_batch_and_longer_ones_do_not() -> None:
    model = tiny_models.build("llama")
    for name, value in (("index_topk", 12), ("index_topk", [12, 500]), ("sparse", {"index_topk": 12})):
        setattr(model.config, name, value)
        assert length_rules(model, 12) == []
        assert length_rules(model, 13) == [LengthRule("top-k", 12)]
        assert list(LengthRule("top-k", 12).cuts(15)) == [13, 14, 15]
        delattr(model.config, name)
    for name, value in (("index_topk_freq", 4), ("num_experts_per_tok", 2), ("index_topk", None), ("index_topk", True)):
        setattr(model.config, name, value)
        assert keys_kept(model) is None
        delattr(model.config, name)


@pytest.mark.filterwarnings("ignore::wmdp_fast.exceptions.WmdpFastWarning")
def test_unlearning_refuses_documents_that_would_change_each_other() -> None:
    def run(lengths: list[int]) -> None:
        rng = np.random.default_rng(0)
        forget, retain = (
            unlearning_runs.corpus([rng.integers(3, 100, length).tolist() for length in lengths], kind)
            for kind in ("forget", "retain")
        )
        model = unlearning_runs.model("llama")
        model.config.index_topk = 12
        config = RMUConfig(
            layer_id=2, update_layer_ids=(1, 2), steering_coeff=2.0, batch_size=2, max_steps=2, mode="masked"
        )
        unlearn(model, forget=forget, retain=retain, config=config, progress=False)

    run([9, 12, 15, 15])
    with pytest.raises(ModelError, match=r"of more than 12 tokens changes the choice of keys \(top-k\) of all in its"):
        run([9, 12, 15, 14])
