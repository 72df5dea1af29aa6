"""What rounding explains of a difference in 16 bits, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.support import tiny_models
from wmdp_fast import Requests
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.models.attention import packed
from wmdp_fast.models.attention.layout import Layout
from wmdp_fast.models.load import wrap_model
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.rounding import difference_beyond_rounding, is_coarse, rounded_otherwise, with_probes
from wmdp_fast.scoring.trie import score

if TYPE_CHECKING:
    from collections.abc import Callable

    from wmdp_fast.models.load import LoadedModel

COARSE = (torch.bfloat16, torch.float16)


def texts() -> Requests:
    """Questions whose choices have several tokens each, from where on they share none."""
    tokens = np.random.default_rng(0).integers(1, 600, (6, 40))
    contexts = [one[:30].tolist() for one in tokens]
    return Requests.from_tokens(contexts, [[one[30:35].tolist(), one[35:].tolist()] for one in tokens], max_length=64)


def test_types_of_16_bits_are_coarse() -> None:
    assert [is_coarse(dtype) for dtype in (*COARSE, torch.float32, torch.float64)] == [True, True, False, False]


def test_probes_are_looked_up_where_choices_are_and_nothing_more_is_run() -> None:
    plain = texts()
    probed = with_probes(plain)
    assert (probed.num_rows, probed.num_tokens) == (plain.num_rows, plain.num_tokens)
    known = {token for one in range(6) for token in plain.context(one).tolist()}
    known |= {token for one in range(12) for token in plain.continuation(one).tolist()}
    each = probed.num_choices // plain.num_choices
    assert each == 17
    for choice in range(plain.num_choices):
        own = plain.continuation(choice).tolist()
        found = [probed.continuation(each * choice + place).tolist() for place in range(each)]
        assert found[0] == own
        assert all(one[:-1] == own[:-1] and one[-1] in known for one in found)
    few = with_probes(Requests.from_tokens([[5, 6]], [[[5]], [[7]]][:1], max_length=8))
    assert [few.continuation(choice).tolist() for choice in range(few.num_choices)] == [[5], [5], [6]]


PROBED = with_probes(texts())
EXPECTED = np.random.default_rng(1).normal(-9, 2, PROBED.num_choices)
OFF = np.random.default_rng(2).normal(0, 1, PROBED.num_choices)


def judged(found: np.ndarray, moves: float | list[float], expected: np.ndarray = EXPECTED) -> tuple[str | None, int]:
    """What is said of scores in bfloat16 of a model that a rounding more moves by so much; and how often it was run."""
    runs: list[Requests] = []

    def again(requests: Requests, seed: int) -> np.ndarray:
        assert seed == len(runs)
        runs.append(requests)
        scale = moves if isinstance(moves, float) else moves[seed]
        return (expected + scale * np.roll(OFF, 5))[: requests.num_choices]

    return difference_beyond_rounding(PROBED, expected, found, torch.bfloat16, again), len(runs)


def test_a_difference_is_held_against_what_a_rounding_more_makes() -> None:
    assert judged(EXPECTED, 1.0) == (None, 0)
    assert judged(EXPECTED + 0.05 * OFF, 1.0) == (None, 0)  # some of the type's last digits
    assert judged(EXPECTED + 0.2 * OFF, 0.1) == (None, 1)
    said, runs = judged(EXPECTED + 0.5 * OFF, 0.1)
    assert said is not None
    assert "log-likelihoods by trie were 0.48 from" in said
    assert "rounding in bfloat16 explains 0.3" in said
    assert runs == 4


def test_a_model_that_now_and_then_takes_other_experts_is_asked_several_times() -> None:
    assert judged(EXPECTED + 0.5 * OFF, [0.1, 0.1, 0.4, 0.1]) == (None, 3)
    assert judged(EXPECTED + 0.5 * OFF, [0.1, 0.1, 0.1, 0.4]) == (None, 4)


def test_tokens_that_are_impossible_both_ways_do_not_count() -> None:
    expected = EXPECTED.copy()
    expected[::3] = -np.inf
    assert judged(expected, 0.1, expected) == (None, 0)
    with np.errstate(invalid="ignore"):
        assert judged(expected + 0.2 * OFF, 0.1, expected) == (None, 1)
    assert "impossible on padded rows or by trie" in str(judged(EXPECTED, 0.1, expected)[0])
    nothing = np.full(PROBED.num_choices, -np.inf)
    assert judged(nothing, 0.1, nothing) == (None, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "deepseek_v3"])
def test_a_rounding_more_is_one_of_the_last_digit_and_leaves_nothing(family: str) -> None:
    loaded = wrap_model(tiny_models.build(family, torch.bfloat16), tiny_models.tokenizer())
    call: Any = loaded.model
    plain = score_padded(loaded, texts()).loglikelihood

    def moved(seed: int) -> np.ndarray:
        with rounded_otherwise(loaded.model, seed):
            return score_padded(loaded, texts()).loglikelihood

    tokens = torch.tensor([[5, 6, 7]])
    embedding = call.get_input_embeddings()
    before = embedding(tokens).float()
    with rounded_otherwise(call, 0):
        after = embedding(tokens).float()
    assert 0 < ((after - before) / before).abs().max() <= torch.finfo(torch.bfloat16).eps
    first = moved(0)
    np.testing.assert_array_equal(first, moved(0))
    assert not np.array_equal(first, moved(1))
    assert 0 < np.abs(first - plain).max() < 3
    np.testing.assert_array_equal(score_padded(loaded, texts()).loglikelihood, plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in call.modules())


def sees_the_next_choice(attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Attention in which a choice's tokens are seen by those of the choice behind it."""

    def wrong(query: Any, key: Any, value: Any, mask: packed.PackedMask, **options: Any) -> torch.Tensor:
        segments = mask.layout.segments.copy()
        for one, following in pairwise(segments):
            if one[1] == one[2] and following[3] == one[3] > 0:
                one[2] = following[1]
        layout = Layout(mask.layout.positions, mask.layout.num_carried, segments, mask.layout.keep)
        return attend(query, key, value, replace(mask, layout=layout), **options)

    return wrong


def other_scale(attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Attention whose scores are a fifth too large."""

    def wrong(*arguments: Any, scale: float, **options: Any) -> torch.Tensor:
        return attend(*arguments, scale=1.2 * scale, **options)

    return wrong


def of(family: str, dtype: torch.dtype) -> LoadedModel:
    return wrap_model(tiny_models.build(family, dtype), tiny_models.tokenizer(), name=family)


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
def test_what_is_right_is_not_refused(family: str, dtype: torch.dtype) -> None:
    assert score(of(family, dtype), texts(), engine="trie").engine == "trie"


@pytest.mark.parametrize("wrong", [sees_the_next_choice, other_scale])
@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_a_small_systematic_error_is_found(
    family: str, dtype: torch.dtype, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "attend", wrong(packed.attend))
    with pytest.warns(WmdpFastWarning, match=r"log-likelihoods by trie were .* where rounding in \w+ explains"):
        found = score(of(family, dtype), texts())
    assert found.engine == "padded"
