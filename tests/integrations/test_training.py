"""Evaluation inside a training loop: the numbers are `evaluate`'s, and training goes on as if nothing had been."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import wmdp_fast as wf
from wmdp_fast import demo
from wmdp_fast.exceptions import ModelError, TaskError, WmdpFastWarning
from wmdp_fast.integrations.training import QuestionSample, evaluate_in_place

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = demo.questions_path("forget")


def demo_model(**options: Any) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    return AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype=torch.float32, **options), tokenizer


def test_the_numbers_are_those_of_evaluate() -> None:
    model, tokenizer = demo_model()
    asked = {"tasks": [QUESTIONS, demo.questions_path("retain")], "limit": 20}
    found = evaluate_in_place(model, tokenizer, **asked)
    expected = wf.evaluate(model, tokenizer=tokenizer, progress=False, **asked)
    for task in expected.tasks.values():
        assert found[f"{task.name}_acc"] == task["acc"]
        assert found[f"{task.name}_acc_stderr"] == task["acc_stderr"]
    assert found["wmdp_fast_seconds"] > 0


def test_a_sample_is_read_once_and_follows_the_model(tmp_path: Path) -> None:
    model, tokenizer = demo_model()
    file = tmp_path / "questions.jsonl"
    file.write_bytes(QUESTIONS.read_bytes())
    sample = QuestionSample(tokenizer, tasks=file, limit=24)
    file.unlink()
    assert len(sample) == 24
    before = sample(model)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    after = sample(model)
    assert before["questions_acc"] > after["questions_acc"] + 0.2


def test_mode_gradients_and_random_states_are_left_alone() -> None:
    model, tokenizer = demo_model(attention_dropout=0.1)
    model.train()
    model.model.layers[2].eval()
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate_in_place(model, tokenizer, tasks=QUESTIONS, limit=8)
    assert [module.training for module in model.modules()] == modes
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradients[name])
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    outside = evaluate_in_place(model, tokenizer, tasks=QUESTIONS, limit=8)
    assert {**inside, "wmdp_fast_seconds": 0} == {**outside, "wmdp_fast_seconds": 0}


class Log(TrainerCallback):
    """A logger as a user's is: what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.lines.append({**(logs or {}), "step": state.global_step})


def train(
    folder: Path, *, callback: bool, attached: bool = True, **arguments: Any
) -> tuple[Trainer, Log, wf.EvalCallback | None]:
    torch.manual_seed(1)
    model, tokenizer = demo_model(attention_dropout=0.1)
    texts = wf.load_questions(demo.questions_path("retain")).head(24)
    rows = [tokenizer(question.question, padding="max_length", max_length=24, truncation=True) for question in texts]
    data = [{**row, "labels": row["input_ids"]} for row in rows]
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **arguments,
    )
    log = Log()
    trainer = Trainer(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[log])
    evaluation = None
    if callback:
        evaluation = wf.EvalCallback(trainer if attached else None, tasks=QUESTIONS, limit=10, every=2)
        trainer.add_callback(evaluation)
    trainer.train()
    return trainer, log, evaluation


def losses(log: Log) -> list[tuple[float, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in log.lines if "loss" in line]


@pytest.mark.parametrize("arguments", [{}, pytest.param({"bf16": True}, marks=pytest.mark.slow)])
def test_the_loss_curve_is_that_of_a_run_without_it(tmp_path: Path, arguments: dict[str, Any]) -> None:
    plain, plain_log, _ = train(tmp_path, callback=False, **arguments)
    trainer, log, evaluation = train(tmp_path, callback=True, **arguments)
    assert len(losses(plain_log)) == 6
    assert losses(log) == losses(plain_log)
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    assert evaluation is not None
    assert [entry["step"] for entry in evaluation.history] == [0, 2, 4, 6]
    told = [line for line in log.lines if "eval_glimmer_brewing_acc" in line]
    assert [line["step"] for line in told] == [0, 2, 4, 6]
    kept = [line for line in trainer.state.log_history if "eval_glimmer_brewing_acc" in line]
    assert [line["eval_glimmer_brewing_acc"] for line in kept] == [
        entry["eval_glimmer_brewing_acc"] for entry in evaluation.history
    ]
    final = evaluate_in_place(trainer.model, trainer.processing_class, tasks=QUESTIONS, limit=10)
    assert evaluation.history[-1]["eval_glimmer_brewing_acc"] == final["glimmer_brewing_acc"]


def test_without_the_trainer_its_numbers_are_in_the_history_alone(tmp_path: Path) -> None:
    with pytest.warns(WmdpFastWarning, match="without the trainer"):
        trainer, log, _ = train(tmp_path, callback=True, attached=False)
    assert [line["step"] for line in trainer.state.log_history if "eval_glimmer_brewing_acc" in line] == [0, 2, 4, 6]
    assert not any("eval_glimmer_brewing_acc" in line for line in log.lines)


def test_what_is_wrong_shows_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="every must be at least 1"):
        wf.EvalCallback(tasks=QUESTIONS, every=0)
    arguments, state = TrainingArguments(output_dir="unused", use_cpu=True), object()
    misspelt = wf.EvalCallback(tasks="wmdp_boi", every=1, tokenizer=demo_model()[1])
    with pytest.raises(TaskError, match="wmdp_boi"):
        misspelt.on_train_begin(arguments, state, None)
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        wf.EvalCallback(tasks=QUESTIONS, every=1).on_train_begin(arguments, state, None)


def test_a_model_that_lies_in_parts_is_refused() -> None:
    model, tokenizer = demo_model()
    next(model.parameters()).ds_id = 0
    with pytest.raises(ModelError, match="a part of the model only"):
        evaluate_in_place(model, tokenizer, tasks=QUESTIONS, limit=2)


def test_wrapped_models_are_found() -> None:
    model, tokenizer = demo_model()
    expected = evaluate_in_place(model, tokenizer, tasks=QUESTIONS, limit=4)
    for wrapped in (torch.nn.DataParallel(model), torch.compile(model)):
        found = evaluate_in_place(wrapped, tokenizer, tasks=QUESTIONS, limit=4)
        assert found["glimmer_brewing_acc"] == expected["glimmer_brewing_acc"]
