"""A tiny model and questions for tests of attacks, and attacks that do next to nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness.attacked_model import AttackedModel
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.subject import Subject
from wmdp_fast.robustness.utility import Utility
from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

BIRDS = ("wren", "owl", "jay", "hen", "swift", "crane", "stork", "rook")


def save_model(folder: Path, family: str = "llama") -> Path:
    """A tiny model with random weights and its tokenizer, as a folder."""
    model = runs.model(family)
    tokenizer = tokenizers_zoo.tokenizer("llama3")
    model.resize_token_embeddings(640)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_questions(path: Path, count: int = 48) -> Path:
    """Questions with four choices on birds, no two of which ask the same."""
    rows = [
        {
            "question": f"Which bird sat on branch {number} of tree {number * 7 % 13}?",
            "choices": [BIRDS[(number + place) % len(BIRDS)] for place in range(4)],
            "answer": number * 5 % 4,
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def subject(folder: Path, questions: Path, **fields: Any) -> Subject:
    """The model in a folder as what is attacked."""
    read = Questions.from_options(PromptOptions(tasks=[str(questions)], template="mmlu"))
    opened = model_in(folder).open()
    return Subject(**{"role": "unlearned", "model": opened, "questions": read, "test": Utility(), **fields})


def model_in(folder: Path) -> AttackedModel:
    """The model in a folder before it is loaded, for the CPU."""
    return AttackedModel(model=folder, load=LoadOptions(device="cpu"), score=ScoreOptions())
