"""Answers in FastChat's format, and a judge that is a small real server on the loopback and can misbehave."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

import wmdp_fast as wf
from tests.reference import generation as slow
from tests.support import robustness as support
from tests.support.served_stand_in import StandIn
from wmdp_fast import Server, cli
from wmdp_fast.robustness.retained import judge, mt_bench
from wmdp_fast.scoring import server as server_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from wmdp_fast.robustness.result import AttackResult

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write of owls.", "Make it shorter."]},
    {"question_id": 111, "category": "math", "turns": ["What is 3 + 4?", "And twice that?"]},
    {"question_id": 131, "category": "extraction", "turns": ["Name a bird."]},
]
REFERENCES = [{"question_id": 111, "choices": [{"index": 0, "turns": ["7", "14"]}]}]
TEMPLATES = {
    "single-v1": "Q {question} A {answer}",
    "single-v1-multi-turn": "Q1 {question_1} A1 {answer_1} Q2 {question_2} A2 {answer_2}",
    "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-math-v1-multi-turn": "R1 {ref_answer_1} R2 {ref_answer_2} Q2 {question_2} A2 {answer_2}",
}
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, and FastChat's files."""
    made: Path = tmp_path_factory.mktemp("mt_bench")
    support.save_model(made / "model")
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(made / "model")
    support.save_questions(made / "birds.jsonl")
    prompts = [
        {"name": name, "system_prompt": "Be fair.", "prompt_template": template} for name, template in TEMPLATES.items()
    ]
    for name, rows in {"question": QUESTIONS, "references": REFERENCES, "prompts": prompts}.items():
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(server_module, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(mt_bench, "MOST_TOKENS", 6)
    server = StandIn(lambda body: message("no score" if "Q Name" in asked(body) else "Fair: [[4]]."))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def message(text: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][1]["content"])


def attacked(folder: Path, output: Path, **options: Any) -> AttackResult:
    return wf.attack(
        folder / "model",
        tasks=[folder / "birds.jsonl"],
        attacks="ask",
        eval_options={"template": "mmlu"},
        mt_bench_questions=folder / "question.jsonl",
        output=output,
        device="cpu",
        progress=False,
        **options,
    )


def test_answers_are_what_fastchat_reads_and_follow_one_another(
    folder: Path, tmp_path: Path, stand_in: StandIn
) -> None:
    result = attacked(folder, tmp_path)
    assert stand_in.bodies == []
    path = tmp_path / "mt_bench" / "model_answer" / "unlearned.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(line) for line in lines] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 3
    assert [len(line["choices"][0]["turns"]) for line in lines] == [2, 2, 1]
    # Math is answered with the likeliest tokens, the second turn after the first.
    model = support.model_in(folder / "model").open()
    tokenizer, turns = model.tokenizer, lines[1]["choices"][0]["turns"]
    told = f"user: What is 3 + 4?\nassistant: {turns[0]}\nuser: And twice that?\nassistant:"
    for context, answer in (("user: What is 3 + 4?\nassistant:", turns[0]), (told, turns[1])):
        tokens = tokenizer(context, add_special_tokens=False)["input_ids"]
        expected = slow.greedy(model.loaded.model, tokens, 6, {tokenizer.eos_token_id})
        assert tokenizer.decode(expected, skip_special_tokens=True).strip() == answer
    assert "MT-Bench by a judge (--judge-url)" in result.not_asked
    assert [one.title for one in result.kept("unlearned")][2:] == [
        "MT-Bench, tokens of an answer",
        "MT-Bench, empty answers",
    ]


def test_a_judge_scores_every_turn_once_and_failures_are_missing(
    folder: Path, tmp_path: Path, stand_in: StandIn
) -> None:
    given = {
        "judge": Server(stand_in.url, "birds", api_key="secret", retries=1, concurrency=1),
        "judge_prompts": folder / "prompts.jsonl",
        "mt_bench_references": folder / "references.jsonl",
    }
    # The third judgment never comes.
    stand_in.fault = lambda handler, _: len(stand_in.asked) > 2 and (handler.answer(500, "busy") or True)
    failed = attacked(folder, tmp_path, **given)
    score = {one.title: one for one in failed.kept("unlearned")}["MT-Bench by birds"]
    assert score.value is None
    assert "keeps failing (2 times)" in score.why
    stand_in.fault = lambda _handler, times: times == -1
    stand_in.asked.clear()
    result = attacked(folder, tmp_path, **given)
    assert len(stand_in.asked) == 3  # two had been judged
    shown = {one.title: one for one in result.kept("unlearned")}
    assert (shown["MT-Bench by birds"].value, shown["MT-Bench by birds"].n) == (4.0, 3)
    assert shown["MT-Bench by birds, without a score"].value == pytest.approx(1 / 5)
    assert set(stand_in.keys) == {"Bearer secret"}
    assert "secret" not in (tmp_path / "robustness.json").read_text()
    body = next(body for body in stand_in.bodies if "R1 7 R2 14" in asked(body))
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("birds", 0, 2048)
    assert body["messages"][0] == {"role": "system", "content": "Be fair."}
    lines = (tmp_path / "mt_bench" / "model_judgment" / "birds_unlearned.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == [4.0, 4.0, 4.0, 4.0, -1.0]
    assert "MT-Bench by birds" in [one.title for one in wf.table(tmp_path).measures]


def test_scores_are_read_as_fastchat_reads_them() -> None:
    read = {"[[7]]": 7.0, "so [[8.5]].": 8.5, "Rating: [3]": 3.0, "[[11]]": -1.0, "seven": -1.0, "": -1.0}
    assert {text: judge.score_of(text) for text in read} == read


def test_what_is_missing_for_it_is_said(
    folder: Path, tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    support.save_model(tmp_path / "plain")
    given = {"tasks": [folder / "birds.jsonl"], "attacks": "ask", "device": "cpu", "progress": False}
    result = wf.attack(
        tmp_path / "plain", mt_bench_questions=folder / "question.jsonl", output=tmp_path / "out", **given
    )
    assert "chat template" in result.kept("unlearned")[2].why
    for options, message in (
        ({"mt_bench_questions": folder / "question.jsonl"}, "needs output"),
        ({"judge": Server(stand_in.url, "birds")}, "needs answers"),
        (
            {
                "judge": Server(stand_in.url, "birds"),
                "mt_bench_questions": folder / "question.jsonl",
                "output": tmp_path / "out",
            },
            "needs FastChat's judge_prompts.jsonl",
        ),
        ({"mt_bench_questions": folder / "birds.jsonl", "output": tmp_path / "out"}, "row 1.*`turns` is no list"),
    ):
        with pytest.raises(ValueError, match=message):
            wf.attack(tmp_path / "plain", **given, **options)
    assert cli.main(["attack", "m", "--tasks", "t", "--judge-model", "birds"]) == 2
    assert "a judge needs --judge-url and --judge-model" in capsys.readouterr().err
