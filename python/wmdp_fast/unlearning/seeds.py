"""Random numbers that depend on a few whole numbers alone, so that a resumed run meets the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def mixed_seed(parts: Sequence[int]) -> int:
    """A seed for torch from several whole numbers, such as a run's seed and a step."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def normal_noise(shape: torch.Size, parts: Sequence[int]) -> Tensor:
    """Standard normal noise, float32, drawn on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator("cpu").manual_seed(mixed_seed(parts))
    return torch.randn(shape, dtype=torch.float32, device="cpu", generator=generator)
