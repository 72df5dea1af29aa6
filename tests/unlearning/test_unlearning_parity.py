"""The lean step against the plain original: the same bits, for every architecture and every choice of parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SAME_CORPORA, SHORT_CORPORA
from tests.support.plain_rmu import assert_same, both
from tests.support.thorough import cases, every_other


@pytest.mark.parametrize(
    ("family", "topics", "dtype"), every_other(("llama", "mixtral"), (1, 2), (torch.float32, torch.bfloat16))
)
def test_losses_and_weights_are_bit_identical(tmp_path, family, topics, dtype):
    folder = runs.saved_model(tmp_path, family, dtype)
    record, ours = both(folder, topics=topics)
    assert ours.steps == 12
    assert_same(record, ours, folder)


@pytest.mark.parametrize("family", [family for family in runs.FAMILIES if family not in ("llama", "mixtral")])
def test_every_architecture_is_bit_identical(tmp_path, family):
    folder = runs.saved_model(tmp_path, family)
    assert_same(*both(folder, topics=2, steps=6), folder)


@pytest.mark.parametrize(
    ("family", "parameters"),
    every_other(("llama", "gemma2"), ("self_attn.o_proj", "mlp", "self_attn", "layernorm", r"q_proj|up_proj")),
)
def test_every_choice_of_parameters_is_bit_identical(tmp_path, family, parameters):
    folder = runs.saved_model(tmp_path, family)
    assert_same(*both(folder, topics=1, steps=5, parameters=parameters), folder)


@pytest.mark.parametrize(("layer_id", "update"), [(0, (0,)), (3, (1, 3)), (3, (0, 2)), (2, (2,))])
def test_every_choice_of_layers_is_bit_identical(tmp_path, layer_id, update):
    folder = runs.saved_model(tmp_path, "llama")
    assert_same(*both(folder, topics=2, steps=5, layer_id=layer_id, update=update), folder)


@SAME_CORPORA
@SHORT_CORPORA
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=4, max_size=8), min_size=3, max_size=3),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
def test_any_documents_are_bit_identical(tmp_path_factory, lengths, batch_size, seed):
    folder = runs.saved_model(tmp_path_factory.mktemp("model"), "llama")
    made = [[[3 + (seed + i * j) % 90 for i in range(n)] for j, n in enumerate(corpus)] for corpus in lengths]
    record, ours = both(folder, topics=2, steps=3, forget=made[:2], retain=made[2], batch_size=batch_size, seed=seed)
    assert len(record.forget_losses) == ours.steps
    assert_same(record, ours, folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("dtype", "topics"),
    [
        ("float32", 1),
        pytest.param(
            "bfloat16",
            2,
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU emulates bfloat16, which takes long"
            ),
        ),
    ],
)
def test_a_real_model_is_bit_identical(smollm2_dir, tmp_path, dtype, topics):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    # Above the steered layer the original only runs what it has no use for.
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=dtype, num_hidden_layers=cases(9, 30))
    model.save_pretrained(folder)
    short = [runs.documents(seed, longest=12) for seed in range(3)]
    record, ours = both(
        folder, topics=topics, layer_id=7, update=(5, 6, 7), lr=5e-5, forget=short[:topics], retain=short[2]
    )
    assert_same(record, ours, folder)


def test_long_documents_beside_short_ones_as_in_the_original(tmp_path):
    """`longrope` takes its long factors for a whole batch if one document is beyond the trained length."""
    folder = tmp_path / "model"
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.0, 1.0, 1.0],
        "long_factor": [3.0, 5.0, 7.0, 9.0],
        "original_max_position_embeddings": 15,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "phi3", **runs._SIZES, initializer_range=0.2, rope_parameters=rope, original_max_position_embeddings=15
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for topics in (1, 2):
        record, ours = both(folder, topics=topics)
        assert_same(record, ours, folder)
