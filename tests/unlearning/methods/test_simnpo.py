"""SimNPO."""

from __future__ import annotations

from functools import partial

import pytest

from tests.reference.methods import simnpo as plain
from tests.support.method_twins import FAMILIES, SETTINGS, assert_same_as_plain
from wmdp_fast.unlearning.methods.simnpo import SimNPOConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one(family: str) -> None:
    config = SimNPOConfig(**SETTINGS, beta=0.5, margin=0.3)
    assert_same_as_plain(family, config, partial(plain.loss, beta=0.5, margin=0.3))


def test_sums_are_none_of_its_reductions() -> None:
    with pytest.raises(ValueError, match="reduction of simnpo must be one of sequence_mean, batch_mean_padded"):
        SimNPOConfig(reduction="sum")
