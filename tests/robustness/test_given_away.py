"""Texts that attacks train on and that hold reported questions with their answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from tests.support import robustness as support
from wmdp_fast import attack
from wmdp_fast.prompts.options import PromptOptions
from wmdp_fast.robustness.given_away import given_away
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.result import AttackResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from wmdp_fast import Question


def halves(path: Path) -> tuple[Questions, list[Question], list[Question]]:
    """The questions of a file, those that are reported and those for choosing."""
    questions = Questions.from_options(PromptOptions(tasks=[str(path)], template="mmlu"))
    every = list(questions.read[0].questions)
    flags = questions.is_for_choosing
    return questions, *([every[place] for place in np.flatnonzero(which)] for which in (~flags, flags))


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_what_stands_in_a_text_with_its_answer_is_counted(tmp_path: Path) -> None:
    questions, reported, choosing = halves(support.save_questions(tmp_path / "birds.jsonl"))
    first, second, third = reported[:3]
    texts = [
        f"Quiz. {first.question.upper()}\n- {first.choices[first.answer]}!",
        f"{second.question} Nobody knows.",
        f"{third.choices[third.answer]}, they said. {third.question}",
        *(f"{one.question} {one.choices[one.answer]}" for one in choosing),
    ]
    text = write(tmp_path / "forget.jsonl", texts)
    [sentence] = given_away(questions, {"forget": text}, None)
    assert f"the forget text gives away 1 of the {len(reported)} questions" in sentence
    write(text, texts[1:])
    assert given_away(questions, {"forget": text}, None) == []


def test_an_attack_says_so_and_keeps_it(tmp_path: Path) -> None:
    path = support.save_questions(tmp_path / "birds.jsonl")
    _, reported, _ = halves(path)
    text = write(tmp_path / "forget.jsonl", [f"{one.question} {one.choices[one.answer]}" for one in reported])
    told: list[str] = []
    result = attack(
        support.save_model(tmp_path / "model"),
        tasks=str(path),
        attacks="ask",
        forget=text,
        eval_options={"template": "mmlu"},
        dtype="float32",
        device="cpu",
        progress=False,
        note=told.append,
    )
    [caution] = result.cautions
    assert caution in told
    assert f"gives away {len(reported)} of the {len(reported)}" in caution
    assert f"caution: {caution}" in result.table()
    assert AttackResult.from_json(json.loads(json.dumps(result.to_json()))).cautions == [caution]
