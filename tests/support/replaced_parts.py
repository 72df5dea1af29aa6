"""Models of which some modules are computed another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def replaced(model: nn.Module) -> set[str]:
    """The names of the modules that are computed another way just now."""
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(1, 41).view(2, 20)).logits
    return found


def assert_close(found: torch.Tensor, expected: torch.Tensor, terms: float = 0.0) -> None:
    """Whether sums of products are equal but for rounding, which goes by the sums of their sizes where they cancel."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=max(1e-5 * float(expected.abs().max()), 2e-7 * terms))
