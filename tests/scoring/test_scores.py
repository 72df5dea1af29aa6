"""Looking up tokens in next-token distributions: the kernel in Rust against torch's log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny_models
from wmdp_fast._rust import TokenLogprobs
from wmdp_fast.scoring import lm_head
from wmdp_fast.scoring.lm_head import ChunkedLMHead
from wmdp_fast.scoring.scores import look_up


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 299)), max_size=20),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([0.1, 3.0, 30.0]),
    st.sampled_from(["float32", "model"]),
)
def test_tokens_have_their_probability_in_the_softmax(rows, vocabulary, targets, dtype, spread, mode) -> None:
    logits = (torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows)) * spread).to(dtype)
    readouts, tokens = (torch.tensor([t[i] for t in targets], dtype=torch.long) for i in (0, 1))
    readouts, tokens = readouts % rows, tokens % vocabulary
    # In 16 bits many tokens are as probable, of which the first one counts. Rounding makes others as probable as well.
    logprobs = torch.log_softmax(logits if mode == "model" else logits.float(), dim=-1)
    found, greedy = look_up(logits, readouts, tokens, mode)
    torch.testing.assert_close(found, logprobs[readouts, tokens].float(), atol=2e-6, rtol=2e-6)
    best = (logprobs if mode == "model" else logits).argmax(-1)
    assert greedy.tolist() == (best[readouts] == tokens).float().tolist()


def test_what_is_not_a_number_is_not_lost() -> None:
    logits = torch.zeros(2, 100)
    logits[0, 50] = torch.nan
    found, greedy = look_up(logits, torch.tensor([0, 1]), torch.tensor([3, 0]), "float32")
    assert found.isnan().tolist() == [True, False]
    assert greedy.tolist() == [0, 1]


def test_a_row_or_token_that_is_not_there_is_an_error() -> None:
    logits = torch.zeros(2, 3)
    for row, token, what in [(2, 0, "not in one of 2 rows"), (0, 3, "not among 3 logits"), (0, -1, "not be negative")]:
        with pytest.raises(ValueError, match=what):
            look_up(logits, torch.tensor([row]), torch.tensor([token]), "float32")
    with pytest.raises(ValueError, match="as many readouts as tokens"):
        TokenLogprobs(np.array([0]), np.array([0, 1]), 2)


def test_a_projection_is_read_a_part_of_the_vocabulary_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head, "LM_HEAD_PART", 7)
    model = tiny_models.loaded("llama").model
    found = ChunkedLMHead.of(model, "float32")
    assert found is not None
    hidden = torch.randn(5, found.head.in_features, generator=torch.Generator().manual_seed(0))
    readouts, tokens = torch.tensor([0, 4, 4, 2]), torch.tensor([1, 0, found.head.out_features - 1, 8])
    logits = (hidden @ found.head.weight.T).detach()
    torch.testing.assert_close(
        found.look_up(hidden, readouts, tokens), look_up(logits, readouts, tokens, "float32"), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
def test_a_model_that_does_more_than_projecting_is_read_whole(family: str) -> None:
    model = tiny_models.loaded(family).model
    model.config.logits_scaling = 2.0  # Granite's
    does_more = {"gemma2", "granite"}
    assert (ChunkedLMHead.of(model, "float32") is None) == (family in does_more)
    assert ChunkedLMHead.of(model, "model") is None
    assert not any("forward" in vars(module) for module in model.modules())
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: None)
    assert ChunkedLMHead.of(model, "float32") is None
    hook.remove()
