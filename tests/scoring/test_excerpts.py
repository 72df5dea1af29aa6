"""Excerpts on which a way of scoring is proven have what a run has, so that what goes wrong there does so here."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import tiny_models
from wmdp_fast import Requests
from wmdp_fast._rust import Trie
from wmdp_fast.exceptions import WmdpFastWarning
from wmdp_fast.models.load import wrap_model
from wmdp_fast.scoring.excerpts import cutting_budget, excerpts_of
from wmdp_fast.scoring.padded import score_padded
from wmdp_fast.scoring.rolling import score_windows
from wmdp_fast.scoring.trie import score


def random_questions(length: int, choices: list[list[int]], shared: int = 0) -> Requests:
    tokens = np.random.default_rng(3).integers(20, 600, (6, length))
    tokens[:, :shared] = tokens[0, :shared]
    return Requests.from_tokens(tokens.tolist(), [choices] * 6, max_length=128)


LETTERS = [[1], [2], [3], [4]]
WORDS = [[1, 2], [3, 4], [3, 5]]


@pytest.mark.parametrize(
    "drawn",
    [
        random_questions(60, LETTERS),
        random_questions(60, WORDS),
        random_questions(60, LETTERS, shared=25),
        random_questions(60, WORDS, shared=25),
        random_questions(5, LETTERS),
        random_questions(12, [list(range(1, 30)), list(range(2, 40))]),
    ],
    ids=["letters", "words", "shared letters", "shared words", "short", "long choices"],
)
def test_excerpts_are_cut_into_batches_that_carry_over_and_have_several_questions(drawn: Requests) -> None:
    excerpts = excerpts_of(tiny_models.loaded("llama").model, drawn)
    trie = Trie(excerpts)
    budget = cutting_budget(trie, excerpts)
    batches = list(trie.batches(budget, budget))
    assert any(batch.num_carried for batch in batches)
    context = min(len(excerpts.context(question)) for question in range(3))
    questions, choices = 0, 0
    for batch in batches:
        own = [one for one in batch.segments.tolist() if one[1] > batch.num_carried]
        # Those behind others that they do not see.
        apart = [(a, b) for a in own for b in own if a[2] <= b[0]]
        questions += sum(b[3] < context for _, b in apart)
        choices += sum(a[3] >= context and b[3] >= context for a, b in apart)
    assert questions
    assert bool(choices) == any(len(excerpts.continuation(choice)) > 1 for choice in range(excerpts.num_choices))
    assert len(batches) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_neighbors_in_a_row_by_other_means_than_attention_is_not_scored_by_trie(
    dtype: torch.dtype,
) -> None:
    """Each token's embedding has a part of the one before it; of letters only the first of a question gives it away."""
    model: Any = tiny_models.build("llama", dtype)
    embedding = model.get_input_embeddings()
    plain = embedding.forward

    def with_the_one_before(tokens: torch.Tensor) -> torch.Tensor:
        embedded = plain(tokens)
        return embedded + 0.5 * torch.nn.functional.pad(embedded, (0, 0, 1, 0))[:, :-1]

    embedding.forward = with_the_one_before
    loaded, drawn = wrap_model(model, tiny_models.tokenizer(), name="mixing"), random_questions(60, LETTERS)
    with pytest.warns(WmdpFastWarning, match="tried on excerpts"):
        found = score(loaded, drawn)
    np.testing.assert_array_equal(found.loglikelihood, score_padded(loaded, drawn).loglikelihood)


def alora() -> Any:
    """A model with an adapter that begins where it finds the tokens 7 and 8."""
    peft = pytest.importorskip("peft", reason="peft is not installed (extra `peft`)")
    if "alora_invocation_tokens" not in inspect.signature(peft.LoraConfig).parameters:
        pytest.skip("this version of peft has no aLoRA")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], alora_invocation_tokens=[7, 8]
    )
    adapted = peft.get_peft_model(tiny_models.build("llama"), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted


@torch.no_grad()
@pytest.mark.parametrize("place", [25, 58])
def test_an_adapter_that_begins_at_certain_tokens_is_run_as_peft_runs_it(place: int) -> None:
    adapted = alora()
    tokens = np.random.default_rng(3).integers(20, 600, (6, 60))
    tokens[:, place : place + 2] = [7, 8]
    letters = Requests.from_tokens(tokens.tolist(), [LETTERS] * 6, max_length=128)
    documents = Requests.from_tokens(tokens[:, :1].tolist(), [[one] for one in tokens[:, 1:].tolist()], max_length=128)
    expected: list[list[float]] = [[], []]
    for row in tokens.tolist():
        expected[0] += adapted(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(dim=-1)[1:5].tolist()
        # The last token of a document is predicted, and not read.
        logprobs = adapted(input_ids=torch.tensor([row[:-1]])).logits[0].log_softmax(dim=-1)
        expected[1].append(float(logprobs[range(59), row[1:]].sum()))
    loaded = wrap_model(adapted, tiny_models.tokenizer(), name="aLoRA")
    with pytest.warns(WmdpFastWarning, match="aLoRA"):
        found = score(loaded, letters)
    np.testing.assert_allclose(found.loglikelihood, expected[0], atol=1e-4)
    np.testing.assert_allclose(score_windows(loaded, documents).loglikelihood, expected[1], atol=1e-3)


def test_a_hook_that_goes_by_places_in_a_row_is_not_run_by_trie() -> None:
    """Those of a row of many questions are not those of a question, which may not show before the 34th."""
    model: Any = tiny_models.build("llama")

    def larger_from_there_on(_layer: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :50], 1.5 * output[:, 50:]], dim=1)

    handle = model.model.layers[0].register_forward_hook(larger_from_there_on)
    loaded, drawn = wrap_model(model, tiny_models.tokenizer(), name="hooked"), random_questions(60, LETTERS)
    with pytest.warns(WmdpFastWarning, match="tried on excerpts"):
        found = score(loaded, drawn)
    np.testing.assert_array_equal(found.loglikelihood, score_padded(loaded, drawn).loglikelihood)
    handle.remove()
    model.model.layers[0].register_forward_hook(lambda _layer, _inputs, output: 1.5 * output)
    assert score(loaded, drawn).engine == "trie"
