"""Looking up tokens in next-token distributions: the kernel in Rust against torch's log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmdp_fast._rust import token_logprobs
from wmdp_fast.models.scores import look_up


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
    # In 16 bits many tokens are as probable, of which the first one counts.
    logprobs = torch.log_softmax(logits if mode == "model" else logits.float(), dim=-1)
    found, greedy = look_up(logits, readouts, tokens, mode)
    torch.testing.assert_close(found, logprobs[readouts, tokens].float(), atol=2e-6, rtol=2e-6)
    assert greedy.tolist() == (logprobs.argmax(-1)[readouts] == tokens).float().tolist()


def test_what_is_not_a_number_is_not_lost() -> None:
    logits = torch.zeros(2, 100)
    logits[0, 50] = torch.nan
    found, greedy = look_up(logits, torch.tensor([0, 1]), torch.tensor([3, 0]), "float32")
    assert found.isnan().tolist() == [True, False]
    assert greedy.tolist() == [0, 1]


def test_a_row_or_token_that_is_not_there_is_an_error() -> None:
    logits = np.zeros((2, 3), dtype=np.float32)
    for row, token in [(2, 0), (0, 3)]:
        with pytest.raises(ValueError, match="not among 2 rows of 3 logits"):
            token_logprobs(logits, np.array([row]), np.array([token]))
    with pytest.raises(ValueError, match="must not be negative"):
        token_logprobs(logits, np.array([0]), np.array([-1]))
    with pytest.raises(ValueError, match="as many readouts as tokens"):
        token_logprobs(logits, np.array([0]), np.array([0, 1]))
