"""Answers to MT-Bench's questions, two turns each, in the files that FastChat's judges read.

Questions are the user's copy of FastChat's `question.jsonl`. As there, the temperature goes by a question's category,
an answer has at most 1,024 tokens, and the model's own chat template asks. That the second question is asked after the
model's own first answer makes the turns of a question one conversation.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from wmdp_fast import _rust
from wmdp_fast.exceptions import DatasetError, ModelError
from wmdp_fast.prompts.chat import conversation
from wmdp_fast.results.by_document import ratio
from wmdp_fast.robustness.retained.generation import generate
from wmdp_fast.robustness.retained.measure import Figure, RetainedMeasure
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from wmdp_fast.robustness.subject import Role, Subject
    from wmdp_fast.scoring.local import LocalModel

MOST_TOKENS = 1024
"""Most tokens of an answer."""

# FastChat's, by category; others have the first.
_TEMPERATURES = {
    "": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}


@dataclass(frozen=True)
class ChatQuestion:
    """A question of two turns, or of one.

    Attributes:
        question_id: Its number.
        category: What it is about.
        turns: What is asked, in order.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def temperature(self) -> float:
        """At which it is answered."""
        return _TEMPERATURES.get(self.category, _TEMPERATURES[""])


@dataclass(frozen=True)
class ChatAnswers(RetainedMeasure):
    """Answers to questions, in `model_answer` of a folder.

    Attributes:
        questions: The questions.
        folder: The folder.
        seed: Of the sampling.
    """

    kind: ClassVar[str] = "mt_bench_answers"
    questions: Sequence[ChatQuestion] = field(repr=False)
    folder: Path
    seed: int = 0

    @property
    def name(self) -> str:
        """What FastChat calls it."""
        return "MT-Bench answers"

    def identity(self) -> dict[str, Any]:
        """The hash of the questions, and how they are answered."""
        return {"questions": hash_of(self.questions), "tokens": MOST_TOKENS, "seed": self.seed}

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Answers all questions and writes the file."""
        answers, tokens = self._answered(subject.model)
        lines = [
            {
                "question_id": one.question_id,
                "answer_id": hashlib.sha256(f"{subject.role} {one.question_id} {turns}".encode()).hexdigest()[:22],
                "model_id": model_id(subject.role),
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": time.time(),
            }
            for one, turns in zip(self.questions, answers, strict=True)
        ]
        path = answers_path(self.folder, subject.role)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(strict_json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return {"tokens": tokens, "empty": [int(not turn.strip()) for turns in answers for turn in turns]}

    def _answered(self, model: LocalModel) -> tuple[list[list[str]], list[int]]:
        """The answers of each question by turn, and how many tokens each answer has."""
        answers: list[list[str]] = [[] for _ in self.questions]
        lengths: list[int] = []
        for turn in range(max(len(one.turns) for one in self.questions)):
            for temperature in sorted({one.temperature for one in self.questions}):
                places = [
                    place
                    for place, one in enumerate(self.questions)
                    if one.temperature == temperature and turn < len(one.turns)
                ]
                prompts = [prompt_of(model, self.questions[place].turns, answers[place]) for place in places]
                made = generate(model, prompts, most=MOST_TOKENS, temperature=temperature, seed=self.seed + turn)
                for place, tokens in zip(places, made, strict=True):
                    answers[place].append(str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip())
                    lengths.append(len(tokens))
        return answers, lengths


def prompt_of(model: LocalModel, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
    """The tokens of a conversation up to the next answer.

    Raises:
        TemplateError: The tokenizer has no chat template, or it fails.
    """
    messages = [("user", turns[0])]
    for answer, following in zip(answers, turns[1:], strict=False):
        messages += [("assistant", answer), ("user", following)]
    [context] = conversation(model.tokenizer, messages).contexts
    # The template writes the special tokens itself.
    tokens: list[int] = model.tokenizer(context, add_special_tokens=False)["input_ids"]
    return tokens


def read_questions(path: Path) -> list[ChatQuestion]:
    """Reads FastChat's `question.jsonl`.

    Raises:
        DatasetError: A line is no question; says which.
        OSError: It cannot be read.
    """
    found = []
    for row, line in enumerate(lines_of(path), 1):
        turns = line.get("turns")
        if not (isinstance(turns, list) and turns and all(isinstance(one, str) for one in turns)):
            raise DatasetError(str(path), "is no question: `turns` is no list of texts", row)
        if not isinstance(line.get("question_id"), int):
            raise DatasetError(str(path), "is no question: `question_id` is no number", row)
        found.append(ChatQuestion(line["question_id"], str(line.get("category", "")), tuple(turns)))
    if not found:
        raise DatasetError(str(path), "holds no questions")
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line.

    Raises:
        DatasetError: A line is none; says which.
        OSError: It cannot be read.
    """
    found = []
    with path.open(encoding="utf-8") as file:
        for row, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise DatasetError(str(path), f"is no JSON ({error})", row) from error
            if not isinstance(line, dict):
                raise DatasetError(str(path), "is no JSON object", row)
            found.append(line)
    return found


def read_answers(folder: Path, role: Role, questions: Sequence[ChatQuestion]) -> list[list[str]]:
    """The answers of a model to questions, by turn.

    Raises:
        ModelError: There are none, or to other questions.
        DatasetError: The file is damaged.
    """
    path = answers_path(folder, role)
    if not path.is_file():
        raise ModelError(f"there are no answers to judge: {path} is missing")
    try:
        answers = {line["question_id"]: line["choices"][0]["turns"] for line in lines_of(path)}
        return [list(answers[one.question_id]) for one in questions]
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{path} has no answer to each question ({error!r})") from error


def answers_path(folder: Path, role: Role) -> Path:
    """Where FastChat looks for the answers of a model."""
    return folder / "model_answer" / f"{model_id(role)}.jsonl"


def model_id(role: Role) -> str:
    """A model's name in FastChat's files."""
    return role.replace(" ", "_")


def hash_of(questions: Sequence[ChatQuestion]) -> str:
    """Tells questions from others."""
    told = [[one.question_id, one.category, list(one.turns)] for one in questions]
    return hashlib.sha256(strict_json.dumps(told).encode()).hexdigest()


def figures(found: Mapping[str, Any] | None, why: str) -> list[Figure]:
    """How long answers are, and how many say nothing."""
    titles = ("MT-Bench, tokens of an answer", "MT-Bench, empty answers")
    if found is None:
        return [Figure(title=title, value=None, why=why) for title in titles]
    tokens, empty = found["tokens"], found["empty"]
    length, low, high = ratio(tokens, [1] * len(tokens))
    ends = _rust.wilson(sum(empty), len(empty))
    return [
        Figure(title=titles[0], value=length, low=None if low is None else max(0.0, low), high=high, n=len(tokens)),
        Figure(title=titles[1], value=sum(empty) / len(empty), low=ends[0], high=ends[1], n=len(empty), unit="%"),
    ]
