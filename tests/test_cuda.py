"""What only a CUDA device can show: its kernels, 16-bit types, and a pipeline in which nobody waits for the device."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.support import tiny_models
from tests.support import unlearning_runs as runs
from tests.support.method_twins import SETTINGS
from tests.support.packed_documents import CONFIG, assert_alike
from tests.support.tries import some_requests
from wmdp_fast.models.fused.last_layer import MOST_READ
from wmdp_fast.models.load import LoadedModel, wrap_model
from wmdp_fast.scoring import trie as trie_scoring
from wmdp_fast.scoring import trie_batches
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.scores import PartialScores
from wmdp_fast.scoring.trie import score_trie
from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.rmu.method import RMU

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# Log-probabilities are of size 1 to 30; a 16-bit number has 8 or 11 digits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.06}


def on_cuda(family: str, dtype: torch.dtype) -> LoadedModel:
    return wrap_model(tiny_models.build(family, dtype).to("cuda"), tiny_models.tokenizer(), name=family)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", tiny_models.TRIE_FAMILIES)
@pytest.mark.parametrize("budget", [9, 2048])
def test_scores_by_trie_are_those_on_padded_rows(family: str, dtype: torch.dtype, budget: int) -> None:
    loaded, drawn = on_cuda(family, dtype), some_requests()
    expected, found = score_padded(loaded, drawn), score_trie(loaded, drawn, token_budget=budget)
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=TOLERANCE[dtype])


def test_scores_are_those_of_the_cpu() -> None:
    expected = score_trie(tiny_models.loaded("llama"), some_requests())
    found = score_trie(on_cuda("llama", torch.float32), some_requests(), token_budget=9)
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=TOLERANCE[torch.float32])


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_nothing_between_two_batches_waits_for_the_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, drawn = on_cuda(family, torch.bfloat16), some_requests()
    expected = score_trie(loaded, drawn, token_budget=9)
    run = trie_batches.Pipeline.run

    def watched(*arguments):
        # Torch raises where an operation would make this thread wait for the device.
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trie_batches.Pipeline, "run", watched)
    found = score_trie(loaded, drawn, token_budget=9)
    np.testing.assert_array_equal(found.loglikelihood, expected.loglikelihood)
    assert found.batches > 5
    assert 0 <= found.seconds_waiting <= found.seconds


def test_an_interrupt_keeps_the_batch_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, drawn = on_cuda("llama", torch.float32), some_requests()
    whole = score_trie(loaded, drawn, token_budget=16)
    partial = PartialScores.empty(drawn.num_choices)
    monkeypatch.setattr(trie_scoring, "proven", lambda *_: (None, MOST_READ))
    forward, calls = loaded.model.forward, []

    @functools.wraps(forward)
    def interrupted(**inputs):
        calls.append(inputs)
        if len(calls) == whole.batches // 2:
            raise KeyboardInterrupt
        return forward(**inputs)

    monkeypatch.setattr(loaded.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_trie(loaded, drawn, token_budget=16, partial=partial)
    assert partial.batches == len(calls) - 1
    monkeypatch.setattr(loaded.model, "forward", forward)
    resumed = score_trie(loaded, drawn, token_budget=16, partial=partial)
    np.testing.assert_allclose(resumed.loglikelihood, whole.loglikelihood, atol=TOLERANCE[torch.float32])


def test_out_of_memory_on_the_device_halves_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, drawn = on_cuda("llama", torch.float32), some_requests()
    expected = score_trie(loaded, drawn)
    monkeypatch.setattr(trie_scoring, "proven", lambda *_: (None, MOST_READ))
    forward = loaded.model.forward

    @functools.wraps(forward)
    def limited(input_ids, **inputs):
        if input_ids.shape[1] > 20:
            torch.empty(1 << 50, device="cuda")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(loaded.model, "forward", limited)
    with pytest.warns(UserWarning, match="out of memory on cuda"):
        found = score_trie(loaded, drawn, token_budget=60)
    np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=TOLERANCE[torch.float32])
    assert found.token_budget <= 20


def test_the_budget_follows_the_free_memory() -> None:
    loaded, drawn = on_cuda("llama", torch.bfloat16), some_requests()
    found = score_trie(loaded, drawn)
    assert found.batches == 1
    assert found.token_budget > 2048


@pytest.mark.parametrize("family", runs.FAMILIES)
def test_unlearning_without_padding_ends_where_it_does_with_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    packed = runs.unlearn(runs.model(family).to("cuda"), CONFIG, note=notes.append)
    assert not [note for note in notes if "padded" in note]
    monkeypatch.setattr(RMU, "why_padded", lambda _self, _padded, _packed: "so that it is")
    padded = runs.unlearn(runs.model(family).to("cuda"), CONFIG, note=notes.append)
    assert_alike(packed, padded)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3_text"])
def test_losses_over_logits_are_those_of_a_cpu(family: str) -> None:
    config = NPOConfig(**SETTINGS, beta=0.5, gradient_checkpointing=True)
    notes: list[str] = []
    found = runs.unlearn(runs.model(family).to("cuda"), config, note=notes.append)
    assert not [note for note in notes if "padded" in note]
    expected = runs.unlearn(runs.model(family), config)
    for mine, other in zip(found.metrics, expected.metrics, strict=True):
        assert mine["forget_loss"] == pytest.approx(other["forget_loss"], rel=1e-3)
        assert mine["retain_loss"] == pytest.approx(other["retain_loss"], rel=1e-3)


@pytest.mark.parametrize("family", runs.FAMILIES)
def test_branches_of_unlearning_that_do_not_differ_yet_give_the_same_bits(family: str) -> None:
    result = runs.unlearn(runs.model(family, torch.bfloat16).to("cuda"), CONFIG)
    assert result.metrics[0]["retain_loss"] == result.metrics[0]["retain_loss_masked"] == 0.0
    assert result.metrics[-1]["retain_loss"] > 0
