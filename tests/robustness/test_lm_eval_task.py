"""Tasks that lm-eval runs on the models that are attacked: its numbers, and what is missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import wmdp_fast as wf
from tests.support import robustness as support

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `lm-eval`)")

if TYPE_CHECKING:
    from pathlib import Path

TASK = """
task: {name}
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def test_what_the_model_says_is_scored_once_and_a_task_that_fails_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    support.save_model(tmp_path / "model")
    model = support.model_in(tmp_path / "model").open()
    # Half of what it says is right.
    rows = [{"question": f"Bird {number} sat on", "answer": "no"} for number in range(4)]
    for row in rows[:2]:
        ids = model.tokenizer(row["question"], return_tensors="pt")
        made = model.loaded.model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        row["answer"] = model.tokenizer.decode(made[0, ids["input_ids"].shape[1] :]).split(".")[0]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "say.yaml").write_text(TASK.format(name="say", file=tmp_path / "rows.jsonl"))
    (tmp_path / "lost.yaml").write_text(TASK.format(name="lost", file=tmp_path / "not_there.jsonl"))
    given = {
        "tasks": [support.save_questions(tmp_path / "birds.jsonl")],
        "attacks": "ask",
        "device": "cpu",
        "progress": False,
        "output": tmp_path / "out",
        "lm_eval_tasks": f"{tmp_path / 'say.yaml'},{tmp_path / 'lost.yaml'}",
    }
    result = wf.attack(tmp_path / "model", **given)
    shown = {one.title: one for one in result.kept("unlearned")}
    figure = shown["say exact_match (lm-eval)"]
    assert (figure.value, figure.n) == (0.5, 4)
    assert (figure.low, figure.high) == wf._rust.wilson(2, 4)
    found = next(one.found for one in result.measured if one.name == "say")
    assert found is not None
    assert found["command"].startswith("lm-eval run --model hf --model_args pretrained=")
    missing = shown["lost (lm-eval)"]
    assert missing.value is None
    assert "lm-eval: " in missing.why
    assert {"GSM8K (--lm-eval-tasks gsm8k)", "IFEval (--lm-eval-tasks ifeval)"} <= set(result.not_asked)
    assert "say exact_match (lm-eval)" in [one.title for one in wf.table(result).measures]

    monkeypatch.setattr(lm_eval, "simple_evaluate", None)
    again = wf.attack(tmp_path / "model", **(given | {"lm_eval_tasks": str(tmp_path / "say.yaml")}))
    assert {one.title: one for one in again.kept("unlearned")}["say exact_match (lm-eval)"].value == 0.5
