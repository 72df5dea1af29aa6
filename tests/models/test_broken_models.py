"""Broken model folders: each gives transformers' numbers, or one line that says what is wrong; never a traceback."""

from __future__ import annotations

import faulthandler
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import wmdp_fast
from tests.support import broken_models
from wmdp_fast.checkpoints.checkpoint import Checkpoint
from wmdp_fast.exceptions import ModelError, TokenizerError
from wmdp_fast.models.partial import load_first_layers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# By hand: WMDP_FAST_BROKEN_MODELS=400 pytest tests/models/test_broken_models.py
COUNT = int(os.environ.get("WMDP_FAST_BROKEN_MODELS", "30"))

QUESTION = "Which of these is the sky's color at noon?"
CHOICES = ["red", "green", "blue as the sea", "grey"]

pytestmark = pytest.mark.filterwarnings("ignore::wmdp_fast.exceptions.WmdpFastWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken_models.whole(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # What hangs ends with a traceback of where.
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    logging.set_verbosity(before)


def transformers_numbers(folder: Path) -> list[float]:
    """The log-likelihood of each choice, by transformers alone: a plain forward pass for each."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    numbers = []
    for choice in CHOICES:
        context = tokenizer(QUESTION)["input_ids"]
        ids = tokenizer(f"{QUESTION} {choice}")["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids[:-1]])).logits[0].float().log_softmax(-1)
        numbers.append(sum(float(logprobs[at - 1, ids[at]]) for at in range(len(context), len(ids))))
    return numbers


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_broken_model_gives_transformers_numbers_or_one_line(whole: Path, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    how = broken_models.break_it(folder, seed)
    questions = tmp_path / "q.jsonl"
    row = {"question": QUESTION, "choices": CHOICES, "answer": 2}
    questions.write_text(broken_models.json.dumps(row))
    try:
        result = wmdp_fast.evaluate(
            folder,
            tasks=questions,
            template="{{question}}",
            choices="texts",
            dtype="float32",
            device="cpu",
            progress=False,
        )
    except (ModelError, TokenizerError) as error:
        said = str(error)
        assert said.isprintable(), how
        assert len(said) < 1500, how
        assert str(folder) in said or "not a number" in said or "tokenizer" in said, how
        return
    [task] = result.tasks.values()
    assert list(task.outcome.loglikelihood) == pytest.approx(transformers_numbers(folder), abs=1e-4), how


@pytest.mark.parametrize("seed", range(0, COUNT, 3))
def test_a_broken_model_is_cut_off_or_opened_or_one_line(whole: Path, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    how = broken_models.break_it(folder, seed)
    said = []
    for read in (
        lambda: load_first_layers(str(folder), 1, dtype="float32", device="cpu"),
        lambda: Checkpoint.open(folder),
    ):
        try:
            read()
        except ModelError as error:
            said.append(str(error))
    assert all(line.isprintable() and str(folder) in line for line in said), how
