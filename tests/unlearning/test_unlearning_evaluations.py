"""What is measured while a model is unlearned: kept as `eval` keeps it, and asked in all the ways that `eval` knows."""

from __future__ import annotations

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import wmdp_fast as wf
from tests.support import tokenizers_zoo
from tests.support import unlearning_runs as runs
from tests.support.expected_warnings import ONE_LETTER, printed
from tests.support.unlearning_runs import CONFIG
from wmdp_fast import cli
from wmdp_fast.exceptions import ModelError, TaskError, WmdpFastWarning
from wmdp_fast.prompts.texts import read_texts
from wmdp_fast.results.result import EvalResult

pytestmark = ONE_LETTER

CHAT = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer that has a chat template, and made-up questions with examples."""
    made = tmp_path_factory.mktemp("evaluations")
    model = runs.model("llama")
    model.resize_token_embeddings(640)
    model.config.max_position_embeddings = 512
    model.save_pretrained(made / "base")
    tokenizer = copy.deepcopy(tokenizers_zoo.tokenizer("llama3"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(made / "base")
    for name, count in (("birds_test", 12), ("birds_dev", 2)):
        rows = [
            {"question": f"What is {name} {i}?", "choices": ["the wren", "an owl", "a jay", "a tit"], "answer": i % 4}
            for i in range(count)
        ]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def unlearned(folder, output, **options):
    return runs.unlearn(
        folder / "base", CONFIG, output=output, eval_tasks=str(folder / "birds_test.jsonl"), eval_every=2, **options
    )


def test_every_evaluation_is_kept_as_eval_would_have_saved_it(folder, tmp_path):
    result = unlearned(folder, tmp_path / "out", eval_options={"template": "mmlu"})
    home = tmp_path / "out" / "evaluations"
    assert sorted(path.name for path in home.iterdir()) == ["step-0", "step-2", "step-4"]
    for one in result.evaluations:
        kept = wf.read_results(tmp_path / "out" / one["results"])
        assert {name: dict(kept[name].metrics) for name in kept} == one["scores"]
    for step, model in ((0, folder / "base"), (4, tmp_path / "out")):
        asked = {"tasks": str(folder / "birds_test.jsonl"), "template": "mmlu", "progress": False}
        separate = wf.evaluate(model, **asked, output=tmp_path / f"separate-{step}", log_samples=True)
        kept = wf.read_results(home / f"step-{step}")["birds"]
        np.testing.assert_array_equal(kept.samples.loglikelihood, separate["birds"].outcome.loglikelihood, strict=True)
    compared = wf.compare(home / "step-0", home / "step-4")
    [row] = compared.contrasts[0].rows
    assert (row.name, row.n, row.why_unpaired) == ("birds", 12, None)
    assert not (tmp_path / "out.unlearning").exists()


def test_without_samples_only_the_numbers_are_kept(folder, tmp_path):
    unlearned(folder, tmp_path / "out", eval_options={"template": "mmlu"}, log_samples=False)
    assert not list(tmp_path.rglob("samples_*"))
    assert wf.read_results(tmp_path / "out" / "evaluations" / "step-4")["birds"].n == 12


@pytest.mark.parametrize(
    "words",
    [
        ["--description", "Of birds.\n\n", "--num-fewshot", "1", "--limit", "7"],
        ["--choices", "texts", "--template", "{{ question }}"],
        ["--apply-chat-template", "--system-instruction", "Be brief.", "--template", "mmlu", "--num-fewshot", "2"],
        ["--apply-chat-template", "--num-fewshot", "2", "--no-fewshot-as-multiturn"],
    ],
    ids=["description", "texts", "chat", "one turn"],
)
def test_the_command_asks_in_every_way_that_eval_does(folder, tmp_path, words, capsys):
    corpora = []
    for kind, seed in (("forget", 1), ("retain", 2)):
        rows = [json.dumps({"text": " ".join(f"{kind} {token}" for token in row)}) for row in runs.documents(seed)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows))
        corpora += [f"--{kind}", str(tmp_path / f"{kind}.jsonl")]
    questions = str(folder / "birds_test.jsonl")
    settings = ["--layer-id", "1", "--max-steps", "1", "--steering-coeff", "2", "--batch-size", "2", "--quiet"]
    output = tmp_path / "out"
    command = ["unlearn", str(folder / "base"), *corpora, *settings, "--output", str(output)]
    assert cli.main([*command, "--eval-tasks", questions, *words]) == 0
    asked = 7 if "--limit" in words else 12
    assert f"accuracy of birds: on {asked} questions; guessing gives 0.250" in capsys.readouterr().out
    assert cli.main(["eval", str(output), "--tasks", questions, *words, "--json", "--quiet"]) == 0
    expected = json.loads(capsys.readouterr().out)
    kept = wf.read_results(output / "evaluations" / "step-1").raw
    assert kept["results"] == expected["results"]
    for key in ("configs", "n-shot", "chat_template_sha", "system_instruction", "fewshot_as_multiturn"):
        assert kept[key] == expected[key], key


def test_a_task_that_is_among_both_kinds_counts_for_both(folder, tmp_path):
    result = wf.sweep(
        folder / "base",
        forget=runs.corpus(runs.documents(1), "forget"),
        retain=runs.corpus(runs.documents(2), "retain"),
        over={"max_steps": [2]},
        config=CONFIG,
        forget_tasks=str(folder / "birds_test.jsonl"),
        retain_tasks=str(folder / "birds_test.jsonl"),
        eval_options={"template": "mmlu"},
        output=tmp_path / "sweep",
        progress=False,
    )
    assert result.runs[0].forget == result.runs[0].retain
    compared = wf.compare(tmp_path / "sweep" / result.base.results, tmp_path / "sweep" / result.runs[0].results)
    [row] = compared.contrasts[0].rows
    assert (row.name, row.n, row.why_unpaired) == ("birds", 12, None)


def test_a_sweep_says_which_of_two_files_of_one_name_to_rename(folder, tmp_path):
    (tmp_path / "birds_test.jsonl").write_text((folder / "birds_test.jsonl").read_text())
    with pytest.raises(TaskError, match="rename one of them"):
        wf.sweep(
            folder / "base",
            forget=runs.corpus(runs.documents(1), "forget"),
            retain=runs.corpus(runs.documents(2), "retain"),
            over={"max_steps": [2]},
            forget_tasks=str(folder / "birds_test.jsonl"),
            retain_tasks=str(tmp_path / "birds_test.jsonl"),
            output=tmp_path / "sweep",
            progress=False,
        )


@printed("(description|system_instruction) has a backslash")
@printed("4 of the 4 documents of the forget corpus .* are in the retain corpus")
@pytest.mark.parametrize("command", ["unlearn", "sweep"])
def test_what_is_unusual_in_the_prompts_is_told_once_a_run(command, folder, tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": f"The wren {i} sings of the sea at night."}) + "\n" for i in range(20))
    )
    questions = str(folder / "birds_test.jsonl")
    argv = [command, str(folder / "base"), "--forget", str(corpus), "--retain", str(corpus), "--min-chars", "5"]
    settings = {"layer-id": 2, "steering-coeff": 2, "alpha": 50, "learning-rate": 0.01, "batch-size": 2}
    argv += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    argv += ["--description", "About\\n", "--system-instruction", "Be\\n", "--output", str(tmp_path / "out")]
    if command == "unlearn":
        argv += ["--max-steps", "2", "--eval-tasks", questions, "--eval-every", "1"]
    else:
        argv += ["--max-steps", "1,2", "--forget-tasks", questions, "--retain-tasks", questions]
    assert cli.main(argv) == 0
    error = capsys.readouterr().err
    for name in ("description", "system_instruction"):
        assert error.count(f"warning: {name} has a backslash and an n") == 1
    found = list((tmp_path / "out" / "evaluations").rglob("results*.json"))
    for kept in found:
        listed = json.loads(kept.read_text())["wmdp_fast"]["warnings"]
        assert sum("has a backslash and an n" in line for line in listed) == 2
    assert len(found) == 3


def test_that_one_letter_is_answered_is_told_once_a_run(folder, tmp_path, monkeypatch):
    note = "birds: A is answered to 12 of 12 questions (all of them)"
    monkeypatch.setattr(EvalResult, "letter_notes", lambda _self: [note])
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", WmdpFastWarning)
        unlearned(folder, tmp_path / "out", eval_options={"template": "mmlu"})
    assert [str(one.message) for one in given].count(note) == 1
    kept = list((tmp_path / "out" / "evaluations").rglob("results*.json"))
    assert len(kept) > 1
    assert all(json.loads(file.read_text())["wmdp_fast"]["warnings"].count(note) == 1 for file in kept)


def test_a_template_that_fails_is_told_before_anything_is_loaded(folder, tmp_path, capsys):
    argv = [
        "unlearn",
        str(folder / "nowhere"),
        "--forget",
        "f.jsonl",
        "--retain",
        "r.jsonl",
        "--output",
        str(tmp_path / "out"),
    ]
    argv += ["--eval-tasks", str(folder / "birds_test.jsonl"), "--template", "{{hint}}"]
    assert cli.main(argv) == 1
    assert "hint" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Files to unlearn and to retain, and a text that is in neither."""
    made = tmp_path_factory.mktemp("corpora")
    for name, animal in (("forget", "wren"), ("retain", "jay"), ("held_out", "owl")):
        rows = [{"text": f"The {animal} {i} of the isles sings {i * i} songs in the morning."} for i in range(12)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_perplexity_is_measured_with_every_evaluation(folder, corpora, tmp_path):
    text = corpora / "held_out.jsonl"
    files = {"forget": corpora / "forget.jsonl", "retain": corpora / "retain.jsonl"}
    # A condition may speak of it.
    result = wf.unlearn(
        folder / "base",
        **files,
        config=CONFIG,
        output=tmp_path / "out",
        eval_tasks=str(folder / "birds_test.jsonl"),
        eval_text=text,
        eval_every=2,
        keep_while="held_out.bits_per_byte<before+100",
        progress=False,
    )
    assert [one["step"] for one in result.evaluations] == [0, 2, 4]
    for one, source in zip(result.evaluations[::2], (folder / "base", tmp_path / "out"), strict=True):
        alone = wf.evaluate(source, text=text, device="cpu", progress=False)["held_out"]
        assert one["scores"]["held_out"]["word_perplexity"] == pytest.approx(alone.metrics["word_perplexity"], rel=1e-4)
        assert one["questions"]["held_out"] == 12
        kept = wf.read_results(tmp_path / "out" / one["results"]).tasks["held_out"].documents
        np.testing.assert_allclose(kept.loglikelihood, alone.documents.loglikelihood, rtol=1e-5)
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text())
    assert record["texts"] == [
        {"name": "held_out", "files": [str(text)], "content_hash": read_texts(text)[0].content_hash}
    ]
    assert record["not_held_out"] == []
    assert record["evaluations"][2]["scores"]["held_out"] == result.evaluations[2]["scores"]["held_out"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| held_out | 12 | word perplexity |" in card
    assert "| birds | 12 |" in card
    compared = wf.compare(tmp_path / "out" / "evaluations" / "step-0", tmp_path / "out" / "evaluations" / "step-4")
    assert compared.contrasts[0].rows[-1].metric == "token_perplexity"
    assert compared.contrasts[0].rows[-1].p is not None


@printed("the text (forget|mixed) is not held out")
def test_a_text_alone_can_be_watched_and_one_that_is_trained_on_is_named(folder, corpora, tmp_path, capsys):
    rows = (corpora / "held_out.jsonl").read_text() + (corpora / "retain.jsonl").read_text().splitlines()[3] + "\n"
    (tmp_path / "mixed.jsonl").write_text(rows)
    arguments = ["unlearn", str(folder / "base"), "--layer-id", "2", "--max-steps", "2", "--batch-size", "2"]
    arguments += ["--forget", str(corpora / "forget.jsonl"), "--retain", str(corpora / "retain.jsonl")]
    arguments += ["--eval-text", str(corpora / "forget.jsonl"), "--eval-text", str(tmp_path / "mixed.jsonl")]
    assert cli.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    told = [line.removeprefix("warning: ") for line in shown.err.splitlines() if "not held out" in line]
    corpus = {name: corpora / f"{name}.jsonl" for name in ("forget", "retain")}
    assert told == [
        f"the text forget is not held out: its file is of the forget corpus {corpus['forget']}",
        f"the text mixed is not held out: 1 of its 13 documents are in the retain corpus {corpus['retain']}",
    ]
    assert json.loads((tmp_path / "out" / "unlearn.json").read_text())["not_held_out"] == told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Accuracy before" not in card
    assert "> **The text mixed is not held out" in card
    assert "mixed word perplexity" in shown.out


def test_a_sweep_shows_perplexity_and_does_not_decide_by_it(folder, corpora, tmp_path):
    shutil.copy(folder / "birds_test.jsonl", tmp_path / "fish.jsonl")
    options = {
        "forget": corpora / "forget.jsonl",
        "retain": corpora / "retain.jsonl",
        "over": {"max_steps": [1, 2]},
        "forget_tasks": str(folder / "birds_test.jsonl"),
        "retain_tasks": str(tmp_path / "fish.jsonl"),
        "config": CONFIG,
        "progress": False,
    }
    plain = wf.sweep(folder / "base", output=tmp_path / "plain", **options)
    result = wf.sweep(folder / "base", output=tmp_path / "out", eval_text=corpora / "held_out.jsonl", **options)
    assert (result.front, result.best, result.why_no_best) == (plain.front, plain.best, plain.why_no_best)
    before = wf.evaluate(folder / "base", text=corpora / "held_out.jsonl", device="cpu", progress=False)["held_out"]
    assert result.base.scores["held_out"]["word_perplexity"] == pytest.approx(before.metrics["word_perplexity"], 1e-4)
    assert all("token_perplexity" in run.scores["held_out"] for run in result.runs)
    header, _, *rows = result.table().splitlines()
    assert "held_out" in header
    assert all(len(row.split()) >= len(result.swept) + 6 for row in rows[:2])
    assert "held_out: word perplexity, lower is better; it decides about no run" in result.table()
    assert "held_out" not in plain.table()
    other = tmp_path / "held_out.jsonl"
    other.write_text('{"text": "another owl"}\n')
    with pytest.raises(ModelError, match="a sweep with other texts"):
        wf.sweep(folder / "base", output=tmp_path / "out", eval_text=other, resume=True, **options)


def changed_base(folder, tmp_path, change):
    """A copy of the model, with something done to its weights."""
    shutil.copytree(folder / "base", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    return tmp_path / "base"


@pytest.fixture
def asked(folder):
    return {"eval_tasks": str(folder / "birds_test.jsonl"), "eval_options": {"template": "mmlu"}}


def test_what_loading_warns_of_is_in_the_record(folder, tmp_path, asked):
    """Weights without a place are not used, and whoever reads the record should know."""
    surplus = {"model.surplus.weight": torch.zeros(3)}
    base = changed_base(folder, tmp_path, lambda weights: weights.update(surplus))
    with pytest.warns(wf.WmdpFastWarning, match=r"not used: model\.surplus\.weight"):
        runs.unlearn(base, CONFIG, output=tmp_path / "out", **asked)
    record = json.loads((tmp_path / "out" / "unlearn.json").read_text(encoding="utf-8"))
    [note] = record["warnings"]
    assert note.endswith("they are not used: model.surplus.weight")


@pytest.mark.parametrize("evaluated", [False, True])
def test_missing_weights_end_the_run_without_advice_that_is_not_there(folder, tmp_path, asked, evaluated):
    name = "model.layers.1.mlp.up_proj.weight"
    base = changed_base(folder, tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=r"would be random: .*layers\.1\.mlp\.up_proj\.weight") as caught:
        runs.unlearn(base, CONFIG, output=tmp_path / "out", **(asked if evaluated else {}))
    assert "allow" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))
