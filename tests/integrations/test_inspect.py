"""inspect_ai, the real one: our tasks on our provider give lm-eval's answers, and it reads what we export."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed: pip install 'wmdp-fast[inspect]'")

import inspect_ai
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ModelOutput,
    get_model,
)
from transformers import PreTrainedTokenizerFast

import wmdp_fast as wf
from tests.support import tiny_models, tokenizers_zoo
from tests.support.expected_warnings import printed
from wmdp_fast import demo
from wmdp_fast.cli import main
from wmdp_fast.exceptions import DatasetError, ModelError, TemplateError
from wmdp_fast.integrations import inspect_log, inspect_model, inspect_registry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)

QUESTIONS = demo.questions_path("forget")
MODEL = {"model": "wmdp-fast/demo", "model_args": {"model_path": str(demo.model_path()), "dtype": "float32"}}


@pytest.fixture(scope="module")
def expected() -> wf.EvalResult:
    return wf.evaluate(demo.model_path(), tasks=QUESTIONS, limit=12, dtype="float32", device="cpu", progress=False)


def evaluate(folder: Path, **options: Any) -> Any:
    task = inspect_registry.questions(tasks=str(QUESTIONS))
    [log] = inspect_ai.eval(task, **MODEL, limit=12, log_dir=str(folder), display="none", **options)
    assert log.status == "success", log.error
    return log


def test_our_task_on_our_provider_gives_evaluates_answers(tmp_path: Path, expected: wf.EvalResult) -> None:
    log = evaluate(tmp_path)
    outcome = expected.tasks["glimmer_brewing"].outcome
    metrics = log.results.scores[0].metrics
    assert metrics["accuracy"].value == pytest.approx(outcome.acc)
    assert metrics["stderr"].value == pytest.approx(outcome.acc_stderr)
    scores = {sample.id: sample.scores["most_likely_letter"] for sample in log.samples}
    found = [
        [scores[f"glimmer_brewing-{number + 1}"].metadata["logprobs"][letter] for letter in "ABCD"]
        for number in range(12)
    ]
    np.testing.assert_allclose(np.ravel(found), outcome.loglikelihood, atol=1e-4)
    assert log.samples[0].input == expected.tasks["glimmer_brewing"].prompts.context(0)


@pytest.mark.parametrize("bos", [False, True])
def test_letters_of_several_tokens_count_as_in_evaluate(tmp_path: Path, bos: bool) -> None:
    """Of a tokenizer that writes ` E` and ` F` as two tokens, and of one that puts BOS in front."""
    tokenizer = tiny_models.tokenizer()
    backend = tokenizer.backend_tokenizer
    if bos:
        backend = tokenizers_zoo._bos(backend)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    lengths = {len(tokenizer.encode(f"Answer: {letter}")) for letter in "ABCDEFG"}
    assert len(lengths) > 1, "all letters are one token"
    tiny_models.build("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"question": f"Which moth is {n}?", "choices": [f"m{n}{k}" for k in range(4 + n % 4)], "answer": n % 4}
        for n in range(24)
    ]
    questions = tmp_path / "moths.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    [expected] = wf.evaluate(str(tmp_path / "model"), tasks=questions, progress=False, **options).tasks.values()
    [log] = inspect_ai.eval(
        inspect_registry.questions(tasks=str(questions)),
        model="wmdp-fast/tiny",
        model_args={"model_path": str(tmp_path / "model"), **options},
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", log.error
    scores = [sample.scores["most_likely_letter"] for sample in sorted(log.samples, key=lambda one: int(one.id[6:]))]
    found = [value for score in scores for _, value in sorted(score.metadata["logprobs"].items())]
    np.testing.assert_allclose(found, expected.outcome.loglikelihood, atol=1e-5)
    assert ["ABCDEFG".index(score.answer) for score in scores] == expected.outcome.predicted.tolist()


# As SmolVLM's: a content is a list of parts, and of a plain text nothing is left.
IN_PARTS = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}Answer:"
)


def tiny_api(folder: Path, *, chat_template: str | None = None, added: tuple[str, ...] = (), **options: Any) -> Any:
    """Our provider with a tiny model, and a tokenizer with more tokens than it has embeddings for."""
    tokenizer = copy.deepcopy(tiny_models.tokenizer())
    model = tiny_models.build("llama")
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = chat_template
    for one in (model, tokenizer):
        one.save_pretrained(folder)
    args = {"model_path": str(folder), "dtype": "float32", "device": "cpu", **options}
    return get_model("wmdp-fast/tiny", memoize=False, **args).api


def test_a_chat_template_of_parts_keeps_the_question(tmp_path: Path) -> None:
    api = tiny_api(tmp_path, chat_template=IN_PARTS)
    api.chat_template = True
    with pytest.warns(wf.WmdpFastWarning, match="it was given lists of parts"):
        text = api._text([ChatMessageSystem(content="Say."), ChatMessageUser(content="Which moth?")])
    assert text == "system:Say.user:Which moth?Answer:"


@pytest.mark.parametrize(
    ("template", "says"),
    [("{{ messages[0]['role'] }}", "leaves out the text of the last message"), (None, "has no chat template")],
)
def test_a_chat_template_that_loses_the_question_is_refused(tmp_path: Path, template: str | None, says: str) -> None:
    api = tiny_api(tmp_path, chat_template=template)
    api.chat_template = True
    with pytest.raises(TemplateError, match=says):
        api._text([ChatMessageUser(content="Which moth?")])


@pytest.mark.parametrize(("token", "prompt"), [(" E", "Which moth?"), ("<new>", "Which <new> moth?")])
def test_a_token_that_the_model_has_no_embedding_for_is_named(tmp_path: Path, token: str, prompt: str) -> None:
    api = tiny_api(tmp_path, added=(token,))
    with pytest.raises(ModelError, match=rf"a prompt or a letter has token \d+ \('{token}'\), but the model"):
        api._answer([inspect_model._Ask(prompt, top=5)])


def test_prompts_that_come_together_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = get_model(MODEL["model"], memoize=False, **MODEL["model_args"])
    sizes = []
    answer = model.api._answer
    monkeypatch.setattr(model.api, "_answer", lambda asks: (sizes.append(len(asks)), answer(asks))[1])
    task = inspect_registry.questions(tasks=str(QUESTIONS))
    [log] = inspect_ai.eval(task, model, limit=12, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    assert sum(sizes) == 12
    assert max(sizes) > 5


@pytest.mark.parametrize("options", [{"max_tokens": 5}, {"temperature": 0.7}])
def test_what_it_does_not_do_it_says(tmp_path: Path, options: dict[str, Any]) -> None:
    task = inspect_registry.questions(tasks=str(QUESTIONS))
    [log] = inspect_ai.eval(task, **MODEL, limit=1, log_dir=str(tmp_path), display="none", **options)
    assert log.status == "error"
    assert "the one most likely token" in log.error.message


def output(text: str, tokens: dict[str, float] | None) -> ModelOutput:
    choice: dict[str, Any] = {"message": ChatMessageAssistant(content=text)}
    if tokens is not None:
        top = [{"token": token, "logprob": value} for token, value in tokens.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
    return ModelOutput(choices=[ChatCompletionChoice(**choice)])


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (None, {}),
        ({"the": -0.1}, {}),
        ({" A": -3.0, " B": -2.0, "A": -0.5, "B": -0.7, "\n": -0.1}, {"A": -3.0, "B": -2.0}),
        ({"A": -0.5, "B": -0.7, " A": -0.1}, {"A": -0.5, "B": -0.7}),
        ({"\u0120A": -0.5, "\u2581B": -0.7}, {"A": -0.5, "B": -0.7}),
        ({"A": -0.5, " B": -0.7, " C": -0.1}, {"A": -0.5}),
        ({" A": -0.1, "A": -3.0, "B": -4.0}, {"A": -0.1}),
        ({" A": -0.5}, {"A": -0.5}),
    ],
)
def test_letters_are_found_as_any_provider_writes_them(
    tokens: dict[str, float] | None, found: dict[str, float]
) -> None:
    assert inspect_registry.letter_logprobs(output("A", tokens), "AB") == found


def test_exported_results_are_read_by_inspect(tmp_path: Path, expected: wf.EvalResult, capsys: Any) -> None:
    expected.save(tmp_path, log_samples=True)
    assert main(["export", str(tmp_path), "--inspect"]) == 0
    [path] = capsys.readouterr().out.split()
    log = read_eval_log(path)
    outcome = expected.tasks["glimmer_brewing"].outcome
    assert log.eval.task == "glimmer_brewing"
    assert log.eval.model == expected.model_name
    assert log.results.scores[0].metrics["accuracy"].value == outcome.acc
    assert log.results.scores[0].metrics["stderr"].value == outcome.acc_stderr
    assert len(log.samples) == log.results.total_samples == 12
    for sample, predicted, answer in zip(log.samples, outcome.predicted, outcome.answers, strict=True):
        score = sample.scores["acc"]
        assert (score.answer, sample.target) == ("ABCD"[predicted], "ABCD"[answer])
        assert score.value == ("C" if predicted == answer else "I")
    values = list(log.samples[3].scores["acc"].metadata["loglikelihood"].values())
    np.testing.assert_allclose(values, outcome.loglikelihood[12:16])
    assert len(list((tmp_path).rglob("*.eval"))) == 1
    assert main(["export", str(tmp_path), "--inspect"]) == 0
    assert len(list((tmp_path).rglob("*.eval"))) == 1

    pytest.importorskip("pandas", reason="pandas is not installed")
    from inspect_ai.analysis import samples_df

    assert len(samples_df(path)) == 12


def test_results_without_samples_are_exported_too(tmp_path: Path, expected: wf.EvalResult) -> None:
    expected.save(tmp_path)
    [path] = inspect_log.export(tmp_path, tmp_path / "logs")
    log = read_eval_log(path)
    assert log.results.total_samples == 12
    assert not log.samples


def test_what_cannot_be_exported_is_named(tmp_path: Path, expected: wf.EvalResult) -> None:
    with pytest.raises(FileNotFoundError, match="there are no results in"):
        inspect_log.export(tmp_path)
    saved = expected.save(tmp_path, log_samples=True)
    [samples] = saved.parent.glob("samples_*.jsonl")
    samples.write_text(samples.read_text() + "{}\n")
    with pytest.raises(DatasetError, match=r"samples_.*row 13, field `doc_id`: is missing; is this a samples file"):
        inspect_log.export(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results_2026-11-24T15-00-00.json").write_text("[]")
    with pytest.raises(DatasetError, match="is not a results file"):
        inspect_log.export(tmp_path / "other")


def edited(saved: Path, change: Any) -> None:
    raw = json.loads(saved.read_text(encoding="utf-8"))
    change(raw)
    saved.write_text(json.dumps(raw), encoding="utf-8")


@printed(".* is left out")
def test_what_is_no_plain_multiple_choice_is_left_out_and_the_rest_is_written(
    tmp_path: Path, expected: wf.EvalResult, capsys: Any
) -> None:
    saved = expected.save(tmp_path, log_samples=True)
    [samples] = saved.parent.glob("samples_*.jsonl")
    many = samples.with_name(samples.name.replace("glimmer_brewing", "many"))
    lines = []
    for line in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
        line["arguments"] = {f"gen_args_{i}": {"arg_0": "?", "arg_1": f" {i}"} for i in range(30)}
        line["filtered_resps"] = [["-1.0", "False"]] * 30
        lines.append(json.dumps(line) + "\n")
    many.write_text("".join(lines), encoding="utf-8")

    def add(raw: Any) -> None:
        # Before the task that can be exported.
        raw["results"] = {"asked": {"exact_match,none": 0.5}, "many": {"acc,none": 0.5}} | raw["results"]
        raw["configs"]["asked"] = {"output_type": "generate_until"}

    edited(saved, add)
    assert main(["export", str(tmp_path), "--inspect"]) == 0
    captured = capsys.readouterr()
    [path] = captured.out.split()
    assert read_eval_log(path).eval.task == "glimmer_brewing"
    told = captured.err.splitlines()
    assert told[0].endswith("asked is left out: it is no multiple-choice task but generate_until")
    assert told[1].endswith("many is left out: question 0 has 30 choices, more than there are letters")
    assert told[2] == "1 log written"


def test_a_metric_that_is_no_number_for_a_question_is_exported_as_a_number(
    tmp_path: Path, expected: wf.EvalResult
) -> None:
    """brier_score stands in a line as the right choice and all probabilities."""
    saved = expected.save(tmp_path, log_samples=True)
    [samples] = saved.parent.glob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line |= {"metrics": ["acc", "brier_score"], "brier_score": [1, [0.1, 0.7, 0.1, 0.1]]}
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    edited(saved, lambda raw: raw["results"]["glimmer_brewing"].update({"brier_score,none": 0.7}))
    [path] = inspect_log.export(tmp_path)
    log = read_eval_log(path)
    assert {score.name: score.metrics["accuracy"].value for score in log.results.scores}["brier_score"] == 0.7
    assert list(log.samples[0].scores) == ["acc"]


def test_a_full_disk_names_the_log_and_leaves_none(tmp_path: Path, expected: wf.EvalResult) -> None:
    expected.save(tmp_path, log_samples=True)
    code = """
import resource, signal, sys
from wmdp_fast import cli
import inspect_ai.log
sys.dont_write_bytecode = True  # or modules are left cut off
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(cli.main(["export", sys.argv[1], "--inspect", "--output", sys.argv[2]]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "logs")], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "error: [Errno 27] File too large: '" in ran.stderr
    assert "_glimmer-brewing_" in ran.stderr
    # Only inspect's own archive, which it closes as it is deleted, says more.
    assert "Traceback" not in ran.stderr.partition("Exception ignored in: <function")[0]
    assert list((tmp_path / "logs").iterdir()) == []


@pytest.mark.slow
def test_inspects_own_command_line(tmp_path: Path, expected: wf.EvalResult) -> None:
    environment = {**os.environ, "INSPECT_DISPLAY": "none", "INSPECT_LOG_DIR": str(tmp_path / "logs")}
    command = [
        *(sys.executable, "-m", "inspect_ai", "eval", "wmdp_fast/questions", "-T", f"tasks={QUESTIONS}"),
        *("--model", "wmdp-fast/demo", "-M", f"model_path={demo.model_path()}", "-M", "dtype=float32"),
        *("--limit", "12"),
    ]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
    [made] = (tmp_path / "logs").glob("*.eval")
    expected.save(tmp_path, log_samples=True)
    [exported] = inspect_log.export(tmp_path, tmp_path / "logs")
    for path in (made, exported):
        [score] = read_eval_log(path).results.scores
        assert score.metrics["accuracy"].value == pytest.approx(expected.tasks["glimmer_brewing"]["acc"])
