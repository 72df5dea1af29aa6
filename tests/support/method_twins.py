"""A method's run beside the plain one on the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.reference.methods.training import train
from tests.support import unlearning_runs as runs
from wmdp_fast.unlearning.schedule import warmup_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from wmdp_fast.unlearning.methods.config import LanguageModelConfig

FAMILIES = ("llama", "mixtral", "gemma3_text")

# What tests of these methods run with: documents of three to thirty tokens, two of each kind in a step.
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 2,
    "max_steps": 8,
    "max_length": 30,
    "retain_max_length": 30,
    "parameters": "mlp.down_proj",
}


def assert_same_as_plain(
    family: str, config: LanguageModelConfig, loss: Callable[..., Any], *, padded: bool = False, rho: float = 0.0
) -> None:
    """Losses and weights after all steps are equal to 1e-5.

    Args:
        family: Of the model.
        config: The settings of this package's run.
        loss: The plain one's.
        padded: Whether padding counts.
        rho: Of sharpness-aware minimization.
    """
    ours = runs.unlearn(runs.model(family), config)
    record = train(
        runs.model(family),
        runs.documents(1),
        runs.documents(2),
        loss,
        trained="" if config.parameters == "all" else "down_proj",
        learning_rate=config.learning_rate,
        steps=config.max_steps,
        batch_size=config.batch_size,
        max_length=30,
        pad=runs.PAD,
        warmup_steps=warmup_steps(config.max_steps, config.warmup),
        padded_to=30 if padded else None,
        rho=rho,
    )
    models = (record.model, runs.model(family))
    losses = [[row["forget_loss"], row["retain_loss"]] for row in ours.metrics]
    plain = [list(pair) for pair in zip(record.forget_losses, record.retain_losses, strict=True)]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=1e-5, atol=1e-5)
    weights, before = ({**dict(one.base_model.named_parameters()), **dict(one.named_parameters())} for one in models)
    assert ours.tensors
    for name, tensor in ours.tensors.items():
        assert float((tensor - before[name].detach()).abs().max()) > 1e-4, name
        torch.testing.assert_close(tensor, weights[name].detach(), rtol=0, atol=1e-5)
