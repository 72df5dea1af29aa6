"""A method's run beside the plain one on the same data."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

import wmdp_fast as wf
from tests.reference.methods.training import train
from tests.support import unlearning_runs as runs
from wmdp_fast.unlearning.schedule import warmup_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    assert_trained_as_plain(
        runs.model(family), runs.documents(1), runs.documents(2), config, loss, padded=padded, rho=rho
    )


def assert_trained_as_plain(
    model: Any,
    forget: Sequence[Sequence[int]],
    retain: Sequence[Sequence[int]],
    config: LanguageModelConfig,
    loss: Callable[..., Any],
    *,
    pad: int = runs.PAD,
    padded: bool = False,
    rho: float = 0.0,
    bound: float = 1e-5,
) -> None:
    """The same of any model and documents.

    Args:
        model: Stays as it is.
        forget: Token ids of each forget document; gone through again when they end, as are those of `retain`.
        retain: Of each retain document.
        config: The settings of this package's run.
        loss: The plain one's.
        pad: Token to pad with.
        padded: Whether padding counts.
        rho: Of sharpness-aware minimization.
        bound: Of differences.
    """
    before, plain_model = copy.deepcopy(model), copy.deepcopy(model)
    corpora = {"forget": runs.corpus(forget, "forget"), "retain": runs.corpus(retain, "retain")}
    ours = wf.unlearn(copy.deepcopy(model), **corpora, config=config, progress=False)
    assert ours.steps == config.max_steps
    record = train(
        plain_model,
        again(forget, config),
        again(retain, config),
        loss,
        trained="" if config.parameters == "all" else "down_proj",
        learning_rate=config.learning_rate,
        steps=config.max_steps,
        batch_size=config.batch_size,
        max_length=30,
        pad=pad,
        warmup_steps=warmup_steps(config.max_steps, config.warmup),
        padded_to=30 if padded else None,
        rho=rho,
    )
    losses = [[row["forget_loss"], row["retain_loss"]] for row in ours.metrics]
    plain = [list(pair) for pair in zip(record.forget_losses, record.retain_losses, strict=True)]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=bound, atol=bound)
    weights, unchanged = (
        {**dict(one.base_model.named_parameters()), **dict(one.named_parameters())} for one in (plain_model, before)
    )
    assert ours.tensors
    for name, tensor in ours.tensors.items():
        assert float((tensor - unchanged[name].detach()).abs().max()) > 1e-4, name
        torch.testing.assert_close(tensor, weights[name].detach(), rtol=0, atol=bound)


def again(documents: Sequence[Sequence[int]], config: LanguageModelConfig) -> list[Sequence[int]]:
    """Documents for all steps, in batches that begin anew when they have been gone through."""
    whole = len(documents) // config.batch_size * config.batch_size
    return [*documents[:whole]] * -(-config.max_steps * config.batch_size // whole)
