"""NPO in all its reductions, and what it keeps of the original model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import wmdp_fast as wf
from tests.reference.methods import npo as plain
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SAME_CORPORA
from tests.support.method_twins import FAMILIES, SETTINGS, assert_same_as_plain
from wmdp_fast.unlearning.language_model import LanguageModel
from wmdp_fast.unlearning.methods.npo import NPOConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one(family: str) -> None:
    assert_same_as_plain(family, NPOConfig(**SETTINGS, beta=0.5), plain.LOSSES["sequence_mean"])


def test_it_is_the_plain_one_with_sums() -> None:
    assert_same_as_plain("llama", NPOConfig(**SETTINGS, beta=0.02, reduction="sum"), plain.LOSSES["sum"])


def test_it_is_the_plain_one_with_padding_counted() -> None:
    config = NPOConfig(**SETTINGS, beta=0.5, reduction="batch_mean_padded")
    assert_same_as_plain("llama", config, plain.LOSSES["batch_mean_padded"], padded=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one_with_a_divergence_for_retain_documents(family: str) -> None:
    assert_same_as_plain(family, NPOConfig(**SETTINGS, beta=0.5, retain_loss="kl"), plain.LOSSES["kl"])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])  # a head of its own, and one that is the embedding
def test_it_is_the_plain_one_with_all_parameters(family: str) -> None:
    config = NPOConfig(**SETTINGS | {"parameters": "all"}, beta=0.5)
    assert_same_as_plain(family, config, plain.LOSSES["sequence_mean"])


def test_layers_that_are_run_again_change_nothing() -> None:
    config = NPOConfig(**SETTINGS, beta=0.5, gradient_checkpointing=True)
    assert_same_as_plain("llama", config, plain.LOSSES["sequence_mean"])


def test_it_begins_as_gradient_ascent_and_lets_go_of_unlikely_documents() -> None:
    config = NPOConfig(beta=0.5)
    losses, reference = torch.tensor([3.0, 60.0], requires_grad=True), torch.tensor([3.0, 3.0])
    (slopes,) = torch.autograd.grad(config.forget_loss(losses, reference), losses)
    assert slopes[0] == pytest.approx(-0.5)
    assert abs(slopes[1]) < 1e-9


@SAME_CORPORA
def test_the_original_model_is_run_once_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    originals = LanguageModel.originals

    def counted(self: LanguageModel) -> Any:
        asked.append(1)
        return originals(self)

    monkeypatch.setattr(LanguageModel, "originals", counted)
    # Two batches of three documents, gone through four times.
    config = NPOConfig(**SETTINGS | {"batch_size": 3}, epochs=4)
    rows = runs.documents(1)[:6]
    result = wf.unlearn(
        runs.model("llama"), forget=runs.corpus(rows), retain=runs.corpus(rows), config=config, progress=False
    )
    # The last two are for what is found at the end.
    assert (result.steps, len(asked)) == (8, 2 + 2)
    assert result.metrics[0]["forget_loss"] == pytest.approx(2 / config.beta * 0.693147)


def test_beta_is_checked() -> None:
    with pytest.raises(ValueError, match="beta must be a number above 0"):
        NPOConfig(beta=0)
