"""PyTorch Lightning, the real one: its trainer logs `evaluate`'s numbers, and trains as if nothing had been."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

if importlib.util.find_spec("lightning") is None:
    pytest.skip("lightning is not installed: pip install 'wmdp-fast[lightning]'", allow_module_level=True)

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCausalLM, AutoTokenizer

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.exceptions import ModelError
from wmdp_fast.integrations.lightning import EvalCallback

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUESTIONS = demo.questions_path("forget")


class Language(pl.LightningModule):
    """A language model with dropout, so that it matters whether the random state is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32, attention_dropout=0.1)
        self.losses: list[float] = []

    def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
        loss = self.model(batch, labels=batch).loss
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def train(folder: Path, callbacks: list[Any], steps: int = 5, accumulate: int = 1) -> tuple[Language, pl.Trainer]:
    pl.seed_everything(3)
    module = Language()
    module.train()
    data = torch.utils.data.DataLoader(torch.randint(5, 500, (32, 16)), batch_size=2, shuffle=True)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return module, trainer


def callback(every: int, **options: Any) -> EvalCallback:
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    return EvalCallback(tokenizer, tasks=QUESTIONS, limit=8, every=every, **options)


def test_training_is_what_it_would_be_without_and_the_numbers_are_those_of_evaluate(tmp_path: Path) -> None:
    own = callback(2)
    module, trainer = train(tmp_path / "with", [own])
    plain, _ = train(tmp_path / "without", [])
    assert module.losses == plain.losses
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [line["step"] for line in own.history] == [0, 2, 4, 5]

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    expected = wf.evaluate(module.model, tokenizer=tokenizer, tasks=QUESTIONS, limit=8, progress=False)
    [task] = expected.tasks.values()
    assert own.history[-1][f"eval_{task.name}_acc"] == task["acc"]
    assert float(trainer.callback_metrics[f"eval_{task.name}_acc"]) == pytest.approx(task["acc"])
    [table] = (tmp_path / "with").rglob("metrics.csv")
    assert f"eval_{task.name}_acc_stderr" in table.read_text(encoding="utf-8").splitlines()[0]


def test_steps_are_the_optimizers(tmp_path: Path) -> None:
    own = callback(2, at_start=False, at_end=False)
    module, _ = train(tmp_path, [own], steps=4, accumulate=3)
    assert len(module.losses) == 12
    assert [line["step"] for line in own.history] == [2, 4]


def test_wrong_use_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be at least 1"):
        callback(0)
    with pytest.raises(ModelError, match=r"Language has no model at 'net': .*attribute="):
        train(tmp_path, [callback(2, attribute="net")])
