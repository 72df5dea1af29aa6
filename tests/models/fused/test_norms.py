"""Norms in one pass beside those that transformers writes out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import tiny_models
from wmdp_fast.models.fused.norms import NORMS
from wmdp_fast.models.fused.trials import replaced_modules


def replaced(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "deepseek_v3", "granite"])
def test_a_models_norms_give_the_same(family: str) -> None:
    model = tiny_models.build(family)  # its own, since it is changed
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    with torch.no_grad():
        for norm in norms:
            norm.weight.normal_(0.5)
        rows = [torch.randn(2, 3, norm.weight.numel()) for norm in norms]
        expected = [norm(x) for norm, x in zip(norms, rows, strict=True)]
        with replaced_modules(model, [NORMS]):
            assert replaced(model) == norms
            found = [norm(x) for norm, x in zip(norms, rows, strict=True)]
    assert replaced(model) == []
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


class SquaredRMSNorm(nn.Module):
    """Has the looks of a norm, and does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight**2 * 1.001


def test_what_is_no_such_norm_is_left_alone() -> None:
    other, half = SquaredRMSNorm(), nn.RMSNorm(8, dtype=torch.bfloat16)
    no_epsilon = nn.RMSNorm(8)  # torch's own takes its dtype's
    with replaced_modules(nn.ModuleList([other, half, no_epsilon]), [NORMS]):
        assert "forward" not in vars(other)
        assert "forward" not in vars(half)
        assert "forward" not in vars(no_epsilon)
