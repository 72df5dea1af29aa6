"""How the optimizer moves weights: its arithmetic, and the learning rate by step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from tests.support import unlearning_runs as runs
from wmdp_fast.unlearning.optim import AdamW, TorchAdamW
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.schedule import learning_rate_factor, warmup_steps

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR

RATE = 3e-3


def scheduled_by_torch(make, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler: LambdaLR = make(optimizer)
    rates = []
    for _ in range(total):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("total", "warmup"), [(7, 0.0), (7, 0.1), (40, 0.25), (3, 0.5), (2, 0.1)])
def test_rates_are_those_of_torchs_schedulers_to_the_bit(total: int, warmup: float) -> None:
    rising = warmup_steps(total, warmup)
    theirs = {
        "constant": lambda optimizer: get_constant_schedule_with_warmup(optimizer, rising),
        "linear": lambda optimizer: get_linear_schedule_with_warmup(optimizer, rising, total),
    }
    for name, make in theirs.items():
        factors = [learning_rate_factor(step, total, schedule=name, warmup=warmup) for step in range(total)]
        assert [RATE * factor for factor in factors] == scheduled_by_torch(make, total)


def test_the_last_step_always_counts() -> None:
    assert learning_rate_factor(0, 1, schedule="linear", warmup=0.1) == 1.0
    assert [learning_rate_factor(step, 2, schedule="constant", warmup=0.9) for step in (0, 1)] == [0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_makes_torchs_steps_to_the_bit(dtype: torch.dtype, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=generator).to(dtype)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    optimizer = TorchAdamW({"w": ours}, RATE, weight_decay=decay)
    expected = torch.optim.AdamW([theirs], lr=RATE, weight_decay=decay, foreach=False)
    for step in range(20):
        gradient = torch.randn(5, 7, generator=generator).to(dtype) * 10.0**-step
        optimizer.learning_rate = expected.param_groups[0]["lr"] = RATE / (1 + step)
        theirs.grad = gradient.clone()
        optimizer.step({"w": gradient})
        expected.step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [AdamW, TorchAdamW])
def test_matrices_decay_and_vectors_do_not(kind: type[AdamW]) -> None:
    weights = {"matrix": torch.ones(2, 2), "vector": torch.ones(2)}
    kind(weights, 0.1, weight_decay=0.5).step({name: torch.zeros_like(one) for name, one in weights.items()})
    assert torch.equal(weights["matrix"], torch.full((2, 2), 0.95))
    assert torch.equal(weights["vector"], torch.ones(2))


def test_only_weights_that_are_not_float32_have_masters() -> None:
    weights = {"wide": torch.ones(2), "narrow": torch.ones(2, dtype=torch.bfloat16)}
    optimizer = AdamW(weights, RATE, master_weights=True)
    assert [name for name in optimizer.state if name.startswith("master.")] == ["master.narrow"]
    assert {tensor.dtype for tensor in optimizer.state.values()} == {torch.float32}


# In a run

CONFIG = dataclasses.replace(
    runs.CONFIG, max_steps=5, learning_rate=1e-3, schedule="linear", warmup=0.3, weight_decay=0.01, save_every=2
)


def test_a_run_follows_the_schedule_and_resumes_within_it(tmp_path) -> None:
    folder = runs.saved_model(tmp_path / "base", "llama", torch.bfloat16)
    config = dataclasses.replace(CONFIG, master_weights=True)
    straight = runs.unlearn(folder, config, output=tmp_path / "straight")
    # Two of five steps are warm-up.
    assert [row["learning_rate"] for row in straight.metrics] == [
        1e-3 * learning_rate_factor(step, 5, schedule="linear", warmup=0.3) for step in range(5)
    ]
    assert [row["learning_rate"] for row in straight.metrics][:3] == [0.0, 5e-4, 1e-3]
    with pytest.MonkeyPatch.context() as patch:
        step = AdamW.step

        def interrupted(self: AdamW, gradients) -> None:
            if self.steps == 3:
                raise KeyboardInterrupt
            step(self, gradients)

        patch.setattr(AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.unlearn(folder, config, output=tmp_path / "out")
    resumed = runs.unlearn(folder, config, output=tmp_path / "out", resume=True)
    assert [row["learning_rate"] for row in resumed.metrics] == [row["learning_rate"] for row in straight.metrics]
    for name in ("model.safetensors", "delta.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_the_default_is_the_constant_rate_without_decay() -> None:
    config = dataclasses.replace(CONFIG, schedule="constant", warmup=0.0, weight_decay=0.0)
    assert (RMUConfig().schedule, RMUConfig().warmup, RMUConfig().weight_decay) == ("constant", 0.0, 0.0)
    assert not config.depends_on_total
    result = runs.unlearn(runs.model("llama"), config)
    assert {row["learning_rate"] for row in result.metrics} == {1e-3}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine"}, "schedule must be one of constant, linear, not 'cosine'"),
        ({"warmup": 1.0}, "warmup is a share of the steps, from 0 to below 1, not 1.0"),
        ({"warmup": -0.1}, "warmup must be a number of at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay must be a number of at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        RMUConfig(**settings)
