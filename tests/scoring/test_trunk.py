"""What enters a layer, passed on between models: to the bit what all layers give, where the lower ones are the same."""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support import tiny_models
from tests.support.tries import STEM, requests, some_requests
from wmdp_fast import Requests
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.models import load
from wmdp_fast.models.fused.last_layer import MOST_READ
from wmdp_fast.scoring import trie as trie_scoring
from wmdp_fast.scoring import trie_batches
from wmdp_fast.scoring import trunk as trunk_scoring
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score, score_trie
from wmdp_fast.scoring.trunk import SharedTrunk, least_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wmdp_fast.models.load import LoadedModel


@pytest.fixture(autouse=True, scope="module")
def _worth_it() -> Iterator[None]:
    """Tiny models have two layers, and few tokens do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trunk_scoring, "least_layers", lambda _: 1)
        patch.setattr(trunk_scoring, "_LEAST_TOKENS", 0)
        yield


def layers_of(loaded: LoadedModel) -> torch.nn.ModuleList:
    return trunk_scoring._decoder(loaded.model).layers


@functools.cache
def with_other_top(family: str) -> LoadedModel:
    """The tiny model of a family with other weights in its upper layer, in memory of its own."""
    loaded = tiny_models.loaded(family)
    other = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        for parameter in layers_of(other)[1].parameters():
            parameter.mul_(1.25)
    return other


@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
@settings(max_examples=5, deadline=None)
@given(requests(), st.sampled_from([1, 5, 20, 2048]))
def test_scores_from_what_another_model_has_left_are_those_of_all_layers(
    family: str, drawn: Requests, budget: int
) -> None:
    one, other = tiny_models.loaded(family), with_other_top(family)
    expected = [score_trie(loaded, drawn, token_budget=budget) for loaded in (one, other)]
    trunk = SharedTrunk(1)
    for loaded, states, alone in (
        (one, "kept", expected[0]),
        (other, "taken", expected[1]),
        (one, "taken", expected[0]),
    ):
        found = score(loaded, drawn, engine="trie", token_budget=budget, trunk=trunk)
        assert found.shared_trunk == {"layers": 1, "states": states, "bytes": trunk._kept.nbytes}
        np.testing.assert_array_equal(found.loglikelihood, alone.loglikelihood)
        np.testing.assert_array_equal(found.is_greedy, alone.is_greedy)
        assert found.tokens_run == alone.tokens_run
    assert trunk._kept.nbytes >= 32 * 4 * alone.tokens_useful


def scored(trunk: SharedTrunk, loaded: LoadedModel, drawn: Requests | None = None) -> dict[str, object]:
    """What results say of the trunk, once the scores are seen to be those without it."""
    drawn = some_requests() if drawn is None else drawn
    found = score(loaded, drawn, engine="trie", trunk=trunk)
    np.testing.assert_array_equal(found.loglikelihood, score_trie(loaded, drawn).loglikelihood)
    assert found.shared_trunk is not None
    return found.shared_trunk


@pytest.mark.parametrize("what", ["embedding", "layer", "norm", "base frequency", "epsilon", "buffer"])
def test_whatever_differs_below_is_seen(what: str) -> None:
    one = tiny_models.loaded("llama")
    other = replace(one, model=copy.deepcopy(one.model))
    model = other.model
    with torch.no_grad():
        if what == "embedding":
            model.get_input_embeddings().weight[-1, -1] += 0.5
        elif what == "layer":
            layers_of(other)[0].mlp.down_proj.weight[0, 0] += 1e-3
        elif what == "norm":
            # It belongs to no layer, so that nobody knows where it counts.
            model.model.norm.weight[0] += 0.5
        elif what == "base frequency":
            model.config.rope_parameters["rope_theta"] = 5e3
        elif what == "epsilon":
            layers_of(other)[0].input_layernorm.variance_epsilon = 1e-3
        else:
            model.model.rotary_emb.inv_freq.mul_(1.1)
    trunk = SharedTrunk(1)
    assert scored(trunk, one)["states"] == "kept"
    assert scored(trunk, other)["states"] == "kept"
    assert scored(trunk, other)["states"] == "taken"


def test_a_weight_that_changes_between_two_runs_of_a_model_is_seen() -> None:
    loaded, trunk = replace(tiny_models.loaded("llama"), model=tiny_models.build("llama")), SharedTrunk(1)
    assert [scored(trunk, loaded)["states"] for _ in range(2)] == ["kept", "taken"]
    with torch.no_grad():
        layers_of(loaded)[0].mlp.up_proj.weight[0, 0] += 1
    assert scored(trunk, loaded)["states"] == "kept"


def test_other_questions_and_another_budget_are_another_run() -> None:
    loaded, trunk = tiny_models.loaded("llama"), SharedTrunk(1)
    assert scored(trunk, loaded)["states"] == "kept"
    fewer = Requests.from_tokens([STEM], [[[1], [2]]], max_length=64)
    assert scored(trunk, loaded, fewer)["states"] == "kept"
    assert scored(trunk, loaded, fewer)["states"] == "taken"
    found = score(loaded, fewer, engine="trie", token_budget=3, trunk=trunk).shared_trunk
    assert found is not None
    assert found["states"] == "kept"


def test_a_hook_below_is_no_part_of_what_is_compared() -> None:
    loaded, trunk = replace(tiny_models.loaded("llama"), model=tiny_models.build("llama")), SharedTrunk(1)
    assert scored(trunk, loaded)["states"] == "kept"
    handle = layers_of(loaded)[0].register_forward_hook(lambda _module, _inputs, output: output)
    assert "hooks" in str(scored(trunk, loaded)["why_not"])
    handle.remove()
    assert scored(trunk, loaded)["states"] == "taken"


class _Remembers(torch.nn.Module):
    """A layer that writes down what it makes of a batch."""

    def __init__(self, layer: torch.nn.Module, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.seen = layer, seen

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        self.seen.append(self.layer(hidden_states, *args, **kwargs))
        return self.seen[-1]


class _LooksBelow(_Remembers):
    """A layer that adds what another one has written down."""

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        return self.layer(hidden_states, *args, **kwargs) + 0.1 * self.seen[-1]


def test_a_model_whose_upper_layers_look_below_runs_all_of_them() -> None:
    model, seen = tiny_models.build("llama"), []
    layers = model.model.layers
    layers[0], layers[1] = _Remembers(layers[0], seen), _LooksBelow(layers[1], seen)
    loaded, trunk = load.wrap_model(model, tiny_models.tokenizer()), SharedTrunk(1)
    for _ in range(2):
        assert "tried on excerpts" in str(scored(trunk, loaded)["why_not"])


def test_a_model_that_changes_the_residual_stream_between_layers_runs_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_models.build("llama")
    own = model.model.layers[1].forward
    monkeypatch.setattr(model.model.layers[1], "forward", lambda hidden_states, **kwargs: own(hidden_states, **kwargs))
    loaded = load.wrap_model(model, tiny_models.tokenizer())
    assert scored(SharedTrunk(1), loaded)["states"] == "kept"

    def called(self: torch.nn.Module, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        return torch.nn.Module.__call__(self, hidden_states * 1, *args, **kwargs)

    monkeypatch.setattr(type(model.model.layers[1]), "__call__", called)
    assert "why_not" in scored(SharedTrunk(1), loaded)


def test_keys_and_values_shared_across_layers_are_needed_above() -> None:
    config = AutoConfig.for_model(
        "gemma3n_text", vocab_size=64, vocab_size_per_layer_input=64, hidden_size=32, hidden_size_per_layer_input=8,
        intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=64,
        laurel_rank=4, activation_sparsity_pattern=[0.0] * 4, altup_num_inputs=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    loaded = load.wrap_model(AutoModelForCausalLM.from_config(config).eval(), tiny_models.tokenizer())
    drawn = some_requests()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WmdpFastWarning)
        alone, trunk = score(loaded, drawn), SharedTrunk(2)
        for _ in range(2):
            found = score(loaded, drawn, trunk=trunk)
            np.testing.assert_array_equal(found.loglikelihood, alone.loglikelihood)
            assert found.shared_trunk is not None
            assert found.engine == "padded" or "tried on excerpts" in found.shared_trunk["why_not"]


def test_a_run_that_goes_on_keeps_nothing_and_may_take() -> None:
    loaded, drawn, trunk = tiny_models.loaded("llama"), some_requests(), SharedTrunk(1)
    whole = score_trie(loaded, drawn, token_budget=8)

    def halfway() -> PartialScores:
        partial = PartialScores.empty(drawn.num_choices)
        partial.enter(np.arange(9), whole.loglikelihood[:9], whole.is_greedy[:9])
        return partial

    first = score(loaded, drawn, engine="trie", token_budget=8, partial=halfway(), trunk=trunk)
    assert first.shared_trunk == {"layers": 1, "states": None, "why_not": "parts of the run were finished before"}
    np.testing.assert_allclose(first.loglikelihood, whole.loglikelihood, atol=2e-5)
    for partial in (None, halfway()):
        found = score(loaded, drawn, engine="trie", token_budget=8, partial=partial, trunk=trunk)
        alone = score_trie(loaded, drawn, token_budget=8, partial=None if partial is None else halfway())
        np.testing.assert_array_equal(found.loglikelihood, alone.loglikelihood)


@pytest.mark.parametrize("when", ["keeping", "taking"])
def test_out_of_memory_goes_on_with_all_layers(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = replace(tiny_models.loaded("llama"), model=tiny_models.build("llama"))
    drawn, trunk = some_requests(), SharedTrunk(1)
    expected = score_trie(loaded, drawn)
    if when == "taking":
        assert scored(trunk, loaded)["states"] == "kept"
    run = trie_batches.Pipeline._pass
    monkeypatch.setattr(trie_scoring, "proven", lambda *_: (None, MOST_READ))
    trunk._why_unproven = None

    def limited(self, layout, batch, cache, previous, hidden_only=False):
        if batch.input_ids.size > 25:
            raise torch.OutOfMemoryError("made up")
        return run(self, layout, batch, cache, previous, hidden_only)

    monkeypatch.setattr(trie_batches.Pipeline, "_pass", limited)
    with pytest.warns(WmdpFastWarning, match="out of memory on cpu"):
        found = score(loaded, drawn, engine="trie", trunk=trunk)
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=2e-5)


def test_states_that_would_not_fit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Full:
        available_memory = staticmethod(lambda: 20_000)

    monkeypatch.setattr(trunk_scoring, "_rust", _Full)
    assert "too much for the memory that is free" in str(scored(SharedTrunk(1), tiny_models.loaded("llama"))["why_not"])


def test_what_would_save_too_little_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_models.loaded("llama")
    with monkeypatch.context() as patch:
        patch.setattr(trunk_scoring, "_LEAST_TOKENS", 1000)
        assert "tokens are too few" in str(scored(SharedTrunk(1), loaded)["why_not"])
    monkeypatch.setattr(trunk_scoring, "least_layers", least_layers)
    assert "1 of 2 layers would save too little" in str(scored(SharedTrunk(1), loaded)["why_not"])
    assert [least_layers(count) for count in (4, 16, 17, 30, 96)] == [2, 2, 3, 4, 12]


def test_padded_rows_have_no_part_in_it() -> None:
    found = score(tiny_models.loaded("llama"), some_requests(), engine="padded", trunk=SharedTrunk(1))
    assert found.shared_trunk == {"layers": 1, "states": None, "why_not": "the run is not by trie"}
