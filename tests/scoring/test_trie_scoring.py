"""Scoring by trie: equal to scoring on padded rows, also where memory runs out; else refused, with the reason."""

from __future__ import annotations

import functools
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support import tiny_models
from tests.support.thorough import cases
from tests.support.tries import requests, some_requests
from wmdp_fast import Requests
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models.attention import packable, packed
from wmdp_fast.models.attention.packable import why_not
from wmdp_fast.models.attention.packed import NotPackableError
from wmdp_fast.models.fused.compiled import compiled_parts
from wmdp_fast.models.fused.last_layer import MOST_READ
from wmdp_fast.models.load import load_model, wrap_model
from wmdp_fast.scoring import trie as trie_scoring
from wmdp_fast.scoring import trie_run
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score, score_trie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
@settings(max_examples=5, deadline=None)
@given(requests(), st.sampled_from([1, 5, 20, 2048]))
def test_scores_are_those_on_padded_rows(family: str, drawn: Requests, budget: int) -> None:
    loaded = tiny_models.loaded(family)
    expected = score_padded(loaded, drawn)
    found = score_trie(loaded, drawn, token_budget=budget)
    # Logits are as large as log-likelihoods, whose last digit is at 4e-6 for -50; hence the relative part.
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, rtol=2e-6, atol=1e-5)
    np.testing.assert_array_equal(found.is_greedy, expected.is_greedy)
    assert found.engine == "trie"


def test_nothing_is_run_twice_however_small_the_batches() -> None:
    loaded, drawn = tiny_models.loaded("llama"), some_requests()
    large, small = score_trie(loaded, drawn), score_trie(loaded, drawn, token_budget=4)
    assert small.batches > 4 * large.batches
    assert small.tokens_run == large.tokens_run < score_padded(loaded, drawn).tokens_run / 4
    np.testing.assert_allclose(small.loglikelihood, large.loglikelihood, atol=2e-5)


@pytest.mark.parametrize("mode", ["model", "float32"])
def test_half_precision_is_as_close_as_its_digits_allow(mode: str) -> None:
    loaded, drawn = tiny_models.loaded("llama", torch.bfloat16), some_requests()
    expected, found = score_padded(loaded, drawn, score_mode=mode), score_trie(loaded, drawn, score_mode=mode)
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, rtol=0.05)


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_models.build("llama").train()
    before = model.config._attn_implementation
    score_trie(wrap_model(model, tiny_models.tokenizer()), some_requests())
    assert model.training
    assert model.config._attn_implementation == before
    model(torch.tensor([[1, 2, 3]]))


def test_a_model_inside_packed_attention_cannot_be_called_without_a_batch() -> None:
    model = tiny_models.build("llama")
    with packed.packed_attention(model), pytest.raises(RuntimeError, match="packed_batch"):
        model(torch.tensor([[1, 2, 3]]))


def doge() -> PreTrainedModel:
    """A model whose own attention looks at its mask."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("doge", **{**tiny_models._SIZES, "hidden_size": 32})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    # By which it would be known to pick keys, and not be tried.
    del model.config.keep_window_size
    return model


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 16),
    reason="until 5.14 Doge sees later tokens without a mask, and is refused",
)
def test_a_model_that_looks_at_its_mask_is_scored_on_padded_rows() -> None:
    loaded, drawn = wrap_model(doge(), tiny_models.tokenizer(), name="doge"), some_requests()
    before = loaded.model.config._attn_implementation
    with pytest.warns(WmdpFastWarning, match="tried by trie, it raised AttributeError: 'PackedMask'"):
        found = score(loaded, drawn)
    assert loaded.model.config._attn_implementation == before
    np.testing.assert_array_equal(found.loglikelihood, score_padded(loaded, drawn).loglikelihood)
    with pytest.raises(NotPackableError, match=r"doge cannot be scored by trie: .* it raised AttributeError"):
        score(loaded, drawn, engine="trie")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyError("made up"), None),
        (ZeroDivisionError(), None),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (torch.OutOfMemoryError("made up"), ModelError),
        (MemoryError(), ModelError),
    ],
)
def test_what_a_model_raises_in_the_trial(
    raised: BaseException, expected: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, drawn = wrap_model(tiny_models.build("llama"), tiny_models.tokenizer()), some_requests()

    def forward(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(packed, "attend", forward)
    before = loaded.model.config._attn_implementation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if expected is None:
            reason = score(loaded, drawn).why_not_trie
            assert reason is not None
            assert f"it raised {type(raised).__name__}" in reason
        else:
            with pytest.raises(expected):
                score(loaded, drawn)
    assert loaded.model.config._attn_implementation == before


def test_an_attention_that_its_class_would_not_take_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama")
    own = type(model).set_attn_implementation

    def picky(self: PreTrainedModel, name: str) -> None:
        if name == before:
            raise ValueError(f"{name} is not supported")
        own(self, name)

    before = model.config._attn_implementation
    monkeypatch.setattr(type(model), "set_attn_implementation", picky)
    with packed.packed_attention(model):
        assert model.config._attn_implementation == packed.ATTENTION_NAME
    assert model.config._attn_implementation == before


def test_out_of_memory_halves_the_budget_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, drawn = wrap_model(tiny_models.build("llama"), tiny_models.tokenizer()), some_requests()
    expected = score_trie(loaded, drawn)
    forward, finished = loaded.model.forward, []

    def limited(input_ids, **kwargs):
        if input_ids.shape[1] > 25 or (len(finished) == 2 and input_ids.shape[1] > 9):
            raise torch.OutOfMemoryError("made up")
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(trie_scoring, "proven", lambda *_: (None, MOST_READ))
    monkeypatch.setattr(trie_scoring, "why_not", lambda *_: None)
    monkeypatch.setattr(loaded.model, "forward", limited)
    with pytest.warns(WmdpFastWarning, match="out of memory on cpu with .* tokens: token_budget is now"):
        found = score_trie(loaded, drawn, token_budget=60, progress=lambda done, _: finished.append(done))
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=2e-5)
    assert finished == sorted(finished)
    assert finished[-1] == 8
    assert found.token_budget <= 25

    def never(**_):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(loaded.model, "forward", never)
    with (
        pytest.warns(WmdpFastWarning, match="out of memory"),
        pytest.raises(ModelError, match="out of memory on cpu with a single token"),
    ):
        score_trie(loaded, drawn)


def test_an_interrupted_run_goes_on_where_it_was() -> None:
    loaded, drawn = tiny_models.loaded("llama"), some_requests()
    whole = score_trie(loaded, drawn, token_budget=16)
    partial = PartialScores.empty(drawn.num_choices)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_trie(loaded, drawn, token_budget=16, partial=partial, progress=interrupt)
    kept, run = partial.finished.copy(), partial.tokens_run
    assert 0 < kept.sum() < drawn.num_choices
    resumed = score_trie(loaded, drawn, token_budget=16, partial=partial)
    assert resumed.tokens_run - run < whole.tokens_run
    np.testing.assert_allclose(resumed.loglikelihood, whole.loglikelihood, atol=2e-5)


def test_a_model_that_fails_the_proof_is_scored_on_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, drawn = tiny_models.loaded("llama"), some_requests()
    expected = score_padded(loaded, drawn)
    attend = packed.attend_on_cpu

    def without_what_was_carried_over(query, runs, segments, **options):
        first = int(segments[0, 0] if len(runs) == 1 else runs[0][0].shape[1])
        own = np.maximum(segments[segments[:, 1] > first] - [first, first, first, 0], 0)
        return attend(query, runs[-1:], own, **options)

    monkeypatch.setattr(packed, "attend_on_cpu", without_what_was_carried_over)
    with pytest.warns(WmdpFastWarning, match="padded rows, which is slower: tried on excerpts .* apart"):
        found = score(loaded, drawn)
    assert found.engine == "padded"
    np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)
    with pytest.raises(NotPackableError, match="tried on excerpts"):
        score(loaded, drawn, engine="trie")


def test_a_gpu_without_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama", torch.float32)
    assert why_not(model) is None
    monkeypatch.setattr(model, "parameters", lambda: [SimpleNamespace(is_cuda=True)])
    monkeypatch.setattr(packable, "find_spec", lambda _name: None)
    assert "needs Triton" in why_not(model)


@pytest.mark.parametrize(("family", "reason"), tiny_models.PADDED_FAMILIES.items())
def test_a_family_without_a_trie_is_scored_on_padded_rows_and_says_why(family: str, reason: str) -> None:
    loaded, drawn = tiny_models.loaded(family), some_requests()
    with pytest.warns(WmdpFastWarning, match=reason):
        found = score(loaded, drawn)
    assert (found.engine, found.why_not_trie) == ("padded", reason)
    np.testing.assert_array_equal(found.loglikelihood, score_padded(loaded, drawn).loglikelihood)


def test_the_engine_can_be_chosen() -> None:
    loaded, drawn = tiny_models.loaded("llama"), some_requests()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(loaded, drawn).engine == "trie"
        assert score(loaded, drawn, engine="padded").engine == "padded"


def test_compiled_parts_give_the_same_scores_at_any_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    # Making C++ of the graphs takes minutes on a small machine; what may go wrong here is how they are found.
    monkeypatch.setattr(trie_run, "compiled_parts", functools.partial(compiled_parts, backend="eager"))
    loaded, drawn = wrap_model(tiny_models.build("llama"), tiny_models.tokenizer()), some_requests()
    expected = score_trie(loaded, drawn)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for budget in (9, 14, 2048):
        found = score_trie(loaded, drawn, token_budget=budget, compiled=True)
        np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=2e-5)
    # One graph for a norm and one for a feed-forward block; a single token may get one of its own.
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    assert all(module._compiled_call_impl is None for module in loaded.model.modules())


def test_a_model_with_nothing_to_compile_says_so() -> None:
    with pytest.raises(ModelError, match="has no MLP or RMSNorm to compile"), compiled_parts(torch.nn.Linear(2, 2)):
        pass


def test_what_is_no_number_is_an_error() -> None:
    model = tiny_models.build("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        score_trie(wrap_model(model, tiny_models.tokenizer()), some_requests())


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
ROTARY = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {}, None),
        ("falcon", {}, "does not attend through transformers' AttentionInterface"),
        ("llama4_text", {"num_key_value_heads": 2, "num_local_experts": 2, "head_dim": 8}, "chunked_attention"),
        ("lfm2", {"num_key_value_heads": 2, "full_attn_idxs": [1]}, "conv"),
        ("jamba", {"num_key_value_heads": 2, "num_experts": 2}, "linear_attention|mixes tokens by Conv1d"),
        (
            "llama",
            {"rope_parameters": ROTARY, "max_position_embeddings": 16},
            r"rotary angles \(dynamic\) .* beyond 16",
        ),
        ("llama", {"rope_parameters": ROTARY, "max_position_embeddings": 64}, None),
    ],
)
def test_models_that_cannot_be_packed_are_named_with_the_reason(family: str, options: dict, reason: str | None) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **options))
    found = why_not(model, 40)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        with pytest.raises(NotPackableError, match=reason):
            raise NotPackableError(found)


@pytest.mark.slow
def test_a_real_model_on_real_questions(smollm2_dir, mmlu_dir) -> None:
    import pyarrow.parquet as pq

    loaded = load_model(str(smollm2_dir), dtype="float32", device="cpu")
    table = pq.read_table(mmlu_dir / "astronomy" / "test-00000-of-00001.parquet").slice(0, cases(3, 6)).to_pylist()
    prefix = "The following are multiple choice questions (with answers) about astronomy.\n\n"
    contexts, letters, texts = [], [], []
    for question in table:
        text = prefix + question["question"].strip()
        text += "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", question["choices"], strict=True))
        text += "\nAnswer:"
        contexts.append(loaded.tokenizer(text).input_ids)
        letters.append([loaded.tokenizer(f" {letter}").input_ids for letter in "ABCD"])
        texts.append([loaded.tokenizer(f" {choice}").input_ids for choice in question["choices"]])
    for continuations in (letters, texts):
        drawn = Requests.from_tokens(contexts, continuations, max_length=2048)
        found = score_trie(loaded, drawn, token_budget=256)
        np.testing.assert_allclose(found.loglikelihood, score_padded(loaded, drawn).loglikelihood, atol=1e-4)


@pytest.mark.parametrize("long", [False, True], ids=["letters", "long choices"])
def test_a_last_layer_that_runs_twice_is_computed_of_all_tokens(long: bool) -> None:
    model = tiny_models.build("llama")
    layer: Any = model.model.layers[-1]
    once = layer.forward
    layer.forward = lambda hidden, **kwargs: once(once(hidden, **kwargs), **kwargs)
    # Of long choices nearly all tokens of an excerpt are read, whose context is cut, but not of the run.
    tokens = np.random.default_rng(0).integers(1, 600, (4, 3, 120))
    choices = [[one[:120], other[:120]] if long else [one[:1], other[:1]] for _, one, other in tokens]
    drawn = Requests.from_tokens([list(one[0]) for one in tokens], choices, max_length=256)
    loaded = wrap_model(model, tiny_models.tokenizer())
    expected, found = score_padded(loaded, drawn), score(loaded, drawn)
    assert found.engine == "trie"
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, rtol=2e-6, atol=1e-5)
