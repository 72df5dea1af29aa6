"""Fine-tuning in place beside an ordinary trainer, and the model as it was after it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch

from tests.reference.methods import finetune as plain
from tests.reference.methods.training import train
from tests.support import unlearning_runs as runs
from wmdp_fast.exceptions import DivergedError
from wmdp_fast.unlearning.fine_tuning import fine_tune, picked
from wmdp_fast.unlearning.lora import LoRA
from wmdp_fast.unlearning.methods.finetune import FinetuneConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

LINEAR = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
STEPS = 8


def config(weights: str, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(
        **{
            "parameters": "all",
            "lora": LoRA(r=4) if weights == "lora" else None,
            "learning_rate": 1e-3,
            "batch_size": 2,
            "max_steps": STEPS,
            "max_length": 30,
            "retain_max_length": 30,
            **changes,
        }
    )


def with_factors(model: Any, seed: int) -> Any:
    """The model with PEFT's factors, whose first values are drawn layer after layer."""
    found = peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR), model)
    generator = torch.Generator().manual_seed(seed)
    for name, one in found.named_parameters():
        if "lora_A" in name:
            bound = one.shape[1] ** -0.5
            one.data = torch.empty(one.shape).uniform_(-bound, bound, generator=generator)
    return found


def snapshot(model: torch.nn.Module) -> tuple[Any, ...]:
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(name, type(module), module.training, len(module._forward_hooks)) for name, module in model.named_modules()],
        [(name, one.requires_grad) for name, one in model.named_parameters()],
        sorted(vars(model.base_model)),
    )


def assert_as_it_was(model: torch.nn.Module, before: tuple[Any, ...]) -> None:
    now = snapshot(model)
    assert now[1:] == before[1:]
    assert now[0].keys() == before[0].keys()
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in now[0].items())


@pytest.mark.parametrize(
    ("family", "weights"), [("llama", "lora"), ("llama", "full"), ("gemma3_text", "lora"), ("mixtral", "full")]
)
def test_steps_are_those_of_an_ordinary_trainer(family: str, weights: str) -> None:
    rows, settings = runs.documents(1, count=6), config(weights)
    model = runs.model(family)
    before = snapshot(model)
    losses, trained = [], {}
    for step in fine_tune(model, runs.corpus(rows), settings):
        losses.append(step.loss)
        if step.number == STEPS:
            # Some models have a parameter by two names.
            trained = {name: one.detach().clone() for name, one in model.named_parameters(remove_duplicate=False)}
    assert_as_it_was(model, before)

    theirs = runs.model(family)
    if weights == "lora":
        theirs = with_factors(theirs, settings.seed)
    again = rows * 3
    record = train(
        theirs,
        again,
        again,
        plain.loss,
        trained=".lora_" if weights == "lora" else "",
        learning_rate=1e-3,
        steps=STEPS,
        batch_size=2,
        max_length=30,
        pad=runs.PAD,
        warmup_steps=1,
    )
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(record.retain_losses), rtol=1e-5, atol=1e-5)
    moved = 0.0
    for name, one in theirs.named_parameters():
        torch.testing.assert_close(trained[name], one.detach(), rtol=0, atol=1e-5)
        moved = max(moved, float((trained[name] - before[0].get(name, torch.zeros(()))).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_whatever_ends_it_the_model_is_as_it_was(weights: str) -> None:
    model = runs.model("llama", torch.bfloat16).train()
    model.model.layers[0].requires_grad_(False)
    before = snapshot(model)
    documents = runs.corpus(runs.documents(1))
    with closing(fine_tune(model, documents, config(weights))) as steps:
        next(steps)
        next(steps)  # the first step's learning rate is 0
        assert any(not torch.equal(one, before[0].get(name, one + 1)) for name, one in model.state_dict().items())
    assert_as_it_was(model, before)
    with pytest.raises(DivergedError, match=r"fine-tuning diverged at step \d: .* lower the learning rate"):
        list(fine_tune(model, documents, config(weights, learning_rate=1e30)))
    assert_as_it_was(model, before)


def test_documents_are_picked_in_an_order_and_single_tokens_are_not() -> None:
    def of(numbers: Sequence[int]) -> list[list[int]]:
        found = picked(runs.corpus([[3, 4], [5], [], [6, 7, 8]]), numbers)
        return [found.document(number).tolist() for number in range(len(found))]

    assert of([3, 2, 1, 0]) == [[6, 7, 8], [3, 4]]
    assert of([1, 2]) == []
