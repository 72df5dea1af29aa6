"""Gradient difference and its limit, gradient ascent."""

from __future__ import annotations

import pytest
import torch

import wmdp_fast as wf
from tests.reference.methods import graddiff as plain
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import SAME_CORPORA
from tests.support.method_twins import FAMILIES, SETTINGS, assert_same_as_plain
from wmdp_fast.unlearning.methods.graddiff import PRESETS, GradDiffConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one(family: str) -> None:
    assert_same_as_plain(family, GradDiffConfig(**SETTINGS), plain.loss)


@SAME_CORPORA
def test_without_a_retain_weight_it_is_gradient_ascent() -> None:
    rows = runs.documents(1)[:4]
    config = GradDiffConfig(**SETTINGS | {"learning_rate": 1e-2}, epochs=4, retain_weight=0.0)
    corpora = {"forget": runs.corpus(rows), "retain": runs.corpus(rows)}
    result = wf.unlearn(runs.model("llama"), **corpora, config=config, progress=False)
    first, last = result.metrics[0], result.metrics[6]
    assert first["retain_loss"] == last["retain_loss"] == 0.0
    assert last["forget_nll"] == last["retain_nll"] > first["forget_nll"] + 0.1


def test_documents_above_the_ceiling_count_no_more() -> None:
    config = GradDiffConfig(**SETTINGS, ceiling=5.0)
    losses = torch.tensor([4.0, 6.0], requires_grad=True)
    loss = config.forget_loss(losses, None)
    assert torch.autograd.grad(loss, losses)[0].tolist() == [-0.5, 0.0]
    assert loss.item() == -4.5


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="both 0, so nothing would be trained"):
        GradDiffConfig(forget_weight=0, retain_weight=0)
    with pytest.raises(ValueError, match="ceiling must be a number above 0"):
        GradDiffConfig(ceiling=-1.0)
    with pytest.raises(ValueError, match="reduction of graddiff must be one of sequence_mean, batch_mean_padded"):
        GradDiffConfig(reduction="sum")
    with pytest.raises(ValueError, match="retain_loss must be cross_entropy or kl"):
        GradDiffConfig(retain_loss="mse")  # type: ignore[arg-type]


def test_a_preset_is_a_run_of_the_published_code() -> None:
    config = GradDiffConfig(**PRESETS["zephyr-7b"].for_topics(1))
    assert (config.learning_rate, config.batch_size, config.grad_accum, config.max_steps) == (5e-6, 1, 4, 500)
    assert (config.schedule, config.warmup, config.grad_clip, config.weight_decay) == ("linear", 0.1, 1.0, 0.0)
