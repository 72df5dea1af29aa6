"""RMU on documents that are packed back to back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    import wmdp_fast as wf

CONFIG = RMUConfig(
    layer_id=2,
    steering_coeff=2.0,
    alpha=50.0,
    learning_rate=1e-3,
    batch_size=2,
    max_steps=4,
    max_length=30,
    mode="masked",
)


def assert_alike(packed: wf.UnlearnResult, padded: wf.UnlearnResult) -> None:
    """Two runs with `CONFIG` have the same losses and end with the same weights, one of them with fewer tokens."""
    for mine, theirs in zip(packed.metrics, padded.metrics, strict=True):
        assert mine["tokens"] < theirs["tokens"]
        assert mine["forget_loss_masked"] == pytest.approx(theirs["forget_loss_masked"], rel=1e-3)
        assert mine["retain_loss_masked"] == pytest.approx(theirs["retain_loss_masked"], rel=1e-2, abs=1e-4)
    for name, tensor in padded.tensors.items():
        # The optimizer makes a step of a gradient however small, so where one is near 0 its rounding shows.
        assert float((packed.tensors[name] - tensor).abs().mean()) < 0.01 * 4 * CONFIG.learning_rate
