"""Attention over a packed trie is dense attention, and a model that uses it is itself over one sequence at a time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from tests.reference import trie as reference
from tests.support.tries import VOCABULARY, layout_of, tries
from wmdp_fast import _rust
from wmdp_fast.models.attention.cpu import attend_on_cpu
from wmdp_fast.models.attention.layout import Layout
from wmdp_fast.models.attention.packed import (
    NotPackableError,
    PackedMask,
    PrefixKVCache,
    attend,
    packed_attention,
    packed_batch,
)
from wmdp_fast.models.attention.requirements import take_eager_where_needed

budgets = st.sampled_from([3, 7, 16, 1000])

# Blocks of the kernel in Rust have 64 keys: what is long spans several of them, and leaves some of them out.
some_tries = st.one_of(tries(), tries(longest=150))


@settings(max_examples=150, deadline=None)
@given(
    some_tries,
    budgets,
    st.sampled_from([(4, 4), (4, 2), (3, 1), (8, 1)]),
    st.sampled_from([None, 1, 2, 5, 70]),
    st.sampled_from([None, 3.0]),
    st.booleans(),
    st.sampled_from([(8, 8), (8, 6), (40, 72), (80, 33)]),
)
def test_attention_over_a_trie_is_dense_attention(rows, budget, heads, window, softcap, with_sinks, sizes) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    sinks = torch.randn(heads[0], generator=generator) if with_sinks else None
    scale = sizes[0] ** -0.5
    cache = PrefixKVCache()
    keys, values = {}, {}  # by the tokens up to and with the one whose key it is
    for batch in reference.pack(rows, budget, 1000):
        layout = layout_of(batch)
        tokens = len(batch.input_ids)
        query = torch.randn(heads[0], tokens, sizes[0], generator=generator)
        key = torch.randn(heads[1], tokens, sizes[0], generator=generator)
        value = torch.randn(heads[1], tokens, sizes[1], generator=generator)
        cache.begin()
        mask = PackedMask(layout, cache, window)
        out = attend(query, key, value, mask, scale=scale, softcap=softcap, sinks=sinks)
        kept_before = (keys.get("k", key[:, :0]), values.get("v", value[:, :0]))
        all_keys, all_values = torch.cat([kept_before[0], key], 1), torch.cat([kept_before[1], value], 1)
        seen = reference.visible(batch.segments, batch.num_carried, window)
        expected = reference.dense_attention(query, all_keys, all_values, seen, scale, softcap, sinks)
        torch.testing.assert_close(out, expected, atol=4e-6, rtol=2e-5)
        cache.commit()
        kept = [i for start, end in batch.keep for i in range(start, end)]
        keys["k"], values["v"] = all_keys[:, kept], all_values[:, kept]


@settings(max_examples=150, deadline=None)
@given(
    some_tries,
    st.sampled_from([(4, 4), (4, 2), (3, 1), (8, 1)]),
    st.sampled_from([None, 1, 2, 5, 70]),
    st.sampled_from([None, 3.0]),
    st.booleans(),
    st.sampled_from([(8, 8), (8, 6), (40, 72), (80, 33)]),
)
def test_its_gradient_is_that_of_dense_attention(rows, heads, window, softcap, with_sinks, sizes) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    (batch,) = reference.pack(rows, 10_000, 10_000)
    shapes = [(heads[0], len(batch.input_ids), sizes[0])]
    shapes += [(heads[1], len(batch.input_ids), size) for size in sizes]
    given_ = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    if with_sinks:
        given_.append(torch.randn(heads[0], generator=generator).requires_grad_())
    sinks = given_[3] if with_sinks else None
    options = {"scale": sizes[0] ** -0.5, "softcap": softcap, "sinks": sinks}
    out = attend(*given_[:3], PackedMask(layout_of(batch), None, window), **options)
    seen = reference.visible(batch.segments, batch.num_carried, window)
    expected = reference.dense_attention(*given_[:3], seen, options["scale"], softcap, sinks)
    weights = torch.randn(out.shape, generator=generator)
    found = torch.autograd.grad((out * weights).sum(), given_)
    for gradient, other in zip(found, torch.autograd.grad((expected * weights).sum(), given_), strict=True):
        torch.testing.assert_close(gradient, other, atol=2e-5 * max(1.0, float(other.abs().max())), rtol=2e-5)


def test_there_is_no_gradient_through_what_was_carried_over() -> None:
    query = torch.randn(1, 3, 4).requires_grad_()
    segments = np.array([[0, 2, 5, 0], [2, 5, 5, 2]])
    keys = [(torch.randn(1, tokens, 4), torch.randn(1, tokens, 4)) for tokens in (2, 3)]
    with pytest.raises(ValueError, match="carried over has no gradient"):
        attend_on_cpu(query, keys, segments, scale=1.0)


def test_a_device_without_a_kernel_is_named() -> None:
    mask = PackedMask(Layout.of_documents([3]), None)
    query, key, value = (torch.empty(1, 3, 4, device="meta") for _ in range(3))
    with pytest.raises(NotPackableError, match="no packed attention for devices of the kind meta"):
        attend(query, key, value, mask, scale=1.0)


MANY_THREADS = """
import sys
import numpy as np
from wmdp_fast import _rust
random = np.random.default_rng(0)
query, key, value = (random.normal(size=(heads, 700, 16)).astype(np.float32) for heads in (6, 2, 2))
segments = np.array([[0, 300, 700, 0], [300, 500, 500, 300], [500, 700, 700, 300]])
outs = np.full((4, 700, 6, 16), np.nan, dtype=np.float32)
sums = np.empty((700, 6), dtype=np.float32)
for out, threads in zip(outs, (1, 2, 3, 1000)):
    _rust.packed_attention(query, [(key, value)], segments, out, sums, scale=0.2, threads=threads)
assert all(np.array_equal(outs[0], out) for out in outs)
assert np.isfinite(outs[0]).all()
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("prologue", ["", "import torch"])
def test_any_number_of_threads_gives_the_same_bits_with_torchs_threads_and_without(prologue) -> None:
    # Torch brings the threads that the kernel runs on; another process, as here it is loaded already.
    command = [sys.executable, "-c", prologue + MANY_THREADS]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"{bool(prologue)}\n"), ran.stderr


def test_what_does_not_fit_together_is_an_error_of_the_kernel() -> None:
    array, out, sums = (np.zeros(shape, dtype=np.float32) for shape in ((2, 3, 4), (3, 2, 4), (3, 2)))

    def attend_to(segment: list[int], out: np.ndarray) -> None:
        _rust.packed_attention(array, [(array, array)], np.array([segment]), out, sums, scale=1.0)

    with pytest.raises(ValueError, match="segments are not all its keys"):
        attend_to([0, 2, 2, 0], out)
    with pytest.raises(ValueError, match="none of them negative"):
        attend_to([0, 3, 3, -1], out)
    with pytest.raises(ValueError, match="outputs of an attention call do not fit"):
        attend_to([0, 3, 3, 0], out[1:])
    with pytest.raises(ValueError, match="must be contiguous"):
        attend_to([0, 3, 3, 0], out.transpose(1, 0, 2))


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "mixtral": EXPERTS,
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "gemma2": {"sliding_window": 5, "head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 5, "head_dim": 8, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 5},
    "olmo2": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0, "residual_multiplier": 0.7},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {
        **EXPERTS,
        "head_dim": 8,
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def tiny(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES.get(family, {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    take_eager_where_needed(model)  # as `load_model` does: before transformers 5.21 Gemma 2 has no soft cap by default
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than a fresh model's weights: attention must matter for its faults to show.
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.5)
    return model


@pytest.fixture(scope="module")
def model_of():
    made = {}
    return lambda family: made.setdefault(family, tiny(family))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_model_over_a_trie_is_the_model_over_each_row(model_of, family, data) -> None:
    model = model_of(family)
    rows = data.draw(tries())
    budget = data.draw(budgets)
    logits: dict[int, torch.Tensor] = {}
    cache = PrefixKVCache()
    with torch.inference_mode(), packed_attention(model):
        for batch in reference.pack(rows, budget, 1000):
            with packed_batch(layout_of(batch), cache):
                out = model(
                    input_ids=torch.tensor([batch.input_ids]),
                    position_ids=torch.tensor([batch.position_ids]),
                    attention_mask=torch.ones(1, len(batch.input_ids), dtype=torch.bool),
                    use_cache=False,
                    logits_to_keep=torch.tensor(batch.readouts, dtype=torch.long),
                ).logits[0]
            logits |= {t: out[r] for t, r in zip(batch.targets, batch.target_readouts, strict=True)}
            assert cache.calls == model.config.num_hidden_layers
    assert set(logits) == set(range(len(rows)))
    with torch.inference_mode():
        for i, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[i].log_softmax(-1), alone.log_softmax(-1), atol=1e-5, rtol=1e-5)
