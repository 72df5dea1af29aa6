"""A judge's scores of answers to MT-Bench, from any server that speaks OpenAI's interface for chats.

As FastChat grades single answers: its prompts, from the user's copy of `judge_prompts.jsonl`; reference answers for
math, reasoning and coding; temperature 0; the score from `[[x]]`, or else `[x]`. An answer whose judgment has no score
from 1 to 10 has none: it is counted, and not in the mean. Scores of other judges are other numbers.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results.by_document import ratio
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.robustness.retained.measure import Figure, RetainedMeasure
from wmdp_fast.robustness.retained.mt_bench import hash_of, lines_of, model_id, read_answers
from wmdp_fast.runtime import strict_json
from wmdp_fast.scoring.server import Client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from wmdp_fast.robustness.retained.mt_bench import ChatQuestion
    from wmdp_fast.robustness.subject import Subject
    from wmdp_fast.scoring.server import Server

# Categories that are graded with a reference answer, and most tokens of a judgment.
_WITH_REFERENCE = ("math", "reasoning", "coding")
_MOST_TOKENS = 2048

_SCORE, _PLAIN_SCORE = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")

# Name of the prompt by whether there is a reference, and by turn.
_NAMES = {
    False: ("single-v1", "single-v1-multi-turn"),
    True: ("single-math-v1", "single-math-v1-multi-turn"),
}


@dataclass(frozen=True)
class JudgePrompts:
    """What judges are asked.

    Attributes:
        prompts: System message and template by name.
        references: Reference answers by question, turn after turn.
    """

    prompts: Mapping[str, tuple[str, str]]
    references: Mapping[int, Sequence[str]]

    @property
    def content_hash(self) -> str:
        """Tells them from others."""
        told = [
            {name: list(one) for name, one in self.prompts.items()},
            {str(key): list(one) for key, one in self.references.items()},
        ]
        return hashlib.sha256(strict_json.dumps(told).encode()).hexdigest()

    def messages(self, question: ChatQuestion, answers: Sequence[str], turn: int) -> list[dict[str, str]]:
        """What is asked about an answer, as messages of a chat."""
        reference = self.references.get(question.question_id, ()) if question.category in _WITH_REFERENCE else ()
        system, template = self.prompts[_NAMES[bool(reference)][turn]]
        told = {f"ref_answer_{place}": text for place, text in enumerate(reference, 1)}
        told |= {"question": question.turns[0], "answer": answers[0]}
        for place in range(turn + 1):
            told |= {f"question_{place + 1}": question.turns[place], f"answer_{place + 1}": answers[place]}
        return [{"role": "system", "content": system}, {"role": "user", "content": template.format(**told)}]


@dataclass(frozen=True)
class JudgedScore(RetainedMeasure):
    """Scores of the answers in a folder, kept in `model_judgment` as they come.

    Attributes:
        questions: The questions.
        folder: The folder, in which `ChatAnswers` has written answers.
        server: The judge.
        prompts: What it is asked.
        seed: Of the answers.
    """

    kind: ClassVar[str] = "mt_bench"
    questions: Sequence[ChatQuestion] = field(repr=False)
    folder: Path
    server: Server
    prompts: JudgePrompts = field(repr=False)
    seed: int = 0

    @property
    def name(self) -> str:
        """The judge."""
        return self.server.model

    def identity(self) -> dict[str, Any]:
        """The hashes of questions and prompts, and the judge."""
        return {
            "questions": hash_of(self.questions),
            "prompts": self.prompts.content_hash,
            "judge": self.server.model,
            "seed": self.seed,
        }

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Has every turn of every answer judged that has not been judged yet."""
        answers = read_answers(self.folder, subject.role, self.questions)
        asked = [
            (question, turn, self.prompts.messages(question, mine, turn))
            for question, mine in zip(self.questions, answers, strict=True)
            for turn in range(min(2, len(mine)))
        ]
        judge = re.sub(r"[^\w.-]+", "_", self.name)
        path = self.folder / "model_judgment" / f"{judge}_{model_id(subject.role)}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with RunsFile(path) as file:
            done = {line["asked"]: line["score"] for line in file.lines}
            missing = [one for one in asked if _hash(one[2]) not in done]
            for (question, turn, messages), judgment in self._judged(missing):
                done[_hash(messages)] = score = score_of(judgment)
                file.add(
                    {
                        "question_id": question.question_id,
                        "model": model_id(subject.role),
                        "judge": [self.server.model, "single"],
                        "judgment": judgment,
                        "score": score,
                        "turn": turn + 1,
                        "asked": _hash(messages),
                    }
                )
        by_question: dict[int, list[float | None]] = {}
        for question, _, messages in asked:
            score = done[_hash(messages)]
            by_question.setdefault(question.question_id, []).append(None if score < 0 else score)
        return {"scores": list(by_question.values())}

    def _judged(self, asked: Sequence[tuple[ChatQuestion, int, list[dict[str, str]]]]) -> Any:
        """Judgments in order, several asked for at once.

        Raises:
            ModelError: The judge refuses or keeps failing; what it has said before is kept.
        """
        client = Client(self.server)
        body = {"temperature": 0, "max_tokens": _MOST_TOKENS}
        try:
            with ThreadPoolExecutor(self.server.concurrency) as pool:
                pending = [pool.submit(client.chat, {"messages": one[2], **body}) for one in asked]
                try:
                    for one, future in zip(asked, pending, strict=True):
                        yield one, future.result()
                finally:
                    for future in pending:
                        future.cancel()
                    client.stop()
        finally:
            client.close()


def score_of(judgment: str) -> float:
    """The score that a judgment names, from 1 to 10; -1, as FastChat has it, where it names none."""
    found = _SCORE.search(judgment) or _PLAIN_SCORE.search(judgment)
    score = float(found[1]) if found else -1.0
    return score if 1 <= score <= 10 else -1.0


def read_judge_prompts(prompts: Path, references: Path | None) -> JudgePrompts:
    """Reads FastChat's `judge_prompts.jsonl`, and answers of its format as references.

    Raises:
        DatasetError: A file holds something else, or lacks a prompt.
        OSError: It cannot be read.
    """
    try:
        read = {one["name"]: (str(one["system_prompt"]), str(one["prompt_template"])) for one in lines_of(prompts)}
    except KeyError as error:
        raise DatasetError(str(prompts), f"is no file of judges' prompts: a line has no {error}") from error
    wanted = [name for names in _NAMES.values() for name in names]
    if missing := [name for name in wanted if name not in read]:
        raise DatasetError(str(prompts), f"has no prompt called {', '.join(missing)}")
    try:
        found = (
            {}
            if references is None
            else {one["question_id"]: one["choices"][0]["turns"] for one in lines_of(references)}
        )
    except (KeyError, IndexError, TypeError) as error:
        raise DatasetError(str(references), f"is no file of reference answers ({error!r})") from error
    return JudgePrompts({name: read[name] for name in wanted}, found)


def figures(name: str, found: Mapping[str, Any] | None, why: str) -> list[Figure]:
    """The mean over all turns, with an interval over questions, and how many judgments had no score."""
    titles = (f"MT-Bench by {name}", f"MT-Bench by {name}, without a score")
    if found is None:
        return [Figure(title=title, value=None, why=why) for title in titles]
    scores = [[one for one in turns if one is not None] for turns in found["scores"]]
    judged, turns = sum(map(len, scores)), sum(map(len, found["scores"]))
    without = Figure(title=titles[1], value=1 - judged / turns, n=turns, unit="%")
    if not judged:
        return [Figure(title=titles[0], value=None, why="no judgment has a score"), without]
    value, low, high = ratio([sum(one) for one in scores], [len(one) for one in scores])
    return [Figure(title=titles[0], value=value, low=low, high=high, n=len(scores)), without]


def _hash(messages: Sequence[Mapping[str, str]]) -> str:
    return hashlib.sha256(strict_json.dumps(list(map(dict, messages))).encode()).hexdigest()
