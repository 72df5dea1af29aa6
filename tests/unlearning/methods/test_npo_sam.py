"""NPO with sharpness-aware minimization."""

from __future__ import annotations

import pytest
import torch

from tests.reference.methods import npo as plain
from tests.support import unlearning_runs as runs
from tests.support.method_twins import FAMILIES, SETTINGS, assert_same_as_plain
from wmdp_fast.exceptions import ModelError
from wmdp_fast.unlearning.methods.npo_sam import PRESETS, NPOSAMConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one(family: str) -> None:
    config = NPOSAMConfig(**SETTINGS, beta=0.5, rho=0.2)
    assert_same_as_plain(family, config, plain.LOSSES["sequence_mean"], rho=0.2)


def test_weights_are_put_back_to_the_bit_and_sharpness_is_measured() -> None:
    config = NPOSAMConfig(**SETTINGS | {"max_steps": 1, "warmup": 0.0, "learning_rate": 1e-30}, rho=0.5)
    model = runs.model("llama")
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    result = runs.unlearn(model, config)
    assert result.metrics[0]["sharpness"] > 1e-3
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ValueError, match="grad_accum must be 1"):
        NPOSAMConfig(grad_accum=2)
    with pytest.raises(ValueError, match="rho must be a number above 0"):
        NPOSAMConfig(rho=0.0)
    with pytest.raises(ModelError, match="trained in bfloat16, which is too coarse"):
        runs.unlearn(runs.model("llama", torch.bfloat16), NPOSAMConfig(**SETTINGS))
    assert NPOSAMConfig(**PRESETS["zephyr-7b"].for_topics(1)).rho == 0.01
